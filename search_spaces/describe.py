"""A captured network as plain data: its operators, layers and groups as a `ModelGraph`."""

from math import prod

from torch import fx, nn

from search_spaces.channels import ChannelStructure
from search_spaces.graph import Extent, LayerSpec, ModelGraph, Operator
from search_spaces.trace import arguments, op_name

_KINDS = {
    "hardtanh": "hardtanh", "concat": "cat", "constant_pad_nd": "pad", "mean": "mean", "index_select": "channel_gather",
    "channel_shuffle": "channel_shuffle", "native_channel_shuffle": "channel_shuffle",
}  # fmt: skip


def describe(structure: ChannelStructure) -> ModelGraph:
    """The uncompressed graph of a template."""
    return _Describer(structure).run()


class _Describer:
    def __init__(self, structure: ChannelStructure) -> None:
        self.structure = structure
        self.template = structure.template
        self.names: dict[fx.Node, str] = {}
        self.operators: list[Operator] = []
        self.counted: set[str] = set()

    def run(self) -> ModelGraph:
        inside = {step for gather in self.structure.gathers.values() for step in gather.chain[:-1]}
        for node in self.template.graph.nodes:
            if node.op == "get_attr" or (node in inside and self._hidden(node)):
                continue
            if node.op == "output":
                source = node.args[0]
                self._add(node, "output", [source], like=source)
            elif "shape" in node.meta or "items" in node.meta:
                gather = self.structure.gathers.get(node)
                if gather is not None:
                    self._add(node, "channel_gather", [gather.source])
                else:
                    self._add(node, self._kind(node), node.all_input_nodes)
        shape = next(node.meta["shape"] for node in self.template.graph.nodes if node.op == "placeholder")
        return ModelGraph.build(
            self.operators, self._layers(), self.structure.groups, self.structure.refusals, shape[1:]
        )

    def _hidden(self, node: fx.Node) -> bool:
        """Whether all that reads a node is a chain shown as one gather."""
        chains = [gather.chain for gather in self.structure.gathers.values()]
        return all(any(user in chain and node in chain for chain in chains) for user in node.users)

    def _add(self, node: fx.Node, kind: str, sources: list[fx.Node], like: fx.Node | None = None) -> None:
        shown = like or node
        axis = self.structure.channel_axis(shown)
        shape = shown.meta.get("shape", ())
        batched = shown.meta.get("batched", False)
        per_channel, fixed = self._params(node)
        extent = Extent() if axis is None else self.structure.extent(self.structure.unit_arrays[shown].reshape(-1))
        if axis is None and per_channel:
            fixed += per_channel * self.template.modules[str(node.target)].num_features  # type: ignore[operator]
            per_channel = 0
        self.names[node] = node.name
        self.operators.append(
            Operator(
                name=node.name,
                kind=kind,
                inputs=tuple(self.names[source] for source in sources if source in self.names),
                shape=tuple(shape[1:] if batched else shape),
                dtype=str(shown.meta.get("dtype", "")).removeprefix("torch."),
                layer=str(node.target)
                if node.op == "call_module" and kind in ("conv", "linear", "batch_norm")
                else None,
                axis=None if axis is None else axis - int(batched),
                extent=extent,
                channel_params=per_channel,
                fixed_params=fixed,
            )
        )

    def _params(self, node: fx.Node) -> tuple[int, int]:
        """Parameters an operator has beside those of convolution and linear layers: by channel, and fixed."""
        if node.op == "call_module":
            module = self.template.modules[str(node.target)]
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and str(node.target) not in self.counted:
                self.counted.add(str(node.target))
                return sum(1 for _ in module.parameters()), 0
            return 0, 0
        fixed = 0
        for source in node.all_input_nodes:
            name = str(source.target)
            value = self.template.tensors.get(name) if source.op == "get_attr" else None
            if isinstance(value, nn.Parameter) and name not in self.counted:
                self.counted.add(name)
                fixed += value.numel()
        return 0, fixed

    def _kind(self, node: fx.Node) -> str:
        if node.op == "placeholder":
            return "input"
        if node.op == "call_module":
            module = self.template.modules[str(node.target)]
            if isinstance(module, nn.Linear):
                return "linear"
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                return "batch_norm"
            return "conv" if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) else "dropout"
        name = op_name(node)
        shape, source = node.meta.get("shape", ()), node.all_input_nodes[0].meta.get("shape", ()) if node.args else ()
        if name == "hardtanh":
            found = arguments(node)
            return "relu6" if (found["min_val"], found["max_val"]) == (0, 6) else name
        if name.startswith("adaptive_avg_pool") and prod(shape[2:]) == 1:
            return "global_avg_pool"
        if name == "mean" and len(source) > 2 and shape and prod(shape) == prod(source[:2]) and shape[1] == source[1]:
            return "global_avg_pool"
        for pool in ("max_pool", "avg_pool"):
            if name in (f"{pool}{dims}d" for dims in (1, 2, 3)):
                return pool
        return _KINDS.get(name, name or getattr(node.target, "__name__", str(node.target)))

    def _layers(self) -> list[LayerSpec]:
        calls: dict[str, list[fx.Node]] = {}
        for node in self.template.graph.nodes:
            if node.op == "call_module" and str(node.target) in self.structure.labels.layers:
                calls.setdefault(str(node.target), []).append(node)
        return [self._layer(name, nodes) for name, nodes in calls.items()]

    def _layer(self, name: str, calls: list[fx.Node]) -> LayerSpec:
        module = self.template.modules[name]
        sides = self.structure.labels.layers[name]
        inputs, outputs = (
            self.structure.extent(self.structure.unit_ids(side)) for side in (sides.inputs, sides.outputs)
        )
        source, result = calls[0].args[0].meta["shape"], calls[0].meta["shape"]  # type: ignore[union-attr]
        if isinstance(module, nn.Linear):
            positions = sum(prod(call.meta["shape"][1:-1]) for call in calls)
            return LayerSpec(
                name, "linear", module.in_features, module.out_features, (), (), (), (), 1, (), (), positions,
                module.bias is not None, inputs, outputs,
            )  # fmt: skip
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        return LayerSpec(
            name=name,
            kind="conv",
            in_channels=module.in_channels,
            out_channels=module.out_channels,
            kernel=tuple(module.kernel_size),
            stride=tuple(module.stride),
            padding=_padding(module),
            dilation=tuple(module.dilation),
            groups=module.groups,
            input_size=tuple(source[2:]),
            output_size=tuple(result[2:]),
            positions=sum(prod(call.meta["shape"][2:]) for call in calls),
            bias=module.bias is not None,
            in_extent=inputs,
            out_extent=outputs,
        )


def _padding(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> tuple[int, ...]:
    if isinstance(module.padding, str):
        pairs = zip(module.kernel_size, module.dilation, strict=True)
        return tuple(dilation * (kernel - 1) // 2 if module.padding == "same" else 0 for kernel, dilation in pairs)
    return tuple(module.padding)
