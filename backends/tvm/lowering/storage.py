"""Which operators compute in 8-bit integers, and how each value between operators is stored.

A layer reads the codes of its own quantiser's grid. So the value that it reads is stored in that grid, and read as it
is by all that can read codes: other such layers, the sums behind them, and operators that only move values or take
their maximum. Where something else reads it, too, it stays float32, and each layer quantises it for itself. All this
follows from the structure and from which layers have formats of at most 8 bits, so it is known before a tensor is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from backends.fusion import CLAMPS, IDENTITIES, FusedOperator
from backends.integers import Formats, why_float
from search_spaces.layers import LayerSpec

_MOVES = IDENTITIES | {
    "reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view", "slice", "pad", "channel_gather",
    "max_pool",
}  # fmt: skip
_EITHER = ""
"""In the place of a grid's layer: codes of whatever grid will do, and so will float32."""
_SUM_BITS = 8
"""Of the coarsest grid that residual sums read: the policy quantises layers, not sums, and 8 bits cost them nothing."""
_UNSIGNED = {"relu", "relu6", "sigmoid", "hardsigmoid"}


@dataclass(frozen=True)
class Storage:
    """How a network's values are stored.

    Attributes:
        integer: layers that compute in integers.
        grids: name of a value's operator -> the layer whose grid its codes are in; values not named are float32.
        unsigned: layers that read no number below zero, so that the code of zero can be 0.
        shifts: code that is stored as 0, by layer, where it is not 0 itself.
    """

    integer: frozenset[str] = frozenset()
    grids: Mapping[str, str] = field(default_factory=dict)
    unsigned: frozenset[str] = frozenset()
    shifts: Mapping[str, int] = field(default_factory=dict)


FLOAT = Storage()
"""Of a network that computes in float32 throughout."""


class StoragePlanner:
    """Decides on the storage of a network under any formats.

    Args:
        fused: the network's operators, in order.
        layers: by name.
        output: the operator whose value the network gives.
    """

    def __init__(self, fused: Sequence[FusedOperator], layers: Mapping[str, LayerSpec], output: str) -> None:
        self._fused = fused
        self._layers = layers
        self._readers: dict[str, list[FusedOperator]] = {}
        for one in fused:
            for name in one.inputs:
                self._readers.setdefault(name, []).append(one)
        self._output = output
        self._known: dict[tuple[tuple[str, int, str], ...], Storage] = {}

    def storage(self, formats: Formats) -> Storage:
        """The storage of all values."""
        bits = {
            name: (activation.bits, activation.scheme)
            for name, (weight, activation) in formats.items()
            if activation is not None and why_float(self._layers[name], weight, activation) is None
        }
        key = tuple((name, *bits[name]) for name in sorted(bits))
        if key not in self._known:
            self._known[key] = self._decide(bits) if bits else FLOAT
        return self._known[key]

    def _decide(self, bits: Mapping[str, tuple[int, str]]) -> Storage:
        integer = {one.head.layer for one in self._fused if one.head.layer in bits and not _permutes(one)}
        wanted: dict[str, str | None] = {}
        for one in reversed(self._fused):
            wanted[one.output.name] = self._wanted(one.output.name, integer, wanted, bits)
        grids: dict[str, str] = {}
        positive: set[str] = set()
        unsigned: set[str] = set()
        for one in self._fused:
            source, name = one.inputs[0] if one.inputs else "", one.output.name
            layer = one.head.layer
            if layer in integer and source in positive:
                unsigned.add(str(layer))
            if _unsigned(one) or (moves_codes(one) and source in positive and one.head.kind != "pad"):
                positive.add(name)
            grid = (grids.get(source) if moves_codes(one) else None) or wanted[name]
            if grid:
                grids[name] = grid
        shifts = {
            name: 1 << (count - 1)
            for name, (count, scheme) in bits.items()
            if scheme == "symmetric" and name in unsigned
        }
        return Storage(frozenset(filter(None, integer)), grids, frozenset(unsigned), shifts)

    def _wanted(
        self,
        name: str,
        integer: set[str | None],
        wanted: Mapping[str, str | None],
        bits: Mapping[str, tuple[int, str]],
    ) -> str | None:
        """The grid that a value should be in: of its readers' the finest; `_EITHER` where none minds; None where one
        of them reads float32, or where a sum would read a grid so coarse that it loses what no quantiser takes."""
        found: list[str | None] = [None] if name == self._output else []
        for reader in self._readers.get(name, []):
            if reader.head.layer in integer:
                found += [str(reader.head.layer)] * (name in reader.head.inputs) + [_EITHER] * (name == reader.residual)
            else:
                found.append(wanted[reader.output.name] if moves_codes(reader) else None)
        if None in found:
            return None
        finest = max((grid for grid in found if grid), key=lambda grid: bits[grid][0], default=_EITHER)
        return None if finest and _EITHER in found and bits[finest][0] < _SUM_BITS else finest


def moves_codes(fused: FusedOperator) -> bool:
    """Whether codes can be moved as well as numbers; a border must be of zeros, whose code is known."""
    head = fused.head
    return head.kind in _MOVES and not fused.tail and (head.kind != "pad" or not head.argument("value"))


def _permutes(fused: FusedOperator) -> bool:
    return any(operator.kind in ("permute", "transpose") for operator in fused.tail)


def _unsigned(fused: FusedOperator) -> bool:
    """Whether a value is never below zero."""
    operators = [fused.head, *(operator for operator in fused.tail if operator.kind not in IDENTITIES)]
    last = operators[-1]
    least = last.argument("min_val" if last.kind == "hardtanh" else "min")
    return last.kind in _UNSIGNED or (last.kind in CLAMPS and isinstance(least, int | float) and least >= 0)
