"""Label tensors: integers in the shape of an activation.

Along axes where labels do not differ they are repeated by a stride of 0, so that they cost next to nothing.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx

from search_spaces.template import Template, op_name


def run_move(template: Template, node: fx.Node, source: Tensor) -> Tensor | None:
    """Run a moving operator on an integer tensor; None where it mixes the batch with something else."""
    if op_name(node) == "expand":  # perhaps to the size of the batch, which is no number
        return source.reshape([1] * (len(node.meta["shape"]) - source.ndim) + list(source.shape)).expand(
            node.meta["shape"]
        )
    first, *indices = node.all_input_nodes
    found: dict[fx.Node, Any] = {first: source}
    for index in indices:  # of index_select: constants
        if index.op != "get_attr":
            return None
        found[index] = template.tensors[str(index.target)]
    args = fx.map_arg(node.args, found.__getitem__)
    kwargs = fx.map_arg(dict(node.kwargs), found.__getitem__)
    result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    if tuple(result.shape) != tuple(node.meta["shape"]):
        return None
    batch = node.meta["batch_axis"]
    if batch is not None and varies(result, batch):
        return None
    still = [axis for axis in range(result.ndim) if not varies(result, axis)]
    return first_entries(result, still).expand(result.shape)


def varies(labels: Tensor, axis: int) -> bool:
    """Whether labels differ along an axis."""
    if labels.shape[axis] <= 1 or labels.stride(axis) == 0:
        return False
    first = unrepeated(labels, but=axis)
    return bool((first != first.narrow(axis, 0, 1)).any())


def channel_vector(labels: Tensor, axis: int) -> Tensor | None:
    """[channels] the labels along an axis; None where they differ along another axis."""
    if any(varies(labels, other) for other in range(labels.ndim) if other != axis):
        return None
    return labels.movedim(axis, 0).reshape(labels.shape[axis], -1)[:, 0].clone()


def first_entries(labels: Tensor, axes: Sequence[int]) -> Tensor:
    """The first entry along some axes, which stay with size 1."""
    for axis in axes:
        labels = labels.narrow(axis, 0, 1)
    return labels


def unrepeated(labels: Tensor, but: int = -1) -> Tensor:
    """Without the repetition along axes of stride 0."""
    return first_entries(
        labels, [axis for axis in range(labels.ndim) if axis != but and labels.stride(axis) == 0 and labels.shape[axis]]
    )
