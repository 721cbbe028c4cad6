"""From an exported program to a `Template`.

- convolution, linear, batch norm, dropout and recurrent layers become `call_module` nodes under their original
  qualified names;
- in-place operators become functional ones;
- split, chunk and unbind become slices and selections; view, squeeze and unflatten become `reshape(x, [-1, ...])`, so
  that any batch size works.
"""

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from search_spaces.errors import InputError
from search_spaces.exported import aliases, bound, expressions, hint, hints, owner
from search_spaces.layer_calls import LAYERS, TENSORS, read_batch_norm, read_layer
from search_spaces.recurrent import OPERATORS, read_call
from search_spaces.template import Template, arguments, drop_unused, op_name

aten = torch.ops.aten

_DROPOUTS = {
    "dropout": nn.Dropout,
    "feature_dropout": nn.Dropout2d,
    "alpha_dropout": nn.AlphaDropout,
    "feature_alpha_dropout": nn.FeatureAlphaDropout,
}
_FUNCTIONAL_BATCH_NORM = "_native_batch_norm_legit_no_training"
_RESHAPES = {"view", "reshape", "_unsafe_view", "unflatten", "squeeze", "view_as", "reshape_as"}
_SPLITS = {"split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk", "unsafe_split", "unbind"}
_ZEROS = {"zeros", "new_zeros", "zeros_like"}
_NOTHING = {"detach", "alias", "lift_fresh_copy", "lift_fresh", "lift", "_assert_tensor_metadata"}


class AliasedChangeError(InputError):
    """An in-place operator changes a tensor of which another view is used later."""


def normalise(model: nn.Module, program: ExportedProgram) -> Template:
    """The normal form of an exported model; the template holds the model's own tensors.

    Raises:
        AliasedChangeError: see there.
        InputError: an in-place operator without a functional form.
    """
    return _Normaliser(model, program).run()


@dataclass
class _Normaliser:
    """Copies an exported graph node by node."""

    model: nn.Module
    program: ExportedProgram
    graph: fx.Graph = field(default_factory=fx.Graph)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    tensors: dict[str, Tensor | nn.Module] = field(default_factory=dict)
    env: dict[fx.Node, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        signature = self.program.graph_signature
        nodes = list(self.program.graph.nodes)
        held: dict[str, Tensor] = {name: t for name, t in self.program.constants.items() if isinstance(t, Tensor)}
        held.update(self.model.named_buffers(remove_duplicate=False))
        held.update(self.model.named_parameters(remove_duplicate=False))
        self.held = held
        self.saved = set(self.model.state_dict())
        first_name: dict[int, str] = {}
        for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
            first_name.setdefault(id(tensor), name)
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        # a tensor that several modules share goes by its first name
        self.leaf = {
            node: first_name.get(id(held[names[node.name]]), names[node.name])
            for node in nodes
            if node.op == "placeholder" and node.name in names
        }
        self.order = {node: index for index, node in enumerate(nodes)}
        self.aliases = aliases(nodes)
        inputs = [node for node in nodes if node.op == "placeholder" and node.name in signature.user_inputs]
        batch = inputs[0].meta["val"].shape[0]
        self.batch = hint(batch)
        self.batch_symbol = None if isinstance(batch, int) else batch.node.expr
        self.fed = set(inputs)
        self.outputs = set(signature.user_outputs)

    def run(self) -> Template:
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                if node in self.fed:
                    self.env[node] = self._describe(node, self.graph.placeholder("x"))
            elif node.op == "get_attr":
                self._subgraph(node)
            elif node.op == "output":
                result = next(value for value in node.args[0] if value.name in self.outputs)
                self.graph.output(self._value(result)).meta["where"] = ""
            else:
                self._call(node)
        drop_unused(self.graph)
        called = {str(node.target) for node in self.graph.nodes if node.op == "call_module"}
        fetched = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        return Template(
            graph=self.graph,
            modules={name: module for name, module in self.modules.items() if name in called},
            tensors={name: value for name, value in self.tensors.items() if name in fetched},
            saved=self.saved & fetched,
            batch=self.batch,
            any_batch=self.batch_symbol is not None,
            batch_symbol=self.batch_symbol,
        )

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> None:
        if any(source in self.fed for source in node.all_input_nodes):
            self.fed.add(node)
        name = op_name(node)
        if name in _NOTHING:
            self.env[node] = self._value(node.all_input_nodes[0])
        elif "_assert" in str(node.target) or not node.users:
            if name.endswith("_") and not name.startswith("_"):
                self._in_place(node, name)
        elif name.endswith("_") and not name.startswith("_"):
            self._in_place(node, name)
        elif name in _DROPOUTS:
            self._dropout(node, name)
        elif node.target is operator.getitem and isinstance(self.env.get(node.all_input_nodes[0]), list):
            self.env[node] = self.env[node.all_input_nodes[0]][node.args[1]]
        elif not (
            self._layer(node, name)
            or self._recurrent(node, name)
            or self._split(node, name)
            or self._resize(node, name)
        ):
            self._copy(node, node.target)

    def _value(self, node: fx.Node) -> Any:
        """The new node for an old one; a free parameter is fetched where it is first used."""
        if node not in self.env:
            name = self.leaf[node]
            self.tensors[name] = self.held[name]
            with self.graph.inserting_before(next(iter(self.graph.nodes))):
                new = self.graph.get_attr(name)
            shape = tuple(self.held[name].shape)
            new.meta.update(shape=shape, sizes=shape, dtype=self.held[name].dtype, batched=False)
            new.meta.update(where=name, fed=False)
            self.env[node] = new
        return self.env[node]

    def _copy(self, node: fx.Node, target: Any) -> None:
        args = fx.map_arg(node.args, self._value)
        kwargs = fx.map_arg(dict(node.kwargs), self._value)
        self.env[node] = self._function(node, target, args, kwargs)

    def _function(self, old: fx.Node, target: Any, args: Any, kwargs: Any = None) -> fx.Node:
        new = self.graph.create_node("call_function", target, args, kwargs or {}, name=old.name.rstrip("_"))
        return self._describe(old, new)

    def _describe(self, old: fx.Node, new: fx.Node) -> fx.Node:
        new.meta.update(where=owner(old), fed=old in self.fed)
        value = old.meta.get("val")
        if isinstance(value, Tensor):
            self._shape(old, new, value)
        elif isinstance(value, list | tuple):
            new.meta["items"] = [hints(item) if isinstance(item, Tensor) else None for item in value]
        return new

    def _shape(self, old: fx.Node, new: fx.Node, value: Tensor) -> None:
        axis = self._batch_axis(old, value)
        new.meta.update(shape=hints(value), sizes=expressions(value), dtype=value.dtype)
        new.meta.update(batch_axis=axis, batched=axis == 0)

    def _batch_axis(self, node: fx.Node, value: Tensor) -> int | None:
        """The dimension that is the batch, where no other dimension depends on it. In a network of a fixed batch size
        it can only be told for the first one."""
        if node not in self.fed or value.ndim == 0:
            return None
        if self.batch_symbol is None:
            return 0 if value.shape[0] == self.batch else None
        sizes = expressions(value)
        symbolic = [axis for axis, size in enumerate(sizes) if not isinstance(size, int)]
        return symbolic[0] if len(symbolic) == 1 and sizes[symbolic[0]] == self.batch_symbol else None

    def _subgraph(self, node: fx.Node) -> None:
        """Of a higher-order operator: copied as it is."""
        name = str(node.target)
        self.tensors[name] = operator.attrgetter(name)(self.program.graph_module)
        self.env[node] = self.graph.get_attr(name)
        self.env[node].meta.update(where=name, fed=False)

    # -- in-place operators ----------------------------------------------------------------------------------------

    def _in_place(self, node: fx.Node, name: str) -> None:
        """`relu_` becomes `relu`, and what it changed stands for its result from here on."""
        packet = getattr(aten, name[:-1], None)
        overload = node.target._overloadname  # type: ignore[union-attr]
        changed = node.all_input_nodes[0]
        place = f" in {owner(node)!r}" if owner(node) else ""
        if packet is None or overload not in packet.overloads():
            raise InputError(f"the in-place operator {name!r}{place} has no functional form; write it without in-place")
        before = self._value(changed)
        same = [other for other in self.aliases[changed] if self.env.get(other) is before]
        for other in self.aliases[changed]:
            if other not in same and self.order[other] < self.order[node] and self._used_after(other, node):
                raise AliasedChangeError(
                    f"the in-place operator {name!r}{place} changes a tensor of which another view is used again; "
                    "write it without in-place"
                )
        if name[:-1] in _DROPOUTS:
            self._dropout(node, name[:-1])
        else:
            self._copy(node, getattr(packet, overload))
        for other in same:
            self.env[other] = self.env[node]

    def _used_after(self, node: fx.Node, moment: fx.Node) -> bool:
        return any(self.order[user] > self.order[moment] for user in node.users)

    # -- layers ----------------------------------------------------------------------------------------------------

    def _layer(self, node: fx.Node, name: str) -> bool:
        if name not in LAYERS and name not in ("batch_norm", _FUNCTIONAL_BATCH_NORM):
            return False
        found = arguments(node)
        prefix = self._prefix(found)
        if prefix is None:
            return False
        tensors = {key: self._held(found.get(key)) for key in TENSORS}
        if name in LAYERS:
            module = read_layer(name, found, tensors)
        else:
            found["momentum"] = getattr(self.model.get_submodule(prefix), "momentum", found["momentum"])
            tensors["num_batches_tracked"] = self.held.get(f"{prefix}.num_batches_tracked", torch.tensor(0))
            module = read_batch_norm(found, tensors)
        known = self.modules.setdefault(prefix, module)
        if known is not module and repr(known) != repr(module):  # one weight, used in two ways
            return False
        new = self._describe(node, self.graph.call_module(prefix, (self._value(found["input"]),)))
        self.env[node] = new
        if name == _FUNCTIONAL_BATCH_NORM:
            new.meta.pop("items")
            self._shape(node, new, node.meta["val"][0])
            self.env[node] = [new]
        return True

    def _prefix(self, found: dict[str, Any]) -> str | None:
        """Qualified name of the module that holds exactly these tensors under their usual names."""
        prefix = None
        for key in TENSORS:
            node = found.get(key)
            if node is None:
                continue
            head, _, tail = self.leaf.get(node, "").rpartition(".")
            if tail != key or not head or (prefix is not None and head != prefix):
                return None
            prefix = head
        return prefix

    def _held(self, node: fx.Node | None) -> Any:
        return None if node is None else self.held[self.leaf[node]]

    def _recurrent(self, node: fx.Node, name: str) -> bool:
        """A module that is called as its author did, on the sequence alone where it starts from zeros."""
        found = arguments(node)
        if name not in OPERATORS or "input" not in found:  # of packed sequences
            return False
        names = [self.leaf.get(leaf, "") for leaf in found["params"]]
        prefix = names[0].rpartition(".")[0]
        if not prefix or any(full.rpartition(".")[0] != prefix for full in names):
            return False
        module = read_call(name, found, {full.rpartition(".")[2]: self.held[full] for full in names})
        if module is None or repr(self.modules.setdefault(prefix, module)) != repr(module):
            return False
        given = found["hx"] if isinstance(found["hx"], list | tuple) else [found["hx"]]
        called: list[Any] = [self._value(found["input"])]
        if not all(op_name(state) in _ZEROS for state in given):
            states = tuple(self._value(state) for state in given)
            called.append(states if name == "lstm" else states[0])
        new = self._describe(node, self.graph.call_module(prefix, tuple(called)))
        sequence, *states = node.meta["val"]
        parts, held = [self._item(node, new, 0, sequence)], self._item(node, new, 1, states)
        if name == "lstm":
            parts += [self._item(node, held, index, state) for index, state in enumerate(states)]
        self.env[node] = parts if name == "lstm" else [*parts, held]
        return True

    def _item(self, old: fx.Node, source: fx.Node, index: int, value: Any) -> fx.Node:
        """One of several results: a tensor, or a tuple of them."""
        new = self.graph.call_function(operator.getitem, (source, index))
        new.meta.update(where=owner(old), fed=True)
        tensors = value if isinstance(value, list) else [value]
        if len(tensors) > 1:
            new.meta["items"] = [hints(tensor) for tensor in tensors]
        else:
            self._shape(old, new, tensors[0])
        return new

    def _dropout(self, node: fx.Node, name: str) -> None:
        found = arguments(node)
        if found["train"]:  # dropout at inference too, as its author wants it
            self._copy(node, getattr(aten, name).default)
            return
        prefix = owner(node)
        original = self.model.get_submodule(prefix) if prefix else None
        if original is None or "Dropout" not in type(original).__name__ or list(original.children()):
            prefix = node.name.rstrip("_")
            while hasattr(self.model, prefix):
                prefix += "_"
        self.modules.setdefault(prefix, _DROPOUTS[name](found["p"]).eval())
        source = self._value(node.all_input_nodes[0])
        self.env[node] = self._describe(node, self.graph.call_module(prefix, (source,)))

    # -- operators that only move or reshape -----------------------------------------------------------------------

    def _resize(self, node: fx.Node, name: str) -> bool:
        """Sizes without the batch's, bounds as plain numbers."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not node.all_input_nodes:
            return False
        source = node.all_input_nodes[0]
        given = source.meta.get("val")
        if not isinstance(given, Tensor):
            return False
        axis = self._batch_axis(node, value)
        batched = axis is not None and self._batch_axis(source, given) is not None
        if not batched and (node in self.fed or not all(isinstance(size, int) for size in value.shape)):
            return False
        sizes = list(hints(value))
        if axis is not None and batched:
            sizes[axis] = -1
        if name in _RESHAPES:
            self._emit(node, aten.reshape.default, source, sizes)
        elif name in ("expand", "expand_as") and (value.ndim == given.ndim or not batched):
            self._emit(node, aten.expand.default, source, sizes)
        elif name in ("slice", "narrow"):
            found = arguments(node)
            dim = found["dim"] % value.ndim
            size = hint(given.shape[dim])
            start, step = bound(found["start"], size, 0), found.get("step", 1)
            end = start + found["length"] if name == "narrow" else bound(found["end"], size, size)
            if (start, end, step) == (0, size, 1):
                self.env[node] = self._value(source)
            elif dim == axis and batched:
                return False
            else:
                self._emit(node, aten.slice.Tensor, source, dim, start, end, step)
        else:
            return False
        return True

    def _emit(self, node: fx.Node, target: Any, source: fx.Node, *rest: Any) -> None:
        self.env[node] = self._function(node, target, (self._value(source), *rest))

    def _split(self, node: fx.Node, name: str) -> bool:
        if name not in _SPLITS:
            return False
        source = node.all_input_nodes[0]
        dim = arguments(node).get("dim", 0) % source.meta["val"].ndim
        if node in self.fed and dim == (self._batch_axis(source, source.meta["val"]) or 0):
            return False
        parts: list[fx.Node] = []
        start = 0
        for index, value in enumerate(node.meta["val"]):
            if name == "unbind":
                part = self._function(node, aten.select.int, (self._value(source), dim, index))
            else:
                end = start + value.shape[dim]
                part = self._function(node, aten.slice.Tensor, (self._value(source), dim, start, end, 1))
                start = end
            part.meta.pop("items")
            self._shape(node, part, value)
            parts.append(part)
        self.env[node] = parts
        return True
