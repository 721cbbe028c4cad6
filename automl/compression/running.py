"""Runs a network on images, from the last value on that a network before it computed as well.

Every value in a network has a digest: of the operator that gives it, of that operator's tensors, and of the digests of
what it reads (a Merkle tree). Networks whose digests agree somewhere compute the same value there, so it is taken from
where it is held, and nothing before it is run. What a policy does to which layer need not be known for that, and what
was held is bit for bit what would have been computed.

Values are held where nothing else is needed to go on from them: behind a residual block, not within.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter, methodcaller
from typing import Any

import torch
from torch import Tensor, fx, nn

from automl.compression.held import Held
from automl.compression.inference import folds
from automl.compression.quantisation.activations import ActivationQuantiser
from search_spaces.recurrent import shell

BATCH = 64
"""Images a forward pass: the activations of a small network then stay in the cache (the fastest of 8 to 357 tried)."""

HELD_BYTES = 2**28
"""Of activations, that are held at most. While a network runs, half as many more are about to be."""

_Bytes = bytes | memoryview

Watches = Mapping[fx.Node, Sequence[Callable[[Tensor], None]]]
"""Who is handed the values of which nodes, batch by batch."""

_PURE = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.RNNBase, ActivationQuantiser)
"""Modules whose output follows from their `repr`, their tensors and their input; dropouts are in eval mode."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images in batches, channels last.

    Attributes:
        batches: [N, ...] each.
        digest: of all of them; None where they are not held in memory, and nothing is reused.
    """

    batches: Iterable[Tensor]
    digest: bytes | None = None

    @classmethod
    def of(cls, images: Tensor, size: int = BATCH) -> "Images":
        """Images [N, ...] in batches of that size."""
        return cls.held([channels_last(batch) for batch in torch.split(images, size)])

    @classmethod
    def held(cls, batches: Sequence[Tensor]) -> "Images":
        """Batches that lie in memory, with their digest."""
        return cls(batches, _hash(part for batch in batches for part in _content(batch)))


def channels_last(images: Tensor) -> Tensor:
    """The same values laid out channels last, where they are images."""
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images


@dataclass(frozen=True, eq=False)
class _Step:
    """What gives the value of one node.

    Attributes:
        run: called with the values of `args` and `kwargs`, in which nodes stand as `_Value`.
        says: all that the value depends on beside what it reads; None where that is not known.
    """

    run: Callable[..., Any]
    args: Any
    kwargs: Any
    says: Callable[[], list[_Bytes]] | None


@dataclass(frozen=True, repr=False)
class _Value:
    """The value of the node at an index."""

    index: int

    def __repr__(self) -> str:
        return "%"  # which one it is, its digest says


class RunningNetwork:
    """A network in its fastest form for evaluations (see `inference`), on the device of its tensors.

    Args:
        module: in eval mode, of one input and one output; it is not changed, and must not be while this is in use.
        device: to run on.
    """

    def __init__(self, module: fx.GraphModule, device: torch.device | None = None) -> None:
        merged, norms = {}, set()
        for layer, norm, folded in folds(module):
            merged[layer] = folded
            norms.add(norm)
        modules = _Modules(module, merged, device)
        self._steps: list[_Step | None] = []  # None: the input
        self._index: dict[fx.Node, int] = {}
        self._constants: dict[int, Any] = {}
        for node in module.graph.nodes:
            if node.op == "output":
                self._output = self._index[node.args[0]]
            elif node.op == "call_module" and node.target in norms:
                self._index[node] = self._index[node.args[0]]
            else:
                index = self._index[node] = len(self._steps)
                if node.op == "placeholder":
                    self._input = index
                elif node.op == "get_attr":
                    self._constants[index] = modules.constant(str(node.target))
                self._steps.append(self._step(node, modules))
        self._last, self._cuts = self._lives(module.graph)

    @torch.inference_mode()
    def outputs(self, images: Images, held: Held | None = None) -> Tensor:
        """What the network answers, [N, ...].

        Args:
            images: to run on, on the same device.
            held: values of this and other networks, to start from and to add to.
        """
        found: list[Tensor] = []
        self._run(images, held, {self._output: [found.append]})
        return torch.cat(found)

    @torch.no_grad()
    def watch(self, images: Images, watches: Watches, held: Held | None = None) -> None:
        """Run as far as somebody watches; arguments as of `outputs`."""
        needed: dict[int, list[Callable[[Tensor], None]]] = {}
        for node, each in watches.items():
            needed.setdefault(self._index[node], []).extend(each)
        if needed:
            self._run(images, held, needed)

    def digest(self, node: fx.Node, images: Images) -> bytes | None:
        """Of a node's values on those images; None where it is not known what they depend on."""
        return self._key(self._index[node], images)

    def _run(self, images: Images, held: Held | None, needed: Mapping[int, Sequence[Callable[[Tensor], None]]]) -> None:
        held = None if images.digest is None else held
        start, stop = self._input, max(needed)
        batches = images.batches
        keys: dict[int, bytes] = {}
        if held is not None:
            start, batches = self._resumed(images, held, min(needed))
            keys = {cut: self._key(cut, images) or b"" for cut in self._cuts if start < cut <= stop}
        kept = _Kept(keys, held, len(images.batches) if isinstance(images.batches, Sized) else 0)
        for batch in batches:
            values = {**self._constants, start: batch}
            for index in range(start, stop + 1):
                step = self._steps[index]
                if index > start and step is not None and index not in values:
                    values[index] = step.run(*_fill(step.args, values), **_fill(step.kwargs, values))
                for watch in needed.get(index, ()):
                    watch(values[index])
                kept.take(index, values.get(index))
                for old in self._last[index]:
                    values.pop(old, None)
        kept.hold()

    def _resumed(self, images: Images, held: Held, first: int) -> tuple[int, Iterable[Tensor]]:
        """The last held values before what is needed first, by batch; of all that is held, it is known to be in use."""
        found: tuple[int, Iterable[Tensor]] = (self._input, images.batches)
        for cut in self._cuts:
            key = self._key(cut, images)
            values = held.get(key) if cut <= first and key is not None else None
            if values is not None:
                found = cut, values
        return found

    # -- digests ---------------------------------------------------------------------------------------------------

    def _key(self, index: int, images: Images) -> bytes | None:
        digest = self._digests[index]
        return None if digest is None or images.digest is None else digest + images.digest

    @cached_property
    def _digests(self) -> list[bytes | None]:
        """Of every value, whatever the images."""
        found: list[bytes | None] = []
        for step in self._steps:
            if step is None:
                found.append(b"input")
                continue
            read = [found[each.index] for each in _values((step.args, step.kwargs))]
            if step.says is None or None in read:
                found.append(None)
                continue
            form = repr((step.args, step.kwargs)).encode()
            found.append(_hash([*step.says(), form, *(each for each in read if each is not None)]))
        return found

    # -- the plan --------------------------------------------------------------------------------------------------

    def _step(self, node: fx.Node, modules: "_Modules") -> _Step | None:
        if node.op == "placeholder":
            return None
        args, kwargs = fx.map_arg(node.args, self._value), fx.map_arg(dict(node.kwargs), self._value)
        target: Any = node.target
        if node.op == "call_module":
            part = modules.module(target)
            pure = isinstance(part, (*_PURE, nn.modules.dropout._DropoutNd, nn.Identity))
            return _Step(part, args, kwargs, (lambda: _description(part)) if pure else None)
        if node.op == "get_attr":
            value = modules.constant(target)
            return _Step(lambda: value, (), {}, (lambda: _content(value)) if isinstance(value, Tensor) else None)
        run = methodcaller(target) if node.op == "call_method" else target
        return _Step(run, args, kwargs, lambda: [str(target).encode()])

    def _value(self, node: fx.Node) -> Any:
        return _Value(self._index[node])

    def _lives(self, graph: fx.Graph) -> tuple[list[list[int]], list[int]]:
        """Which values are read for the last time by each step; and the cuts, after which nothing but the value there
        is needed: those that a layer reads, and the output."""
        last = dict.fromkeys(range(len(self._steps)), 0)
        for index, step in enumerate(self._steps):
            for each in _values(() if step is None else (step.args, step.kwargs)):
                last[each.index] = index
        last[self._output] = len(self._steps)
        read = {self._index[source] for node in graph.nodes if _is_layer(node) for source in node.all_input_nodes}
        ends: list[list[int]] = [[] for _ in self._steps]
        for index, end in last.items():
            if end < len(ends) and index not in self._constants:
                ends[end].append(index)
        cuts = []
        live: set[int] = set()
        for index in range(len(self._steps)):
            if index not in self._constants:
                live = {each for each in live if last[each] > index} | {index}
                if live == {index} and index > self._input and (index in read or index == self._output):
                    cuts.append(index)
        return ends, cuts


class _Modules:
    """The parts of a network as they run: batch norm folded, weights channels last, on the device."""

    def __init__(self, network: nn.Module, folded: Mapping[str, nn.Module], device: torch.device | None) -> None:
        self._network, self._folded, self._device = network, folded, device

    def module(self, name: str) -> nn.Module:
        part = self._folded.get(name)
        if part is None:
            part = shell(self._network.get_submodule(name))
        if isinstance(part, nn.Conv2d):
            part._parameters["weight"] = nn.Parameter(channels_last(part.weight.detach()), requires_grad=False)
        return part if self._device is None else part.to(self._device)

    def constant(self, name: str) -> Any:
        value = attrgetter(name)(self._network)
        return value if self._device is None else value.to(self._device)


class _Kept:
    """The values that a run leaves behind, within what may be held.

    Args:
        keys: by index of the value.
        held: that they go to; None where there are no keys.
        batches: number of them.
    """

    def __init__(self, keys: Mapping[int, bytes], held: Held | None, batches: int) -> None:
        self._keys, self._held, self._batches = dict(keys), held, batches
        self._room = 0 if held is None else held.limit // 2
        self._values: dict[int, list[Tensor]] = {}
        self._sizes: dict[int, int] = {}

    def take(self, index: int, value: Any) -> None:
        """A value of the next batch."""
        if index not in self._keys:
            return
        if index not in self._values:
            size = value.untyped_storage().nbytes() * self._batches if isinstance(value, Tensor) else self._room + 1
            if size > self._room // 2:  # one that fills the cache alone helps nobody
                del self._keys[index]
                return
            self._room -= size
            self._values[index], self._sizes[index] = [], size
        self._values[index].append(value)

    def hold(self) -> None:
        """All batches were run."""
        for index, values in self._values.items():
            assert self._held is not None
            self._held.put(self._keys[index], values, self._sizes[index])


def _is_layer(node: fx.Node) -> bool:
    return node.op == "call_module"


def _values(argument: Any) -> Iterator[_Value]:
    """Those in an argument, in order."""
    if isinstance(argument, _Value):
        yield argument
    elif isinstance(argument, list | tuple):
        for each in argument:
            yield from _values(each)
    elif isinstance(argument, dict):
        yield from _values(list(argument.values()))


def _fill(argument: Any, values: Mapping[int, Any]) -> Any:
    """The argument with the values in their places."""
    if isinstance(argument, _Value):
        return values[argument.index]
    if isinstance(argument, tuple):
        return tuple(_fill(each, values) for each in argument)
    if isinstance(argument, list):
        return [_fill(each, values) for each in argument]
    if isinstance(argument, dict):
        return {key: _fill(value, values) for key, value in argument.items()}
    return argument


def _description(module: nn.Module) -> list[_Bytes]:
    """All that a layer's values depend on beside its input."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    contents = [part for name, tensor in tensors for part in (name.encode(), *_content(tensor))]
    return [type(module).__name__.encode(), repr(module).encode(), *contents]


def _content(tensor: Tensor) -> list[_Bytes]:
    data = tensor.detach().cpu()
    if data.ndim == 4:
        data = data.permute(0, 2, 3, 1)  # without a copy, where it lies channels last
    return [f"{data.dtype}{tuple(data.shape)}".encode(), data.reshape(-1).view(torch.uint8).numpy().data]


def _hash(parts: Iterable[_Bytes]) -> bytes:
    """Of a sequence of byte strings, whatever their lengths."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.digest()
