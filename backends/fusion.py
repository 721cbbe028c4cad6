"""Which operators of a network are computed together, from its graph alone.

A convolution or matrix product takes in what follows it as long as nothing else reads the value in between: affine maps
of its channels (batch norm, bias, layer scale), then one sum with a feature map that is there already, then an
activation. Other operators take in less. What comes out is the unit of every latency table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from search_spaces.graph import ModelGraph
from search_spaces.operators import Operator

IDENTITIES = frozenset({"dropout", "feature_dropout", "alpha_dropout", "contiguous", "clone", "detach", "alias", "to"})
"""Operators that change nothing in evaluation."""

CLAMPS = frozenset({"relu", "relu6", "hardtanh", "clamp", "clip", "clamp_min", "clamp_max"})
ACTIVATIONS = CLAMPS | {
    "sigmoid", "silu", "hardsigmoid", "hardswish", "gelu", "tanh", "leaky_relu", "elu", "softplus", "mish", "celu",
    "selu",
}  # fmt: skip
"""Operators that work on each element by itself."""

PERMUTATIONS = frozenset({"permute", "transpose", "swapaxes", "movedim", "t"})

_AFFINE = frozenset({"conv", "linear", "batch_norm", "cat"})
_RESIDUAL = frozenset({"conv", "linear"})
_ACTIVATED = _AFFINE | {"add", "sub", "rsub", "mul", "div", "maximum", "minimum"}


@dataclass(frozen=True)
class FusedOperator:
    """Operators that are computed as one.

    Attributes:
        head: the first.
        tail: those taken in, in order, permutations and operators that change nothing included.
        residual: name of the operator whose value the tail adds; None where it adds none.
    """

    head: Operator
    tail: tuple[Operator, ...] = ()
    residual: str | None = None

    @property
    def output(self) -> Operator:
        """The operator whose value others read."""
        return self.tail[-1] if self.tail else self.head

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the operators whose values are read: the head's inputs, then the residual."""
        return self.head.inputs if self.residual is None else (*self.head.inputs, self.residual)


def fuse(graph: ModelGraph) -> tuple[FusedOperator, ...]:
    """The network as fused operators, each after those that it reads. Constants and the output are not among them.

    What is fused depends on the structure alone, never on how many channels a policy keeps.
    """
    return _Fusion(graph).run()


def is_constant_over_pixels(operator: Operator, rank: int, axis: int) -> bool:
    """Whether a constant varies along one axis only of a tensor of that rank (batch dimension counted)."""
    shape = full_shape(operator)
    if len(shape) > rank:
        return False
    aligned = (1,) * (rank - len(shape)) + shape
    return all(extent == 1 for place, extent in enumerate(aligned) if place != axis)


def full_shape(operator: Operator, batch: int = 1) -> tuple[int, ...]:
    """Shape with the batch dimension."""
    return (batch, *operator.shape) if operator.batched else operator.shape


class _Fusion:
    """One walk over a graph."""

    def __init__(self, graph: ModelGraph) -> None:
        self.operators: Mapping[str, Operator] = {operator.name: operator for operator in graph.full_operators}
        self.users: dict[str, list[Operator]] = {}
        for operator in graph.full_operators:
            for name in operator.inputs:
                self.users.setdefault(name, []).append(operator)
        self.depthwise = {layer.name for layer in graph.full_layers if layer.depthwise}
        self.taken: set[str] = set()

    def run(self) -> tuple[FusedOperator, ...]:
        position = {name: place for place, name in enumerate(self.operators)}
        found = []
        for operator in self.operators.values():
            if operator.constant or operator.kind in ("input", "output") or operator.name in self.taken:
                continue
            found.append(self._extend(operator))
        # Whatever a fused operator reads is there before its last part, and nobody reads it before that.
        return tuple(sorted(found, key=lambda fused: position[fused.output.name]))

    def _extend(self, head: Operator) -> FusedOperator:
        tail: list[Operator] = []
        residual: str | None = None
        activated: Operator | None = None
        axis = len(full_shape(head)) - 1 if head.kind == "linear" else 1
        current = head
        while head.kind in _ACTIVATED and (following := self._only_user(current)) is not None:
            if following.kind in IDENTITIES:
                pass
            elif following.kind in ("permute", "transpose") and head.kind in _RESIDUAL:
                axis = permutation(following, len(full_shape(current))).index(axis)
            elif following.kind in ACTIVATIONS and (
                activated is None or (activated.kind in CLAMPS and following.kind in CLAMPS)
            ):
                activated = following
            elif activated is None and residual is None and self._affine(head, current, following, axis):
                pass
            elif activated is None and residual is None and (other := self._residual(head, current, following)):
                residual = other
            else:
                break
            tail.append(following)
            self.taken.add(following.name)
            current = following
        return FusedOperator(head, tuple(tail), residual)

    def _only_user(self, operator: Operator) -> Operator | None:
        users = self.users.get(operator.name, [])
        if len(users) != 1 or users[0].kind == "output" or users[0].name in self.taken:
            return None
        return users[0]

    def _affine(self, head: Operator, current: Operator, following: Operator, axis: int) -> bool:
        """Whether the follower scales and shifts the head's channels by constants."""
        if head.kind not in _AFFINE:
            return False
        if following.kind == "batch_norm":
            return axis == 1
        if following.kind not in ("add", "sub", "rsub", "mul", "div") or following.argument("alpha") not in (None, 1):
            return False
        if following.kind == "div" and following.inputs[0] != current.name:
            return False
        if full_shape(following) != full_shape(current):
            return False
        others = [self.operators[name] for name in following.inputs if name != current.name]
        if not others:  # with a number
            return len(following.inputs) == 1 and isinstance(following.argument("other"), int | float)
        other = others[0]
        return other.constant and is_constant_over_pixels(other, len(full_shape(current)), axis)

    def _residual(self, head: Operator, current: Operator, following: Operator) -> str | None:
        """The other side of a sum with a feature map."""
        if head.kind not in _RESIDUAL or following.kind != "add" or following.argument("alpha") not in (None, 1):
            return None
        names = [name for name in following.inputs if name != current.name]
        if len(names) != 1 or len(following.inputs) != 2:
            return None
        other = self.operators[names[0]]
        fits = full_shape(other) == full_shape(current) == full_shape(following) and len(full_shape(other)) > 2
        return other.name if fits and not other.constant and other.dtype == "float32" else None


def permutation(operator: Operator, rank: int) -> list[int]:
    """For each axis of a permutation's output, which axis of its input it is.

    Args:
        operator: of kind "permute" or "transpose".
        rank: of its input, batch dimension counted.
    """
    if operator.kind == "permute":
        dims = operator.argument("dims")
        return [int(dim) % rank for dim in dims] if isinstance(dims, tuple) else list(range(rank))  # type: ignore[arg-type]
    axes = list(range(rank))
    first, second = (int(operator.argument(name)) % rank for name in ("dim0", "dim1"))  # type: ignore[arg-type]
    axes[first], axes[second] = axes[second], axes[first]
    return axes
