"""Bits within a budget: lowered in sweeps after the episode (HAQ; Wang et al., CVPR 2019, section 3.4)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import InputError, UnreachableError
from search_spaces.layers import FLOAT32_BITS

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BitPrice = Callable[[IntArray], npt.NDArray[Any]]
"""Costs [policies] of bits [policies, layers, 2], of the weights and of what a layer reads, as `WEIGHTS` and
`ACTIVATIONS` number them; in any unit."""

WEIGHTS, ACTIVATIONS = 0, 1
DECIDED = 0
"""In place of bits that are fixed: those that are decided."""
RAW = -1
"""Bits of the first layer's input as HAQ's code marks them: the image, which has 8."""
RAW_PRICED_AS = 7
"""What it costs there: -1 - 1 is the last column but one of a table that ends with 8 bits."""
NO_CHOICE = 0


def one_by_one(price: Callable[[IntArray], float]) -> BitPrice:
    """Of a price of one network's bits [layers, 2]."""
    return lambda bits: np.array([price(each) for each in bits], dtype=np.float64)


class BitBudget:
    """Brings bits within a budget.

    A sweep goes from the last layer to the first, and takes the next lower choice for what a layer reads, then for its
    weights; after each of these steps it ends if the budget is kept. Sweeps are repeated until it is.

    Args:
        price: of bits; it must not rise as bits fall.
        limit: of the cost.
        choices: of weights and of activations, each rising.
        fixed: bits [layers, 2] of what is not decided, `DECIDED` elsewhere.
        faithful: as HAQ's code: bits that keep the budget as proposed are left alone, those that are fixed included.

    Attributes:
        highest: the most that can be chosen, [layers, 2], fixed bits among them.
        lowest: the least.

    Raises:
        InputError: the lowest bits cost more than the limit; or the price does not give a number for each network.
    """

    def __init__(
        self,
        price: BitPrice,
        limit: float,
        choices: tuple[Sequence[int], Sequence[int]],
        fixed: npt.ArrayLike,
        *,
        faithful: bool = False,
    ) -> None:
        self._price = price
        self._limit = limit
        self._fixed = np.asarray(fixed, dtype=np.int64)
        self._faithful = faithful
        self.highest = self._pinned(np.repeat([[kind[-1] for kind in choices]], len(self._fixed), axis=0))
        self.lowest = self._pinned(np.repeat([[kind[0] for kind in choices]], len(self._fixed), axis=0))
        self._below = [_below(kind) for kind in choices]
        least = self.cost(self.lowest)
        if not least <= limit:
            whole = self.cost(self.highest)
            raise UnreachableError(
                f"the budget of {limit:,.6g} cannot be kept: the lowest bits cost {least:,.6g} "
                f"({least / whole:.2%} of the {whole:,.6g} of the highest); raise the budget, or allow fewer bits"
            )

    def cost(self, bits: npt.ArrayLike) -> float:
        """Of bits [layers, 2]."""
        return float(self._costs(np.asarray(bits, dtype=np.int64)[None])[0])

    def meet(self, bits: npt.ArrayLike) -> IntArray:
        """Proposed bits [layers, 2] within the budget, fixed ones as they are fixed.

        Raises:
            InputError: bits that are no choice, or a price that rises as bits fall.
        """
        current = np.asarray(bits, dtype=np.int64)
        if self._faithful and self.cost(current) <= self._limit:
            return current.copy()
        current = self._pinned(current)
        while self.cost(current) > self._limit:
            lowered = self._lowered(current)
            # one row for each step of the sweep: what was lowered by then
            steps = np.flatnonzero((lowered != current)[::-1, ::-1])
            if not len(steps):
                raise InputError("the price of the lowest bits is not the lowest: it must not rise as bits fall")
            place = np.arange(current.size).reshape(current.shape)[::-1, ::-1]
            rows = np.where(place <= steps[:, None, None], lowered, current)
            kept = np.flatnonzero(self._costs(rows) <= self._limit)
            current = rows[kept[0]] if len(kept) else lowered
        return current

    def _pinned(self, bits: IntArray) -> IntArray:
        return np.where(self._fixed == DECIDED, bits, self._fixed)

    def _lowered(self, bits: IntArray) -> IntArray:
        """One choice lower, all that is decided."""
        below = np.stack([table[np.maximum(bits[:, kind], 0)] for kind, table in enumerate(self._below)], axis=1)
        unknown = np.argwhere((self._fixed == DECIDED) & (below == NO_CHOICE))
        if len(unknown):
            layer, kind = unknown[0].tolist()
            choices = np.flatnonzero(self._below[kind]).tolist()
            raise InputError(f"bits are one of {', '.join(map(str, choices))}, got {bits[layer, kind]}")
        return np.where(self._fixed == DECIDED, below, bits)

    def _costs(self, bits: IntArray) -> FloatArray:
        """Of bits [policies, layers, 2]."""
        found = np.asarray(self._price(np.where(bits == RAW, RAW_PRICED_AS, bits)), dtype=np.float64)
        if found.shape != (len(bits),):
            raise InputError(
                f"a price of bits gives a cost for each network: of {list(bits.shape)} it gave {list(found.shape)}; "
                "see one_by_one"
            )
        return found


def _below(choices: Sequence[int]) -> IntArray:
    """The next lower choice by bits; of the lowest itself, and `NO_CHOICE` where there is none of those bits."""
    found = np.full(FLOAT32_BITS + 1, NO_CHOICE, dtype=np.int64)
    found[list(choices)] = [choices[0], *choices[:-1]]
    return found
