"""Which channels can only be removed together: label tensors propagated through a network.

Every layer that makes channels gives each of them a fresh label. A label tensor has the shape of an activation and
holds, at every position, the label of the channel that stands there. Operators that move things (reshape, transpose,
slice, concatenate, pad) are run on the label tensors as they are, so shuffles, slices and option-A shortcuts need no
rule of their own; where tensors meet element by element, the labels that meet are linked. What is linked belongs to
one unit. An operator that is not understood freezes the labels it touches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx, nn

from search_spaces import label_rules
from search_spaces.label_tensors import channel_vector, first_entries, unrepeated, varies
from search_spaces.operator_rules import rule_of
from search_spaces.recurrent import Recurrent
from search_spaces.template import BatchNorm, Template, Weighted, op_name, source_of, weight_nodes

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class LayerLabels:
    """Labels of a layer's weight tensor: of each input and each output channel."""

    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True)
class Units:
    """What the labels of a network amount to.

    Attributes:
        of_label: [labels] the unit of each label.
        made: [units] whether a layer makes channels of the unit; one of constants alone always stays.
        frozen: unit that a layer makes -> the reason why it has to stay.
        tied: unit -> why several of its channels are one unit, where an operator says so.
    """

    of_label: IntArray
    made: npt.NDArray[np.bool_]
    frozen: dict[int, str]
    tied: dict[int, str]


@dataclass
class LabelPropagation:
    """Runs a template on label tensors.

    Attributes:
        values: the label tensor of each node, batch dimension first where it has one (stride 0); a list for a node
            with several outputs, None for one that gives no tensor.
        layers: labels of the convolutions, linear layers and matrices of recurrent layers, by name, in execution order.
        carriers: labels of the batch norms, by name.
        hidden: labels of the hidden units of recurrent layers and of the state that they hand on, by name.
    """

    template: Template
    values: dict[fx.Node, Any] = field(default_factory=dict)
    layers: dict[str, LayerLabels] = field(default_factory=dict)
    carriers: dict[str, Tensor] = field(default_factory=dict)
    hidden: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _count: int = 0
    _links: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _frozen: list[tuple[Tensor, str]] = field(default_factory=list)
    _tied: list[tuple[Tensor, str]] = field(default_factory=list)

    def run(self) -> "LabelPropagation":
        """Propagate from the input to the output."""
        weights = weight_nodes(self.template.graph)
        for node in self.template.graph.nodes:
            if node in weights:
                self.values[node] = self._opaque(node, op_name(node))
            elif node.op == "placeholder":
                labels = self.along(self.fresh(node.meta["shape"][1]), 1, node.meta["shape"])
                self.freeze(labels, "they are the network's input")
                self.values[node] = labels
            elif node.op == "get_attr":
                self.values[node] = self._leaf(node)
            elif node.op == "call_module":
                self.values[node] = self._module(node)
            elif node.op == "output":
                self.freeze(self.values[source_of(node)], "they are the network's output")
            else:
                self.values[node] = self._operator(node)
        return self

    def units(self) -> Units:
        """Connected labels, and which of them are frozen."""
        pairs = [torch.stack([a, b]) for a, b in self._links if a.numel()]
        edges = torch.cat(pairs, dim=1).numpy() if pairs else np.zeros((2, 0), dtype=np.int64)
        matrix = coo_array((np.ones(edges.shape[1], dtype=np.int8), (edges[0], edges[1])), (self._count, self._count))
        count, unit = connected_components(matrix, directed=False)
        of_label = unit.astype(np.int64)
        made = np.zeros(count, dtype=bool)
        for layer in self.layers.values():
            made[of_label[layer.outputs.numpy()]] = True
        said: list[dict[int, str]] = []
        for reasons in (self._frozen, self._tied):
            said.append({})
            for labels, reason in reasons:
                touched = np.unique(of_label[labels.numpy()])
                for index in touched[made[touched]].tolist():
                    said[-1].setdefault(index, reason)
        return Units(of_label, made, *said)

    # -- labels ----------------------------------------------------------------------------------------------------

    def fresh(self, number: int) -> Tensor:
        """New labels, one for each channel."""
        labels = torch.arange(self._count, self._count + number)
        self._count += number
        return labels

    def link(self, first: Tensor, second: Tensor) -> None:
        """Entries that meet can only be removed together."""
        self._links.append((first.reshape(-1), second.reshape(-1)))

    def freeze(self, labels: Any, reason: str) -> None:
        """These channels have to stay."""
        for tensor in labels if isinstance(labels, list) else [labels]:
            if isinstance(tensor, Tensor) and tensor.numel():
                self._frozen.append((torch.unique(unrepeated(tensor)), reason))

    def tie(self, labels: Tensor, axes: Sequence[int], reason: str) -> None:
        """Entries that differ along these axes alone can only be removed together."""
        line = first_entries(labels, [axis for axis in range(labels.ndim) if not varies(labels, axis)])
        head = first_entries(line, axes)
        if head.numel() < line.numel():
            self.link(head.expand_as(line), line)
            self._tied.append((torch.unique(head), reason))

    def add_layer(self, name: str, inputs: Tensor, outputs: Tensor) -> None:
        """A layer's labels; where it is called again, linked with those of the first call."""
        known = self.layers.setdefault(name, LayerLabels(inputs, outputs))
        if known.inputs is not inputs:
            self.link(known.inputs, inputs)
        if known.outputs is not outputs:
            self.link(known.outputs, outputs)

    @staticmethod
    def along(labels: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
        """Labels along one axis of a tensor, the same at all positions of the others."""
        sizes = [1] * len(shape)
        sizes[axis] = -1
        return labels.reshape(sizes).expand(tuple(shape))

    # -- nodes -----------------------------------------------------------------------------------------------------

    def _leaf(self, node: fx.Node) -> Tensor | None:
        """A parameter or constant: each entry may go where what it meets goes."""
        shape = node.meta.get("shape")
        return None if shape is None else self.fresh(int(np.prod(shape))).reshape(shape)

    def read(self, node: fx.Node, name: str, axis: int, width: int, batch_axis: int | None) -> Tensor:
        """[width] the labels that a layer reads along an axis of its input, whose batch has to lie where it expects it
        (None: along any other axis); else they are frozen, and fresh ones stand for them."""
        source, batch = self.values[source_of(node)], source_of(node).meta["batch_axis"]
        labels = channel_vector(source, axis) if source.ndim > axis else None
        if labels is None or batch in (None, axis) or batch_axis not in (None, batch):
            self.freeze(source, f"layer {name!r} reads them along another axis")
            labels = self.fresh(width)
            self.freeze(labels, f"layer {name!r} reads them along another axis")
        return labels

    def _module(self, node: fx.Node) -> Tensor | list[Any]:
        name = str(node.target)
        module = self.template.modules[name]
        source: Tensor = self.values[source_of(node)]
        if isinstance(module, BatchNorm):
            return self._batch_norm(node, name, source)
        if isinstance(module, Recurrent):
            return label_rules.recurrent(self, node, name, module)
        if not isinstance(module, Weighted):
            return source
        linear = isinstance(module, nn.Linear)
        axis = source.ndim - 1 if linear else 1
        groups = module.groups if not isinstance(module, nn.Linear) else 1
        width = module.weight.shape[1] * groups
        inputs = self.read(node, name, axis, width, batch_axis=None if linear else 0)
        known = self.layers.get(name)
        if groups == width and groups > 1:  # depthwise: hands its channels on
            outputs = inputs.repeat_interleave(module.weight.shape[0] // width)
        else:
            outputs = known.outputs if known else self.fresh(module.weight.shape[0])
            for side in (inputs, outputs) if groups > 1 else ():
                rows = side.reshape(groups, -1)
                self.link(rows[:1].expand_as(rows), rows)
        self.add_layer(name, inputs, outputs)
        return self.along(outputs, axis, node.meta["shape"])

    def _batch_norm(self, node: fx.Node, name: str, source: Tensor) -> Tensor:
        labels = channel_vector(source, 1)
        if labels is None or not node.meta["batched"]:
            return self._opaque(node, "batch_norm")  # type: ignore[no-any-return]
        known = self.carriers.setdefault(name, labels)
        if known is not labels:
            self.link(known, labels)
        return source

    def _operator(self, node: fx.Node) -> Any:
        name = op_name(node)
        if "items" not in node.meta and "shape" not in node.meta:
            return None
        sources = [self.values[source] for source in node.all_input_nodes]
        if not name and isinstance(sources[0], list) and len(sources) == 1:
            return sources[0][node.args[1]]  # type: ignore[index]
        rule = rule_of(node)
        known = node.meta.get("batch_axis") is not None or not node.meta["fed"]
        read = sources[:1] if name == "expand" else sources  # not the size that it expands to
        if rule is None or not known or not read or not all(isinstance(source, Tensor) for source in read):
            return self._opaque(node, name or str(node.target))
        result = rule(self, node)
        return self._opaque(node, name) if result is None else result

    def _opaque(self, node: fx.Node, name: str) -> Any:
        """An operator that is not understood: what it reads and what it gives has to stay."""
        where = node.meta.get("where")
        reason = f"operator {name!r}" + (f" in {where!r}" if where else "") + " needs them all"
        for source in node.all_input_nodes:
            self.freeze(self.values[source], reason)
        label = self.fresh(1)
        self.freeze(label, reason)
        if "items" in node.meta:
            return [None if shape is None else label.expand(shape) for shape in node.meta["items"]]
        shape = node.meta["shape"]
        return label.reshape([1] * len(shape)).expand(shape)

    def meet(self, sources: Sequence[Tensor]) -> Tensor:
        """Tensors that are combined entry by entry: link the labels that meet.

        Where a tensor of one channel is broadcast over many (a spatial mask), its channel has to stay, but binds
        nobody.
        """
        if len(sources) == 1:
            return sources[0]
        shape = np.broadcast_shapes(*(tuple(source.shape) for source in sources))
        aligned = [source.reshape([1] * (len(shape) - source.ndim) + list(source.shape)) for source in sources]
        varying = [[varies(source, axis) for axis in range(len(shape))] for source in aligned]
        bound = []
        for source, own in zip(aligned, varying, strict=True):
            broadcast = any(
                source.shape[axis] == 1 and size > 1 and any(other[axis] for other in varying)
                for axis, size in enumerate(shape)
            )
            if broadcast:
                self.freeze(source, "they are broadcast over other channels")
            else:
                bound.append((sum(own), source.expand(shape)))
        if not bound:
            label = self.fresh(1)
            self.freeze(label, "they are broadcast over other channels")
            return label.reshape([1] * len(shape)).expand(shape)
        bound.sort(key=lambda item: item[0])
        kept = [source for _, source in bound]
        still = [axis for axis in range(len(shape)) if all(source.stride(axis) == 0 for source in kept)]
        lines = [first_entries(source, still) for source in kept]
        for other in lines[1:]:
            self.link(lines[0], other)
        return kept[0]
