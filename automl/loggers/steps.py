"""What is new on record: the evaluations of every search as steps, in order, each once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from automl.run.store import Store
from search_spaces.objective import Evaluation

REWARDS_LATE = 100
"""A reward is on record this many evaluations and the search's lag after its evaluation at most, or never."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is known of an evaluation, or its reward, which becomes known later.

    Attributes:
        number: of the evaluation in its search, from 0.
        time: seconds since 1970.
        values: by name.
    """

    number: int
    time: float
    values: Mapping[str, float]


class Follower:
    """Reads a run's record on.

    A search's steps come in the order of its evaluations: one that others have overtaken is waited for.

    Args:
        lag: of the searches, `search.lag`.
    """

    def __init__(self, lag: int) -> None:
        self._late = lag + REWARDS_LATE
        self._searches: dict[str, _Position] = {}

    def news(self, store: Store) -> Iterator[tuple[str, list[Step], bool]]:
        """Each search with what is new of it, nothing included, and whether it is told from its start again.

        It is where a resumed run forgot failures of it (`Store.forget_failures`); one that ended by them is not begun
        with before the run has.
        """
        counts = store.counts()
        for row in store.searches():
            position = self._searches.setdefault(row.name, _Position())
            if row.error is not None and not position.read:
                continue
            anew = counts.get(row.name, 0) < position.read
            if anew:
                position = self._searches[row.name] = _Position()
            yield row.name, position.news(store, row.name, self._late), anew


class _Position:
    """How far a search has been read: the numbers below `read`."""

    def __init__(self) -> None:
        self.read = 0
        self._best: float | None = None
        self._unrewarded: set[int] = set()

    def news(self, store: Store, search: str, late: int) -> list[Step]:
        steps = []
        for each in store.figures(search, min(self._unrewarded, default=self.read)):
            values: dict[str, float] = {}
            if each.number == self.read:
                self.read += 1
                self._unrewarded.add(each.number)
                values = self._values(each.evaluation)
            if each.reward is not None and each.number in self._unrewarded:
                self._unrewarded.remove(each.number)
                values["reward"] = each.reward
            if values:
                steps.append(Step(each.number, each.finished_at, values))
        self._unrewarded = {number for number in self._unrewarded if number >= self.read - late}
        return steps

    def _values(self, found: Evaluation) -> dict[str, float]:
        if found.feasible and (self._best is None or found.accuracy > self._best):
            self._best = found.accuracy
        values = {f"cost/{metric}": value for metric, value in found.cost.items()}
        values |= {"failed": float(found.error is not None), "feasible": float(found.feasible)}
        if found.error is None:
            values["accuracy"] = found.accuracy
        if self._best is not None:
            values["best_accuracy"] = self._best
        return values
