"""A user's own table of what each layer costs at each pair of bitwidths: from a simulator, a data sheet or a device.

A file `*.npy` holds an array [layer, weight bits - 1, activation bits - 1] with the layers in execution order, as HAQ
publishes its tables (Wang et al. 2019). A file `*.csv` has the header `layer,weight_bits,activation_bits,cost`, in any
order, and a row for each cost; `layer` is the name of a convolution or linear layer, or its number in execution order,
from 0.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from backends.base import HardwareBackend, HardwareCost
from search_spaces.errors import InputError, did_you_mean
from search_spaces.graph import ModelGraph
from search_spaces.layers import FLOAT32_BITS

Unit = Literal["seconds", "cycles"]
LayerCosts = Mapping[tuple[int, int], float]
"""(weight bits, activation bits) -> cost of a layer."""

_BITS = {str(bits): bits for bits in range(1, FLOAT32_BITS + 1)}
_COLUMNS = ("layer", "weight_bits", "activation_bits", "cost")


class TableFileBackend(HardwareBackend):
    """Sums what a file says of each layer. Layers must be whole: the file knows bits, not channels.

    Args:
        path: of the table, `.npy` or `.csv`.
        unit: of its costs.
        frequency_hz: clock that turns cycles into seconds; without it cycles stay cycles, and no latency is claimed.
        batch: images in the pass that the costs are for; HAQ's are for 16.
        measured: whether the costs were read off a device, as the file's owner states, or modelled.

    Raises:
        InputError: the file cannot be read or is malformed, or an argument is out of range.
    """

    name = "table_file"

    def __init__(
        self,
        path: str | Path,
        *,
        unit: Unit = "seconds",
        frequency_hz: float | None = None,
        batch: int = 1,
        measured: bool = False,
    ) -> None:
        if unit not in get_args(Unit):
            raise InputError(f"a table's unit is seconds or cycles, got {unit!r}{did_you_mean(unit, get_args(Unit))}")
        if frequency_hz is not None and unit != "cycles":
            raise InputError("frequency_hz turns cycles into seconds; a table in seconds needs none, leave it out")
        if frequency_hz is not None and not (math.isfinite(frequency_hz) and frequency_hz > 0):
            raise InputError(f"frequency_hz is a finite number above 0, got {frequency_hz}")
        if type(batch) is not int or batch < 1:
            raise InputError(f"batch is a whole number of at least 1, got {batch!r}")
        self.path = Path(path)
        self.measured = measured
        self._costs = _read(self.path)
        clock = 1.0 if unit == "seconds" else frequency_hz
        self._divisor = None if clock is None else clock * batch

    def supports(self, graph: ModelGraph) -> tuple[str, ...]:
        """Reasons why the file cannot price the graph: other layers, pruned channels, bits it does not have."""
        try:
            costs = self._layer_costs(graph)
        except InputError as error:
            return (str(error),)
        reasons = [
            f"{str(self.path)!r} knows whole layers, {kept} of {group.width} units are kept of {group.name!r}"
            for group, kept in zip(graph.groups, graph.kept, strict=True)
            if kept != group.width
        ]
        for layer, known in zip(graph.layers, costs, strict=True):
            if (layer.weight_bits, layer.activation_bits) not in known:
                reasons.append(
                    f"{str(self.path)!r} has no cost of layer {layer.name!r} with {layer.weight_bits} bits of weights "
                    f"and {layer.activation_bits} of activations; it knows {_ranges(known)}"
                )
        return tuple(reasons)

    def estimate(self, graph: ModelGraph) -> HardwareCost:
        """Latency of one image, each layer's share in seconds; in cycles of the whole batch where no clock is given.

        Raises:
            InputError: see `supports`.
        """
        costs = self._priced(graph)
        divisor = self._divisor or 1.0
        return HardwareCost(
            macs=graph.macs,
            params=graph.params,
            weight_bytes=graph.weight_bytes,
            latency_s=None if self._divisor is None else sum(costs.values()) / self._divisor,
            by_layer={name: cost / divisor for name, cost in costs.items()},
            measured=self.measured and self._divisor is not None,
            backend=self.name,
        )

    def total(self, graph: ModelGraph) -> float:
        """Sum over the layers in the file's own unit, for its own batch.

        Raises:
            InputError: see `supports`.
        """
        return sum(self._priced(graph).values())

    def _priced(self, graph: ModelGraph) -> dict[str, float]:
        """Cost of each layer as it stands in the file."""
        self.require(graph)
        return {
            layer.name: known[layer.weight_bits, layer.activation_bits]
            for layer, known in zip(graph.layers, self._layer_costs(graph), strict=True)
        }

    def _layer_costs(self, graph: ModelGraph) -> list[LayerCosts]:
        """Costs of the graph's layers in execution order; InputError where the file has other layers."""
        names = [layer.name for layer in graph.full_layers]
        if not self._costs.keys() ^ set(names):
            return [self._costs[name] for name in names]
        if not self._costs.keys() ^ {str(number) for number in range(len(names))}:
            return [self._costs[str(number)] for number in range(len(names))]
        by_number = all(name.isdecimal() for name in self._costs)
        wanted = [str(number) for number in range(len(names))] if by_number else names
        missing = [name for name in wanted if name not in self._costs]
        unknown = [name for name in self._costs if name not in wanted]
        what = [f"{str(self.path)!r} has {len(self._costs)} layers, the network {len(names)}"]
        if missing:
            what.append(f"layer {missing[0]!r} of the network is not in the file")
        if unknown:
            what.append(f"layer {unknown[0]!r} of the file is not in the network")
        raise InputError("; ".join(what))


def _read(path: Path) -> dict[str, dict[tuple[int, int], float]]:
    """Costs by layer, named as in the file or by number."""
    readers = {".npy": _read_npy, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"a table file ends in .csv or .npy, got {str(path)!r}")
    try:
        return reader(path)
    except OSError as error:
        raise InputError(f"table file {str(path)!r} cannot be read: {error.strerror or error}") from None
    except InputError as error:
        raise InputError(f"table file {str(path)!r}: {error}") from None


def _read_npy(path: Path) -> dict[str, dict[tuple[int, int], float]]:
    try:
        # mapped, not read: a header that promises more than the file holds allocates nothing; pickles are refused
        table = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # NumPy parses a header by Python's tokenizer, which raises errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"not an array of numbers in NumPy's format ({reason}); write it by numpy.save") from error
    if table.dtype.kind not in "iuf":
        raise InputError(f"costs are whole or real numbers, got an array of {table.dtype}")
    if table.ndim != 3 or 0 in table.shape or max(table.shape[1:]) > FLOAT32_BITS:
        raise InputError(
            f"the array is [layer, weight bits - 1, activation bits - 1] with at most {FLOAT32_BITS} bits, "
            f"got the shape {list(table.shape)}"
        )
    values: list[list[list[float]]] = table.astype(np.float64).tolist()
    return {
        str(layer): {
            (weights + 1, reads + 1): _checked(cost, f"at {[layer, weights, reads]}")
            for weights, row in enumerate(rows)
            for reads, cost in enumerate(row)
        }
        for layer, rows in enumerate(values)
    }


def _read_csv(path: Path) -> dict[str, dict[tuple[int, int], float]]:
    costs: dict[str, dict[tuple[int, int], float]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
            rows = csv.reader(file, strict=True)
            header = [cell.strip() for cell in next(rows, [])]
            if sorted(header) != sorted(_COLUMNS):
                raise InputError(f"the first line is {','.join(_COLUMNS)}, got {','.join(header)!r}")
            places = [header.index(column) for column in _COLUMNS]
            for row in rows:
                if not row:
                    continue  # an empty line
                where = f"line {rows.line_num}"
                if len(row) != len(_COLUMNS):
                    raise InputError(f"{where} has {len(row)} cells, the header {len(_COLUMNS)}")
                layer, weights, reads, cost = (row[place].strip() for place in places)
                bits = (_bits(weights, where), _bits(reads, where))
                if bits in costs.setdefault(layer, {}):
                    raise InputError(f"{where} gives layer {layer!r} with {bits[0]}/{bits[1]} bits a second time")
                costs[layer][bits] = _checked(_number(cost, where), f"in {where}")
    except UnicodeDecodeError:
        raise InputError("not a text file in UTF-8") from None
    except csv.Error as error:
        raise InputError(f"not a CSV file: {error}") from None
    if not costs:
        raise InputError("no rows after the header")
    return costs


def _bits(text: str, where: str) -> int:
    try:
        return _BITS[text]
    except KeyError:
        raise InputError(f"{where}: bits are a whole number from 1 to {FLOAT32_BITS}, got {text!r}") from None


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{where}: a cost is a number, got {text!r}") from None


def _checked(cost: float, where: str) -> float:
    if not (math.isfinite(cost) and cost >= 0):
        raise InputError(f"a cost is a finite number of at least 0, got {cost} {where}")
    return cost


def _ranges(known: LayerCosts) -> str:
    """The bits of weights and of activations that a layer has costs for."""
    weights, reads = (sorted({bits[side] for bits in known}) for side in (0, 1))
    return f"{_range(weights)} of weights, {_range(reads)} of activations"


def _range(bits: Sequence[int]) -> str:
    return (
        f"{bits[0]} to {bits[-1]}"
        if len(bits) > 1 and bits[-1] - bits[0] == len(bits) - 1
        else ", ".join(map(str, bits))
    )
