"""The operations of a network as plain data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from search_spaces.layers import FIXED, Extent, LayerSpec
from search_spaces.resolution import Resolution


@dataclass(frozen=True, slots=True)
class TensorInput:
    """Stands in an operator's arguments for the tensor `inputs[index]`."""

    index: int


@dataclass(frozen=True, slots=True)
class Entries:
    """Stands in an operator's arguments for a number of entries along the axis that shrinks.

    Attributes:
        fixed: entries that no group can remove.
        units: (index of the channel group, its unit) of the others.
    """

    fixed: int
    units: tuple[tuple[int, int], ...]

    def count(self, kept: Sequence[int]) -> int:
        """Entries that are left where group i keeps kept[i] units; which ones is not known here, so the first."""
        return self.fixed + sum(unit < kept[group] for group, unit in self.units)


Argument = TensorInput | Entries | int | float | bool | str | None | tuple["Argument", ...]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operation of the network.

    Attributes:
        name: unique in the graph.
        kind: canonical name: "input", "constant" (a free parameter), "conv", "linear", "batch_norm", "relu", "add",
            "cat", "max_pool", "channel_gather" (a shuffle), ..., "output"; else ATen's name.
        inputs: names of the operators it reads.
        shape: of its output for one image; where `batched`, the batch dimension, its first, is left out.
        dtype: of its output, e.g. "float32".
        layer: qualified name of the module whose weights it uses, None where it has none.
        axis: the axis of `shape` that shrinks, None where none does.
        extent: how that axis shrinks.
        channel_params: parameters for each entry of that axis that no `LayerSpec` counts (2 for batch norm).
        fixed_params: other parameters that no `LayerSpec` counts.
        target: ATen's operator with its overload ("max_pool2d.default"); "" where a module or none is called.
        arguments: its arguments by name, defaults filled in. Bounds along the axis that shrinks are `Entries`. Those of
            a "channel_gather" are "index" (for each channel of the whole network which channel of its input it is, -1
            for zeros), and for "source" and "result" the (group, unit) of each channel, group -1 where it stays; where
            nothing of it can be pruned, "dim" and "index" alone.
        batched: whether its first dimension is the batch.
        constant: whether it depends on no input.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    layer: str | None = None
    axis: int | None = None
    extent: Extent = FIXED
    channel_params: int = 0
    fixed_params: int = 0
    target: str = ""
    arguments: tuple[tuple[str, Argument], ...] = ()
    batched: bool = True
    constant: bool = False

    def argument(self, name: str) -> Argument:
        """The argument of that name, None where there is none."""
        return dict(self.arguments).get(name)


@dataclass(frozen=True, slots=True)
class Block:
    """A residual block whose branch can be removed.

    Attributes:
        name: the path of modules that all layers of its branch have in common; where other layers lie in it, too, the
            first layer.
        operators: those of its branch, in execution order, constants that nothing else reads included.
        layers: convolution and linear layers of its branch, in execution order.
        sum: the operator that adds the branch to what it reads.
        identity: which input of the sum that is, 0 or 1.
    """

    name: str
    operators: tuple[str, ...]
    layers: tuple[str, ...]
    sum: str
    identity: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """A whole network at one resolution of its input.

    Attributes:
        resolution: height and width of the input.
        operators, layers: as `ModelGraph.full_operators` and `full_layers` have them.
    """

    resolution: Resolution
    operators: tuple[Operator, ...]
    layers: tuple[LayerSpec, ...]


def with_input_factor(recurrent: Operator, factor: LayerSpec, source: Operator) -> list[Operator]:
    """A recurrent layer's operator after the linear layer that its input matrix was taken apart into."""
    linear = replace(
        source,
        name=f"{recurrent.name}.0",
        kind="linear",
        inputs=(source.name,),
        shape=(*source.shape[:-1], factor.out_channels),
        axis=None,
        extent=FIXED,
        channel_params=0,
        fixed_params=0,
        layer=factor.name,
        target="",
        arguments=(),
    )
    return [linear, replace(recurrent, inputs=(linear.name, *recurrent.inputs[1:]))]
