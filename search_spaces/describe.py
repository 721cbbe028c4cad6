"""A captured network as plain data: its operators, layers and groups as a `ModelGraph`."""

from math import prod

from torch import fx, nn

from search_spaces.channels import ChannelStructure
from search_spaces.describe_arguments import read_arguments
from search_spaces.graph import ModelGraph
from search_spaces.layers import Extent, LayerSpec
from search_spaces.operators import Operator
from search_spaces.recurrent import Recurrent, matrices
from search_spaces.recurrent import kind as recurrent_kind
from search_spaces.template import (
    FUNCTIONS,
    BatchNorm,
    Conv,
    Template,
    arguments,
    op_name,
    source_of,
    target_name,
    weight_nodes,
)

_KINDS = {
    "concat": "cat",
    "constant_pad_nd": "pad",
    "index_select": "channel_gather",
    "native_channel_shuffle": "channel_shuffle",
}


def describe(structure: ChannelStructure, batch: int = 1) -> ModelGraph:
    """The uncompressed graph of a captured network.

    Args:
        structure: the captured network.
        batch: for which the shapes of operators without a batch dimension are given; where the network fixes its
            batch size, they are for that.
    """
    layers = _Layers(structure)
    operators = _Operators(structure, layers, batch).run()
    image = next(node.meta["shape"][1:] for node in structure.template.graph.nodes if node.op == "placeholder")
    return ModelGraph.build(operators, layers.specs(), structure.groups, structure.refusals, image)


class _Layers:
    """The layers: modules, and convolutions and products with weights that are no module's own, which stay whole."""

    def __init__(self, structure: ChannelStructure) -> None:
        self.structure = structure
        self.template: Template = structure.template
        self.calls: dict[str, list[fx.Node]] = {}
        self.name_of: dict[fx.Node, str] = {}
        # counted by their layer, as the weight they come to
        self.weight_nodes = weight_nodes(self.template.graph)
        for node in self.template.graph.nodes:
            if node.op == "call_module":
                self._call_module(node)
            elif op_name(node) in FUNCTIONS:
                self._call(node, self._free_name(node))

    def _call_module(self, node: fx.Node) -> None:
        layers = self.template.layers_of(str(node.target))
        for name in layers:
            self.calls.setdefault(name, []).append(node)
        if layers:
            self.name_of[node] = str(node.target)

    def _call(self, node: fx.Node, name: str) -> None:
        self.calls.setdefault(name, []).append(node)
        self.name_of[node] = name

    def _free_name(self, node: fx.Node) -> str:
        """`attn.in_proj` for `attn.in_proj_weight`; else that of the module whose code it is."""
        weight = arguments(node)["weight"]
        name = str(weight.target) if weight.op == "get_attr" else f"{node.meta['where']}.{op_name(node)}".lstrip(".")
        name = name.removesuffix("weight").rstrip("._") or name
        while name in self.template.modules:
            name += "_"
        return name

    def specs(self) -> list[LayerSpec]:
        return [
            self._module(name, nodes) if nodes[0].op == "call_module" else self._function(name, nodes)
            for name, nodes in self.calls.items()
        ]

    def _module(self, name: str, nodes: list[fx.Node]) -> LayerSpec:
        module = self.template.module(nodes[0])
        sides = self.structure.labels.layers[name]
        extents = [self.structure.extent(self.structure.unit_ids(side)) for side in (sides.inputs, sides.outputs)]
        if isinstance(module, Conv):
            return _conv(name, nodes, self._positions(nodes, 1), module, (extents[0], extents[1]))
        if isinstance(module, Recurrent):
            shape = (len(sides.outputs), len(sides.inputs))
            bias = any(name.endswith(f".{matrix.weight}") and matrix.bias is not None for matrix in matrices(module))
            return _linear(name, self._positions(nodes, -1), shape, bias, (extents[0], extents[1]))
        weight = tuple(module._parameters["weight"].shape)  # type: ignore[union-attr]
        return _linear(name, self._positions(nodes, -1), weight, module.bias is not None, (extents[0], extents[1]))

    def _positions(self, nodes: list[fx.Node], axis: int) -> int:
        """Entries an image and channel, over all calls; the batch need not be dimension 0."""
        shapes = [node.meta["shape"] if "shape" in node.meta else node.meta["items"][0] for node in nodes]
        return sum(prod(shape) // (shape[axis] * self.template.batch) for shape in shapes)

    def _function(self, name: str, nodes: list[fx.Node]) -> LayerSpec:
        found = arguments(nodes[0])
        weight, bias = found["weight"].meta["shape"], found["bias"] is not None
        if op_name(nodes[0]) == "linear":
            return _linear(name, self._positions(nodes, -1), weight, bias, (Extent(weight[1]), Extent(weight[0])))
        transposed = "output_padding" in found
        groups = found["groups"]
        inputs, outputs = (weight[0], weight[1] * groups) if transposed else (weight[1] * groups, weight[0])
        dims = len(weight) - 2
        stride, dilation = (_each(found[key], dims) for key in ("stride", "dilation"))
        read = [source_of(node) if transposed else node for node in nodes]
        return LayerSpec(
            name=name,
            kind="conv_transpose" if transposed else "conv",
            in_channels=inputs,
            out_channels=outputs,
            kernel=tuple(weight[2:]),
            stride=stride,
            padding=_padding(found["padding"], weight[2:], dilation),
            dilation=dilation,
            groups=groups,
            input_size=tuple(source_of(nodes[0]).meta["shape"][2:]),
            output_size=tuple(nodes[0].meta["shape"][2:]),
            positions=self._positions(read, 1),
            bias=bias,
            in_extent=Extent(inputs),
            out_extent=Extent(outputs),
        )


def _linear(
    name: str, positions: int, weight: tuple[int, ...], bias: bool, extents: tuple[Extent, Extent]
) -> LayerSpec:
    return LayerSpec(
        name=name,
        kind="linear",
        in_channels=weight[1],
        out_channels=weight[0],
        kernel=(),
        stride=(),
        padding=(),
        dilation=(),
        groups=1,
        input_size=(),
        output_size=(),
        positions=positions,
        bias=bias,
        in_extent=extents[0],
        out_extent=extents[1],
    )


def _conv(name: str, nodes: list[fx.Node], positions: int, module: Conv, extents: tuple[Extent, Extent]) -> LayerSpec:
    return LayerSpec(
        name=name,
        kind="conv",
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel=tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding=_padding(module.padding, module.kernel_size, module.dilation),
        dilation=tuple(module.dilation),
        groups=module.groups,
        input_size=tuple(source_of(nodes[0]).meta["shape"][2:]),
        output_size=tuple(nodes[0].meta["shape"][2:]),
        positions=positions,
        bias=module.bias is not None,
        in_extent=extents[0],
        out_extent=extents[1],
    )


def _padding(
    padding: str | int | tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    if isinstance(padding, str):
        pairs = zip(kernel, dilation, strict=True)
        return tuple(spread * (size - 1) // 2 if padding == "same" else 0 for size, spread in pairs)
    return _each(padding, len(kernel))


def _each(value: int | tuple[int, ...], dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


class _Operators:
    """Every operator, its shape for one image and the parameters that no layer counts."""

    def __init__(self, structure: ChannelStructure, layers: _Layers, batch: int) -> None:
        self.structure = structure
        self.template = structure.template
        self.layers = layers
        self.batch = batch
        self.operators: dict[fx.Node, Operator] = {}

    def run(self) -> list[Operator]:
        for node in self.template.graph.nodes:
            if node in self.layers.weight_nodes or not ({"shape", "items"} & node.meta.keys() or node.op == "output"):
                continue
            gather = self.structure.gathers.get(node)
            if gather is not None:
                self._add(node, "channel_gather", [gather.source])
            elif node not in self._inside():
                self._add(node, self._kind(node), list(node.all_input_nodes))
        return list(self.operators.values())

    def _inside(self) -> set[fx.Node]:
        """Nodes that only serve a chain shown as one gather."""
        chains = [gather.chain for gather in self.structure.gathers.values()]
        inner = {node for chain in chains for node in chain[:-1]}
        ends = {chain[-1] for chain in chains}
        for node in reversed(self.template.graph.nodes):
            if node in inner and not all(user in ends or user in inner for user in node.users):
                inner.discard(node)
        return inner

    def _add(self, node: fx.Node, kind: str, sources: list[fx.Node]) -> None:
        shown = source_of(node) if kind == "output" else node
        batched = shown.meta.get("batched", False)
        shape = self.template.shape(shown, self.batch) if "shape" in shown.meta else ()
        axis = self.structure.channel_axis(shown)
        extent = Extent() if axis is None else self.structure.extent(self.structure.unit_arrays[shown].reshape(-1))
        params = self._params(node)
        layer = self.layers.name_of.get(node)
        reads = [source for source in sources if source in self.operators]
        self.operators[node] = Operator(
            name=node.name,
            kind=kind,
            inputs=tuple(self.operators[source].name for source in reads),
            shape=tuple(shape[1:] if batched else shape),
            dtype=str(shown.meta.get("dtype", "")).removeprefix("torch."),
            layer=str(node.target) if kind == "batch_norm" and node.op == "call_module" else layer,
            axis=None if axis is None else axis - int(batched),
            extent=extent,
            channel_params=0 if axis is None else params // shape[axis],
            fixed_params=params if axis is None else 0,
            target=target_name(node),
            arguments=read_arguments(self.structure, node, reads),
            batched=batched,
            constant=not shown.meta.get("fed", False),
        )

    def _params(self, node: fx.Node) -> int:
        """Parameters of batch norms and of free tensors, at their first use."""
        if any(other.op == node.op and other.target == node.target for other in self.operators):
            return 0
        if node.op == "get_attr":
            value = self.template.tensors[str(node.target)]
            return value.numel() if isinstance(value, nn.Parameter) else 0
        if node.op == "call_module" and isinstance(self.template.module(node), BatchNorm):
            return sum(parameter.numel() for parameter in self.template.module(node).parameters())
        return 0

    def _kind(self, node: fx.Node) -> str:
        if node.op != "call_function":
            return self._plain_kind(node)
        name = op_name(node)
        shape, source = (
            node.meta.get("shape", ()),
            source_of(node).meta.get("shape", ()) if node.all_input_nodes else (),
        )
        if node in self.layers.name_of:
            return "linear" if name == "linear" else "conv_transpose" if "transpose" in name else "conv"
        if name == "hardtanh":
            found = arguments(node)
            return "relu6" if (found["min_val"], found["max_val"]) == (0, 6) else name
        if name.startswith("adaptive_avg_pool") and prod(shape[2:]) == 1:
            return "global_avg_pool"
        if name == "mean" and len(source) > 2 and tuple(shape[:2]) == tuple(source[:2]) and prod(shape[2:]) == 1:
            return "global_avg_pool"
        if name in {f"{pool}_pool{dims}d" for pool in ("max", "avg") for dims in (1, 2, 3)}:
            return name[:-2]
        return _KINDS.get(name, name or getattr(node.target, "__name__", str(node.target)))

    def _plain_kind(self, node: fx.Node) -> str:
        if node.op == "call_module":
            module = self.template.module(node)
            if isinstance(module, Recurrent):
                return recurrent_kind(module)
            kinds = ((Conv, "conv"), (nn.Linear, "linear"), (BatchNorm, "batch_norm"))
            return next((kind for type_, kind in kinds if isinstance(module, type_)), "dropout")
        return {"placeholder": "input", "get_attr": "constant"}.get(node.op, node.op)
