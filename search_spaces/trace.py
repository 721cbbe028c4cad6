"""A network as a normalised fx graph: what labels are read from and what pruned networks are built from.

`torch.export` gives the ATen operators with the qualified name of every parameter. Normalising makes of them a graph
in which the layers are modules again and every other operator is functional, so that one set of rules covers it:

- convolution, linear, batch norm and dropout become `call_module` nodes under their original qualified names;
- in-place operators become functional ones;
- split, chunk, unbind become slices and selections; view, squeeze, unflatten become `reshape(x, [-1, ...])`, so that
  any batch size works.
"""

import copy
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram

from search_spaces.errors import InputError

aten = torch.ops.aten

_LAYERS: dict[str, type[nn.Module]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "linear": nn.Linear,
}
_BATCH_NORMS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
_DROPOUTS: dict[str, type[nn.Module]] = {
    "dropout": nn.Dropout,
    "feature_dropout": nn.Dropout2d,
    "alpha_dropout": nn.AlphaDropout,
    "feature_alpha_dropout": nn.FeatureAlphaDropout,
}
_RESHAPES = {"view", "reshape", "_unsafe_view", "unflatten", "squeeze", "view_as", "reshape_as"}
_SPLITS = {"split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk", "unsafe_split"}
_NOTHING = {"detach", "alias", "lift_fresh_copy", "lift_fresh", "lift", "_assert_tensor_metadata"}
_MAY_ALIAS = {"reshape", "flatten", "contiguous", "dropout", "to", "type_as", "expand_as", "view_as", "unflatten"}


@dataclass
class Template:
    """A normalised network in eval mode.

    Node metadata: "shape" (with the batch of the trace first where "batched"), "dtype", "where" (qualified name of the
    module whose code the node is), or "items" (a list of shapes) for a node with several outputs.

    Attributes:
        graph: the operators; each layer a `call_module` node.
        modules: the layers by qualified name, holding the network's own tensors.
        tensors: parameters, buffers and constants that no layer holds, by qualified name.
        saved: those of `tensors` that belong in a state dict.
        batch: batch size of the trace.
    """

    graph: fx.Graph
    modules: dict[str, nn.Module]
    tensors: dict[str, torch.Tensor | nn.Module]
    saved: set[str]
    batch: int


def op_name(node: fx.Node) -> str:
    """Name of the ATen operator without its overload ("conv2d"); "" for anything else."""
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        return str(node.target._schema.name.split("::")[1])
    return ""


def arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of an operator node by name, defaults filled in."""
    assert isinstance(node.target, torch._ops.OpOverload)
    found: dict[str, Any] = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            found[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        else:
            found[argument.name] = argument.default_value if argument.has_default_value() else None
    return found


def drop_unused(graph: fx.Graph) -> None:
    """Remove the nodes whose result nobody reads."""
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def trace(model: nn.Module, example_input: torch.Tensor) -> Template:
    """Export the model and normalise its graph. The model is copied, never changed.

    Args:
        model: any network of one input tensor and one output tensor, batch first.
        example_input: [N, ...].

    Raises:
        InputError: torch cannot copy, run or export it, or it does not give one tensor.
    """
    if not isinstance(example_input, torch.Tensor) or example_input.ndim < 2:
        raise InputError("a network is captured on an example input tensor of shape [N, ...], batch first")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = copy.deepcopy(model).eval()
        except Exception as error:
            raise InputError(f"the model cannot be copied: {_line(error)}; capture a model of plain modules") from None
        try:
            with torch.no_grad():
                output = model(example_input)
        except Exception as error:
            raise InputError(
                f"the model cannot be run on an input of shape {tuple(example_input.shape)} "
                f"({example_input.dtype}): {_line(error)}; give the input shape it was made for"
            ) from None
        if not isinstance(output, torch.Tensor) or output.ndim < 1 or output.shape[0] != example_input.shape[0]:
            got = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
            raise InputError(f"a network gives one tensor, batch first, got {got}; wrap the model so that it does")
        program = _export(model, example_input)
    return _Normaliser(model, program).run()


def _export(model: nn.Module, example_input: torch.Tensor) -> ExportedProgram:
    """With a batch dimension of any size; where the network forbids that, with the size of the example."""
    pair = example_input if example_input.shape[0] > 1 else torch.cat([example_input, example_input])
    try:
        return torch.export.export(model, (pair,), dynamic_shapes=({0: Dim.AUTO},))
    except Exception:
        try:
            return torch.export.export(model, (example_input,))
        except Exception as error:
            raise InputError(
                f"torch.export cannot capture the model: {_line(error)}; see its documentation on control flow that "
                "depends on data"
            ) from None


def _line(error: Exception) -> str:
    """The first line of an exception's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")


@dataclass
class _Normaliser:
    """Copies an exported graph node by node into its normal form."""

    model: nn.Module
    program: ExportedProgram
    graph: fx.Graph = field(default_factory=fx.Graph)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor | nn.Module] = field(default_factory=dict)
    saved: set[str] = field(default_factory=set)
    env: dict[fx.Node, Any] = field(default_factory=dict)

    def run(self) -> Template:
        signature = self.program.graph_signature
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        held = dict(self.model.named_parameters(remove_duplicate=False))
        held.update(self.model.named_buffers(remove_duplicate=False))
        held.update({name: value for name, value in self.program.constants.items() if isinstance(value, torch.Tensor)})
        self.held: dict[str, torch.Tensor] = held
        persistent = set(self.model.state_dict())
        self.leaf: dict[fx.Node, str] = {}
        self.persistent = persistent
        nodes = list(self.program.graph.nodes)
        self.order = {node: index for index, node in enumerate(nodes)}
        self.aliases = _aliases(nodes)
        inputs = [node for node in nodes if node.op == "placeholder" and node.name in signature.user_inputs]
        first = inputs[0].meta["val"].shape[0]
        self.batch_symbol = None if isinstance(first, int) else first.node.expr
        self.batch = _hint(first)
        self.fed: set[fx.Node] = set(inputs)
        for node in nodes:
            if node.op == "placeholder":
                if node in self.fed:
                    self.env[node] = self._new(node, self.graph.placeholder("x"))
                else:
                    self.leaf[node] = names.get(node.name, node.name)
            elif node.op == "get_attr":
                self._submodule(node)
            elif node.op == "output":
                result = node.args[0][0] if isinstance(node.args[0], list | tuple) else node.args[0]
                # mutated buffers come before the user's output
                wanted = set(signature.user_outputs)
                for candidate in node.args[0]:
                    if isinstance(candidate, fx.Node) and candidate.name in wanted:
                        result = candidate
                new = self.graph.output(self._value(result))
                new.meta["where"] = ""
            else:
                self._call(node)
        drop_unused(self.graph)
        for name in list(self.tensors):
            if not any(node.op == "get_attr" and node.target == name for node in self.graph.nodes):
                del self.tensors[name]
        used = {str(node.target) for node in self.graph.nodes if node.op == "call_module"}
        self.modules = {name: module for name, module in self.modules.items() if name in used}
        self.graph.lint()
        return Template(self.graph, self.modules, self.tensors, self.saved & set(self.tensors), self.batch)

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> None:
        if any(source in self.fed for source in node.all_input_nodes):
            self.fed.add(node)
        name = op_name(node)
        if name in _NOTHING:
            if node.args and isinstance(node.args[0], fx.Node):
                self.env[node] = self._value(node.args[0])
            return
        if "assert" in str(node.target) or node.meta.get("val", 0) is None:
            return
        if name.endswith("_") and not name.startswith("_"):
            self._in_place(node, name)
            return
        if self._layer(node, name) or self._shape_only(node, name):
            return
        if node.target is operator.getitem and isinstance(self.env.get(node.args[0]), list):
            self.env[node] = self.env[node.args[0]][node.args[1]]
            return
        self._copy(node, node.target)

    def _copy(self, node: fx.Node, target: Any) -> fx.Node:
        args = fx.map_arg(node.args, self._value)
        kwargs = fx.map_arg(dict(node.kwargs), self._value)
        new = self._new(node, self.graph.call_function(target, args, kwargs))
        self.env[node] = new
        return new

    def _value(self, node: fx.Node) -> Any:
        """The new node for an old one; parameters are fetched where they are first used outside of a layer."""
        if node in self.env:
            return self.env[node]
        name = self.leaf[node]
        self.tensors[name] = self.held[name]
        if name in self.persistent:
            self.saved.add(name)
        first = next(iter(self.graph.nodes))
        with self.graph.inserting_before(first):
            new = self.graph.get_attr(name)
        new.meta.update(shape=tuple(self.held[name].shape), dtype=self.held[name].dtype, batched=False, where=name)
        self.env[node] = new
        return new

    def _new(self, old: fx.Node, new: fx.Node) -> fx.Node:
        stack = [name for name, _ in old.meta.get("nn_module_stack", {}).values()]
        where = stack[-1] if stack and not stack[-1].startswith("_empty") else ""
        new.meta["where"] = where.split("@")[0]
        new.meta["fed"] = old in self.fed
        value = old.meta.get("val")
        if isinstance(value, torch.Tensor):
            new.meta.update(
                shape=tuple(_hint(size) for size in value.shape), dtype=value.dtype, batched=self._batched(old)
            )
        elif isinstance(value, list | tuple):
            new.meta["items"] = [
                tuple(_hint(size) for size in item.shape) if isinstance(item, torch.Tensor) else None for item in value
            ]
        return new

    def _batched(self, node: fx.Node, value: torch.Tensor | None = None) -> bool:
        """Whether dimension 0 is the batch and no other dimension depends on it."""
        tensor = node.meta["val"] if value is None else value
        if node not in self.fed or tensor.ndim == 0:
            return False
        if self.batch_symbol is None:
            return bool(tensor.shape[0] == self.batch)
        first, *others = tensor.shape
        return (
            not isinstance(first, int)
            and first.node.expr == self.batch_symbol
            and all(isinstance(size, int) for size in others)
        )

    def _submodule(self, node: fx.Node) -> None:
        """Subgraphs of higher-order operators, copied as they are."""
        value = operator.attrgetter(str(node.target))(self.program.graph_module)
        self.tensors[str(node.target)] = value
        new = self.graph.get_attr(str(node.target))
        new.meta["where"] = str(node.target)
        self.env[node] = new

    def _in_place(self, node: fx.Node, name: str) -> None:
        """`relu_` becomes `relu`; what was changed stands for the result from here on."""
        packet = getattr(aten, name[:-1], None)
        overload = node.target._overloadname  # type: ignore[union-attr]
        changed = node.args[0]
        if packet is None or overload not in packet.overloads() or not isinstance(changed, fx.Node):
            raise InputError(f"the in-place operator {name!r}{self._place(node)} has no functional form; replace it")
        for other in self.aliases[changed]:
            stale = other is not changed and self.env.get(other) is not self.env.get(changed)
            if stale and self.order[other] < self.order[node] and self._used_after(other, node):
                raise InputError(
                    f"the in-place operator {name!r}{self._place(node)} changes a tensor of which another view is "
                    "used again; write it without in-place"
                )
        before = self.env.get(changed)
        functional = getattr(packet, overload)
        if name == "dropout_" or name[:-1] in _DROPOUTS:
            self._dropout(node, name[:-1])
        else:
            self._copy(node, functional)
        for other in self.aliases[changed]:
            if other is changed or (before is not None and self.env.get(other) is before):
                self.env[other] = self.env[node]

    def _used_after(self, node: fx.Node, moment: fx.Node) -> bool:
        return any(self.order[user] > self.order[moment] for user in node.users)

    def _place(self, node: fx.Node) -> str:
        stack = [name for name, _ in node.meta.get("nn_module_stack", {}).values()]
        return f" in {stack[-1]!r}" if stack and stack[-1] else ""

    # -- layers ----------------------------------------------------------------------------------------------------

    def _layer(self, node: fx.Node, name: str) -> bool:
        if name in _DROPOUTS:
            return self._dropout(node, name)
        if name not in _LAYERS and name != "batch_norm":
            return False
        found = arguments(node)
        prefix = self._prefix(found)
        if prefix is None:
            return False
        module = self._batch_norm(prefix, found) if name == "batch_norm" else self._weighted(name, found)
        known = self.modules.setdefault(prefix, module)
        if known is not module and (type(known) is not type(module) or repr(known) != repr(module)):
            return False
        source = self._value(found["input"])
        self.env[node] = self._new(node, self.graph.call_module(prefix, (source,)))
        return True

    def _prefix(self, found: dict[str, Any]) -> str | None:
        """Qualified name of the module that holds exactly these tensors under their usual names."""
        prefix = None
        for key in ("weight", "bias", "running_mean", "running_var"):
            node = found.get(key)
            if node is None:
                continue
            head, _, tail = self.leaf.get(node, "").rpartition(".")
            if tail != key or not head or (prefix is not None and head != prefix):
                return None
            prefix = head
        return prefix

    def _held(self, node: fx.Node | None) -> torch.Tensor | None:
        return None if node is None else self.held[self.leaf[node]]

    def _weighted(self, name: str, found: dict[str, Any]) -> nn.Module:
        weight, bias = self._held(found["weight"]), self._held(found["bias"])
        assert weight is not None
        options: dict[str, Any] = {"bias": bias is not None, "device": "meta"}
        outputs, inputs, *kernel = weight.shape
        if name != "linear":
            groups = found["groups"]
            inputs *= groups
            padding = found["padding"]
            options.update(
                kernel_size=tuple(kernel),
                stride=_tuple(found["stride"], len(kernel)),
                padding=padding if isinstance(padding, str) else _tuple(padding, len(kernel)),
                dilation=_tuple(found["dilation"], len(kernel)),
                groups=groups,
            )
        module = _LAYERS[name](inputs, outputs, **options)
        module._parameters["weight"] = weight  # type: ignore[assignment]
        module._parameters["bias"] = bias  # type: ignore[assignment]
        return module.eval()

    def _batch_norm(self, prefix: str, found: dict[str, Any]) -> nn.Module:
        kept = {key: self._held(found[key]) for key in ("weight", "bias", "running_mean", "running_var")}
        source = found["input"].meta["val"]
        original = self.model.get_submodule(prefix)
        module = _BATCH_NORMS[source.ndim](
            source.shape[1],
            eps=found["eps"],
            momentum=getattr(original, "momentum", found["momentum"]),
            affine=kept["weight"] is not None,
            track_running_stats=kept["running_mean"] is not None,
            device="meta",
        )
        module._parameters.update(weight=kept["weight"], bias=kept["bias"])  # type: ignore[arg-type]
        module._buffers.update(running_mean=kept["running_mean"], running_var=kept["running_var"])
        if module._buffers.get("num_batches_tracked") is not None:
            tracked = self.held.get(f"{prefix}.num_batches_tracked", torch.tensor(0))
            module._buffers["num_batches_tracked"] = tracked
        return module.eval()

    def _dropout(self, node: fx.Node, name: str) -> bool:
        p, training = node.args[1:3]
        if training:  # dropout at inference, wanted by the author: left as it is
            return False
        stack = [owner for owner, _ in node.meta.get("nn_module_stack", {}).values()]
        prefix = stack[-1].split("@")[0] if stack else ""
        original = self.model.get_submodule(prefix) if prefix else None
        if original is None or next(original.children(), None) or not type(original).__name__.endswith("Dropout"):
            prefix = node.name
            while hasattr(self.model, prefix):
                prefix += "_"
        self.modules.setdefault(prefix, _DROPOUTS[name](p).eval())
        self.env[node] = self._new(node, self.graph.call_module(prefix, (self._value(node.args[0]),)))
        return True

    # -- operators that only move or reshape -----------------------------------------------------------------------

    def _shape_only(self, node: fx.Node, name: str) -> bool:
        if name in _SPLITS or name == "unbind":
            return self._split(node, name)
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return False
        source = node.args[0] if node.args else None
        batched = self._batched(node)
        fixed = all(isinstance(size, int) for size in value.shape)
        if not isinstance(source, fx.Node) or not (batched or (fixed and node not in self.fed)):
            return False
        sizes = [-1 if batched else _hint(value.shape[0]), *value.shape[1:]] if value.ndim else []
        if name in _RESHAPES:
            self._emit(node, aten.reshape.default, source, sizes)
        elif name in ("expand", "expand_as") and batched and value.ndim == source.meta["val"].ndim:
            self._emit(node, aten.expand.default, source, sizes)
        elif name == "slice":
            found = arguments(node)
            dim = found["dim"] % value.ndim
            size = _hint(source.meta["val"].shape[dim])
            if dim == 0 and batched:
                if found["start"] in (None, 0) and found["step"] == 1 and value.shape[0] == source.meta["val"].shape[0]:
                    self.env[node] = self._value(source)
                    return True
                return False
            start, end = _bound(found["start"], size, 0), _bound(found["end"], size, size)
            if (start, end, found["step"]) == (0, size, 1):
                self.env[node] = self._value(source)
            else:
                self._emit(node, aten.slice.Tensor, source, dim, start, end, found["step"])
        elif name == "narrow":
            found = arguments(node)
            dim = found["dim"] % value.ndim
            start = _bound(found["start"], _hint(source.meta["val"].shape[dim]), 0)
            self._emit(node, aten.slice.Tensor, source, dim, start, start + found["length"], 1)
        else:
            return False
        return True

    def _emit(self, node: fx.Node, target: Any, source: fx.Node, *rest: Any) -> None:
        self.env[node] = self._new(node, self.graph.call_function(target, (self._value(source), *rest)))

    def _split(self, node: fx.Node, name: str) -> bool:
        source, values = node.args[0], node.meta["val"]
        found = arguments(node)
        total = source.meta["val"]  # type: ignore[union-attr]
        dim = found.get("dim", 0) % total.ndim
        if dim == 0 and (node in self.fed):
            return False
        parts: list[fx.Node] = []
        start = 0
        for index, value in enumerate(values):
            if name == "unbind":
                part = self.graph.call_function(aten.select.int, (self._value(source), dim, index))  # type: ignore[arg-type]
            else:
                end = start + value.shape[dim]
                part = self.graph.call_function(aten.slice.Tensor, (self._value(source), dim, start, end, 1))  # type: ignore[arg-type]
                start = end
            self._new(node, part)
            part.meta.pop("items", None)
            part.meta.update(
                shape=tuple(_hint(size) for size in value.shape), dtype=value.dtype, batched=self._batched(node, value)
            )
            parts.append(part)
        self.env[node] = parts
        return True


def _aliases(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Nodes that may share memory with each node."""
    classes: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        sources: list[fx.Node] = []
        if node.target is operator.getitem:
            sources = [node.args[0]]  # type: ignore[list-item]
        elif isinstance(node.target, torch._ops.OpOverload) and node.args and isinstance(node.args[0], fx.Node):
            returns = node.target._schema.returns
            if any(result.alias_info is not None for result in returns) or op_name(node) in _MAY_ALIAS:
                sources = [node.args[0]]
        group = classes[sources[0]] if sources else []
        group.append(node)
        classes[node] = group
    return classes


def _hint(size: Any) -> int:
    """A size as a number, the batch dimension's as in the trace."""
    return size if isinstance(size, int) else int(size.node.hint)


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    """An ATen size argument, which may hold one number for all dimensions."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * length if len(values) == 1 else values


def _bound(value: Any, size: int, default: int) -> int:
    """A slice's bound as Python reads it."""
    if value is None:
        return default
    return max(0, min(size, value + size if value < 0 else value))
