"""The conformance kit of searchers: one subclass, and a new searcher is tested.

class TestMine(SearcherConformance):
    def make(self, space, constraint, seed):
        return MySearcher(space, constraint, seed)
"""

import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

import numpy as np
from safetensors.numpy import load, save

from automl.searchers.base import Searcher, State
from automl.testing.checks import global_state, require
from automl.testing.problems import AdditiveEvaluator, cifar_resnet
from search_spaces.channel_space import ChannelSpace
from search_spaces.objective import Constraint
from search_spaces.policy import CompressionPolicy


class SearcherConformance(ABC):
    """What every `Searcher` promises, checked on a small network with a hard budget.

    Attributes:
        evaluations: how many proposals a search of the kit has; enough to reach every phase of the algorithm.
        lags: how many proposals may be pending when the next one is asked for.
        ratio: of the network's MACs, the budget.
        keeps_budget: False for a published algorithm that overshoots.
        keeps_grid: False for one whose numbers of units need not be multiples of the space's step.
    """

    evaluations = 12
    lags: Sequence[int] = (0, 3)
    ratio = 0.5
    keeps_budget = True
    keeps_grid = True

    @abstractmethod
    def make(self, space: ChannelSpace, constraint: Constraint, seed: int) -> Searcher:
        """A new searcher."""

    def space(self) -> ChannelSpace:
        """What is searched."""
        return ChannelSpace.build(cifar_resnet(8))

    def test_the_same_seed_proposes_the_same(self) -> None:
        """Proposals, rewards and the final state depend on the seed and the results alone."""
        for lag in self.lags:
            first, second = self._start(), self._start()
            require(
                [first.advance(lag) for _ in range(self._events)] == [second.advance(lag) for _ in range(self._events)],
                f"two searches of one seed differ at lag {lag}",
            )
            require(_equal(first.searcher.state(), second.searcher.state()), "their states differ")

    def test_every_proposal_is_in_the_space_and_within_the_budget(self) -> None:
        """Counts after rounding, priced by the graph itself."""
        if not self.keeps_budget:
            return
        search = self._start()
        choices = [set(search.space.choices(group)) for group in range(len(search.space.least))]
        for _ in range(self._events):
            search.advance(lag=0)
        for policy in search.proposals:
            pruned = search.space.graph.apply(policy)
            require(pruned.macs <= search.constraint.limit, f"{pruned.macs} MACs, allowed {search.constraint.limit}")
            require(
                not self.keeps_grid or all(kept in allowed for kept, allowed in zip(pruned.kept, choices, strict=True)),
                f"{pruned.kept} is not in the space",
            )

    def test_proposals_know_only_what_was_told(self) -> None:
        """The first lag + 1 proposals come before any result, so they do not depend on the lag beyond that."""
        shallow, deep = self._start(), self._start()
        for _ in range(4):
            shallow.propose()
        for _ in range(2):
            deep.propose()
        require(shallow.proposals[:2] == deep.proposals, "a proposal depends on proposals after it")

    def test_restored_equals_uninterrupted_at_every_boundary(self) -> None:
        """Before and after every ask and tell, with and without pending proposals, through the stored formats."""
        for lag in self.lags:
            whole = self._start()
            trace = [whole.advance(lag) for _ in range(self._events)]
            final = whole.searcher.state()
            running = self._start()
            for boundary in range(self._events):
                resumed = self._start()
                resumed.take_over(running)
                rest = [resumed.advance(lag) for _ in range(boundary, self._events)]
                require(rest == trace[boundary:], f"resumed at event {boundary} with lag {lag}: other proposals")
                require(
                    _equal(resumed.searcher.state(), final), f"resumed at event {boundary} with lag {lag}: other state"
                )
                running.advance(lag)

    def test_reading_the_state_changes_nothing(self) -> None:
        """`state` is read only."""
        read, unread = self._start(), self._start()
        for _ in range(self._events):
            before = read.searcher.state()
            require(_equal(before, read.searcher.state()), "two states read in a row differ")
            require(read.advance(lag=1) == unread.advance(lag=1), "reading the state changed the search")

    def test_global_generators_and_threads_stay_as_they_are(self) -> None:
        """Python's, numpy's and torch's, and torch's number of threads."""
        before = global_state()
        search = self._start()
        for _ in range(self._events):
            search.advance(lag=1)
        resumed = self._start()
        resumed.take_over(search)
        require(global_state() == before, "a global generator or the number of threads was changed")

    @property
    def _events(self) -> int:
        return 2 * self.evaluations

    def _start(self) -> "_Search":
        space = self.space()
        constraint = Constraint("macs", self.ratio * space.graph.macs)
        return _Search(self.make(space, constraint, seed=5), space, constraint)


class _Search:
    """A searcher with what is pending, advanced one ask or one tell at a time."""

    def __init__(self, searcher: Searcher, space: ChannelSpace, constraint: Constraint) -> None:
        self.searcher = searcher
        self.space = space
        self.constraint = constraint
        self.proposals: list[CompressionPolicy] = []
        self._evaluate = AdditiveEvaluator(space.graph, constraint)
        self._pending: deque[CompressionPolicy] = deque()

    def propose(self) -> str:
        """Ask once; the proposal's digest."""
        policy = self.searcher.ask()
        self.proposals.append(policy)
        self._pending.append(policy)
        return policy.digest

    def advance(self, lag: int) -> str | float | None:
        """Ask, or tell the oldest proposal where more than `lag` are pending."""
        if len(self._pending) > lag:
            policy = self._pending.popleft()
            return self.searcher.tell(policy, self._evaluate(policy))
        return self.propose()

    def take_over(self, other: "_Search") -> None:
        """Restore the other's state by way of the formats that it is stored in."""
        arrays, values = other.searcher.state()
        stored = {name: np.copy(array, order="C") for name, array in arrays.items()}
        self.searcher.restore(load(save(stored)), json.loads(json.dumps(values)))
        self._pending = deque(other._pending)


def _equal(first: State, second: State) -> bool:
    """Whether two states are bitwise the same."""
    return (
        first[0].keys() == second[0].keys()
        and all(
            array.dtype == second[0][name].dtype
            and array.shape == second[0][name].shape
            and array.tobytes() == second[0][name].tobytes()
            for name, array in first[0].items()
        )
        and json.dumps(first[1], sort_keys=True) == json.dumps(second[1], sort_keys=True)
    )
