"""What removing a channel means to layers and operators that mix many of them: recurrent layers, attention, products of
two activations, normalisation over channels.

Each rule takes the propagation and a node and gives the label tensor of its result, or None where it does not apply.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from search_spaces.label_tensors import channel_vector, first_entries, varies
from search_spaces.recurrent import Recurrent, directions, gates, matrices
from search_spaces.template import arguments, source_of

if TYPE_CHECKING:
    from search_spaces.labels import LabelPropagation


def recurrent(run: "LabelPropagation", node: fx.Node, name: str, module: Recurrent) -> list[Any]:
    """A unit is one hidden unit: its row in every gate and its column where the next step or layer reads it.

    `nn.LSTM` and its like have one hidden size, so unit i goes from all layers and both directions at once.
    """
    inputs = run.read(node, name, 2, module.input_size, batch_axis=0 if module.batch_first else 1)
    if name not in run.hidden:
        hidden = run.fresh(module.hidden_size)
        run.hidden[name] = hidden, run.fresh(module.proj_size) if module.proj_size else hidden
    hidden, state = run.hidden[name]
    if module.proj_size:
        run.freeze([hidden, state], f"recurrent layer {name!r} projects its state")
    given = node.all_input_nodes[1:]
    if given:
        reason = f"recurrent layer {name!r} starts from a state that it is given"
        run.freeze([hidden, state, *(run.values[start] for start in given)], reason)
    for matrix in matrices(module):
        below = state.repeat(directions(module)) if matrix.layer else inputs
        reads = {"input": below, "state": state, "gates": hidden}[matrix.reads]
        run.add_layer(
            f"{name}.{matrix.weight}", reads, state if matrix.reads == "gates" else hidden.repeat(gates(module))
        )
    sequence, *states = node.meta["items"]
    held = [run.along(labels, 2, shape) for labels, shape in zip((state, hidden), states, strict=False)]
    return [run.along(state.repeat(directions(module)), 2, sequence), held if len(held) > 1 else held[0]]


def attention(run: "LabelPropagation", node: fx.Node) -> Tensor | None:
    """A unit is one head: its part of queries, keys and values, and what is made of it."""
    found = arguments(node)
    query, key, value = (run.values[found[side]] for side in ("query", "key", "value"))
    if not node.meta["batched"] or any(varies(side, side.ndim - 2) for side in (query, key, value)):
        return None
    if not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]:
        return None
    heads = [_blocks(run, node, side, "is one head") for side in (query, key, value)]
    for other in heads[1:]:
        run.link(heads[0], other)
    if found["attn_mask"] is not None:
        scores = (*query.shape[:-1], key.shape[-2])
        run.meet([first_entries(query, [-1, -2]).expand(scores), run.values[found["attn_mask"]]])
    return first_entries(value, [-2]).expand(node.meta["shape"])


def product(run: "LabelPropagation", node: fx.Node) -> Tensor | None:
    """Matrix products of two activations. Where channels differ from matrix to matrix, a unit is a matrix: a head of
    attention that is written out. Else rows and columns keep theirs; channels that are summed over have to stay."""
    if len(node.all_input_nodes) != 2:
        return None
    left, right = (run.values[source] for source in node.all_input_nodes)
    shape = tuple(node.meta["shape"])
    sound = all(source.meta["batched"] for source in node.all_input_nodes) and node.meta["batched"]
    if not sound or left.ndim != right.ndim or left.shape[:-2] != right.shape[:-2]:
        return None
    if any(varies(side, axis) for side in (left, right) for axis in range(1, left.ndim - 2)):
        run.link(*(_blocks(run, node, side, "is one matrix", rows=True) for side in (left, right)))
        return first_entries(left, [-1, -2]).expand(shape)
    rows, columns = varies(left, left.ndim - 2), varies(right, right.ndim - 1)
    if (rows and columns) or varies(left, left.ndim - 1) or varies(right, right.ndim - 2):
        return None
    if rows:
        return first_entries(left, [-1]).expand(shape)
    return first_entries(right, [-2]).expand(shape)


def _blocks(run: "LabelPropagation", node: fx.Node, side: Tensor, what: str, rows: bool = False) -> Tensor:
    """Ties what lies in one matrix; the label of each matrix, batch dimension left out."""
    where = node.meta["where"]
    axes = [side.ndim - 2, side.ndim - 1] if rows else [side.ndim - 1]
    run.tie(side, axes, f"what {where or 'the network'!r} multiplies {what}")
    return first_entries(side, [0, -1, -2])


def layer_norm(run: "LabelPropagation", node: fx.Node) -> Tensor | None:
    """The mean and variance are those of all entries: they go together."""
    source = run.values[source_of(node)]
    axes = list(range(source.ndim - len(arguments(node)["normalized_shape"]), source.ndim))
    if node.meta["batch_axis"] in axes:
        return None
    run.tie(source, axes, f"layer norm {node.meta['where']!r} normalises over all of them")
    return run.meet([run.values[argument] for argument in node.all_input_nodes])


def group_norm(run: "LabelPropagation", node: fx.Node) -> Tensor | None:
    """Each norm group has a mean and variance of its own: its channels go together, then there is a group less."""
    source, *parameters = (run.values[argument] for argument in node.all_input_nodes)
    labels = channel_vector(source, 1)
    if labels is None or not node.meta["batched"]:
        return None
    rows = labels.reshape(arguments(node)["num_groups"], -1)
    run.tie(rows, [1], f"group norm {node.meta['where']!r} normalises over all of them")
    return run.meet([source, *(parameter.reshape([-1] + [1] * (source.ndim - 2)) for parameter in parameters)])
