"""How many units each channel group may keep."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil, floor

import numpy as np

from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy

VECTOR_WIDTH = 16
LOWER_BOUND = 0.2
ROUNDING_ERROR = 1e-9  # 0.2 * 5 channels is 1, not 1.0000000000000002


def channel_step(width: int) -> int:
    """Grid of the numbers of units a group may keep: min(vector width, width / 8), at least 2.

    A fixed grid of the vector width would leave narrow layers (ResNet-20's first stage) unprunable.
    """
    return max(2, min(VECTOR_WIDTH, width // 8))


def units_of(share: float, width: int) -> int:
    """The number of units nearest to a share of them, at least 1; of halves the larger one."""
    return max(1, floor(share * width + 0.5 + ROUNDING_ERROR))


@dataclass(frozen=True)
class ChannelSpace:
    """Numbers of units that each channel group may keep: from `least[i]` to its width in steps, or listed shares of it.

    Attributes:
        graph: the uncompressed network.
        least: fewest units of each group; its width where the group is protected.
        step: grid of each group; the width itself is always allowed. The width, too, where shares are listed.
        lower_bound: the least keep ratio that `least` was rounded from.
        protected: indices of the groups that stay whole because they were asked to.
        keep: the shares of its units that a group may keep, rising; empty where they are on a grid.
    """

    graph: ModelGraph
    least: tuple[int, ...]
    step: tuple[int, ...]
    lower_bound: float = LOWER_BOUND
    protected: frozenset[int] = frozenset()
    keep: tuple[float, ...] = ()

    @classmethod
    def build(
        cls,
        graph: ModelGraph,
        lower_bound: float = LOWER_BOUND,
        round_to: int | None = None,
        protect: Sequence[str] = (),
        keep: Sequence[float] = (),
    ) -> "ChannelSpace":
        """Every group keeps at least `lower_bound` of its units, in multiples of `round_to` (None: `channel_step`).

        Args:
            graph: the uncompressed network.
            lower_bound: least keep ratio, in (0, 1].
            round_to: grid of the number of units; 1 for every number.
            protect: glob patterns of group names that stay whole.
            keep: shares of its units, in (0, 1], that a group may keep in place of that; each is rounded to the nearest
                number of units, at least 1. All of them is always allowed.

        Raises:
            InputError: a value out of range, a pattern that matches nothing, or nothing left to prune.
        """
        if not 0.0 < lower_bound <= 1.0:
            raise InputError(f"the lower bound of the keep ratio lies in (0, 1], got {lower_bound}")
        if round_to is not None and round_to < 1:
            raise InputError(f"channels are rounded to a multiple of at least 1, got {round_to}")
        if keep:
            _check_shares(keep, lower_bound, round_to)
            lower_bound = min(keep)
        names = [group.name for group in graph.groups]
        for pattern in protect:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise InputError(f"no channel group matches protect={pattern!r}; groups: {', '.join(names) or 'none'}")
        least, steps = [], []
        guarded = frozenset(
            index for index, name in enumerate(names) if any(fnmatchcase(name, pattern) for pattern in protect)
        )
        for index, group in enumerate(graph.groups):
            if keep:
                step, floor = group.width, units_of(lower_bound, group.width)
            else:
                step = min(group.width, channel_step(group.width) if round_to is None else round_to)
                floor = min(group.width, step * ceil(lower_bound * group.width / step - ROUNDING_ERROR))
            least.append(group.width if index in guarded else floor)
            steps.append(step)
        space = cls(graph, tuple(least), tuple(steps), lower_bound, guarded, tuple(sorted(set(keep))))
        if not any(low < group.width for low, group in zip(least, graph.groups, strict=True)):
            raise InputError("nothing is left to prune: every channel group is refused, protected or too narrow")
        return space

    @classmethod
    def whole_of(cls, graph: ModelGraph) -> "ChannelSpace":
        """Where every group stays whole."""
        widths = tuple(group.width for group in graph.groups)
        return cls(graph, widths, widths, 1.0, frozenset(range(len(widths))))

    @property
    def whole(self) -> tuple[int, ...]:
        """All units of every group."""
        return tuple(group.width for group in self.graph.groups)

    def choices(self, index: int) -> tuple[int, ...]:
        """Numbers of units that group `index` may keep, rising."""
        width = self.graph.groups[index].width
        if self.keep and self.least[index] < width:
            return tuple(sorted({*(units_of(share, width) for share in self.keep), width}))
        return (*range(self.least[index], width, self.step[index]), width)

    def cheapest(self) -> CompressionPolicy:
        """The policy that keeps least everywhere."""
        return self.graph.policy(self.least)

    def sample(self, generator: np.random.Generator) -> tuple[int, ...]:
        """Uniformly random numbers of units, one for each group."""
        return tuple(int(generator.choice(self.choices(index))) for index in range(len(self.graph.groups)))


def _check_shares(keep: Sequence[float], lower_bound: float, round_to: int | None) -> None:
    for share in keep:
        if not 0.0 < share <= 1.0:
            raise InputError(f"space.keep lists shares of channels in (0, 1], got {share}")
    if round_to is not None or lower_bound != LOWER_BOUND:
        given = f"round_to {round_to}" if round_to is not None else f"lower_bound {lower_bound}"
        raise InputError(f"space.keep lists shares of channels in place of a grid, got {given} as well; remove one")
