"""The loop with real searchers on a graph whose evaluation is arithmetic: timing and interruptions change nothing."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from automl.errors import InputError, RunStoppedError
from automl.orchestration.search_loop import FAILURES_IN_A_ROW, SearchFailedError, read_snapshot, run_search
from automl.searchers import make_searcher
from automl.searchers.base import Searcher
from automl.searchers.random import RandomSearcher
from automl.testing.problems import AdditiveEvaluator, conv_chain
from backends.operator_prices import RefusedOperatorError
from envs.channel_pruning import ChannelPruningWalk
from envs.reward import find_reward
from search_spaces.channel_space import ChannelSpace
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy

GRAPH = conv_chain((16, 32, 64), size=16)
BUDGET = Constraint("macs", 0.5 * GRAPH.macs)
EVALUATE = AdditiveEvaluator(GRAPH, BUDGET)
TOTAL = 24


def searcher(name: str) -> Searcher:
    options = {"warmup": 6} if name == "ddpg" else {}
    space = ChannelSpace.build(GRAPH)
    return make_searcher(name, space=space, constraint=BUDGET, seed=3, evaluations=TOTAL, options=options)


class Record:
    """Evaluates at once, remembers everything, and stops the run before the result of proposal `stop_at`."""

    def __init__(self, stop_at: int | None = None, fails: Callable[[int], bool] = lambda number: False) -> None:
        self.policies: dict[int, CompressionPolicy] = {}
        self.rewards: dict[int, float] = {}
        self.snapshot: bytes | None = None
        self.log: list[tuple[str, int]] = []
        self.stop_at = stop_at
        self.fails = fails

    def submit(self, number: int, policy: CompressionPolicy, share: float) -> None:
        self.log.append(("submit", number))
        known = self.policies.setdefault(number, policy)
        assert known.digest == policy.digest

    def result(self, number: int) -> Evaluation:
        if number == self.stop_at:
            raise RunStoppedError("stopped")
        self.log.append(("result", number))
        found = EVALUATE(self.policies[number])
        if self.fails(number):
            return Evaluation(0.0, found.cost, found.violation, 0.0, "boom")
        return found

    def save(self, rewards: Mapping[int, float], snapshot: bytes | None) -> None:
        self.rewards.update(rewards)
        self.snapshot = snapshot or self.snapshot

    def contents(self) -> list[tuple[str, float | None]]:
        return [(self.policies[number].digest, self.rewards.get(number)) for number in sorted(self.policies)]


def run(name: str, record: Record, **changes: Any) -> Record:
    arguments = {"evaluations": TOTAL, "lag": 3, "snapshot": record.snapshot, "snapshot_every": 5, **changes}
    run_search(searcher(name), record, **arguments)
    return record


def test_a_proposal_knows_exactly_the_results_before_its_lag() -> None:
    record = run("random", Record(), lag=3)
    for index, (what, number) in enumerate(record.log):
        if what == "submit":
            assert [n for w, n in record.log[:index] if w == "result"] == list(range(max(0, number - 3)))


def test_what_the_searcher_itself_takes_is_told_of_every_proposal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def taking(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any) -> Any:
            clock[0] += seconds
            return function(*arguments)

        return slow

    thinker, told = searcher("random"), dict[int, float]()
    thinker.ask, thinker.tell = taking(1.0, thinker.ask), taking(2.0, thinker.tell)  # type: ignore[method-assign]
    record = Record()
    record.result = taking(60.0, record.result)  # type: ignore[method-assign]
    monkeypatch.setattr("automl.orchestration.search_loop.perf_counter", lambda: clock[0])
    run_search(thinker, record, evaluations=TOTAL, lag=3, snapshot_every=5, thought=told.update)
    assert told == dict.fromkeys(range(TOTAL), 3.0)


@pytest.mark.parametrize("lag", [0, 1, 100])
def test_every_proposal_is_evaluated_once_whatever_the_lag(lag: int) -> None:
    record = run("random", Record(), lag=lag)
    assert sorted(number for what, number in record.log if what == "submit") == list(range(TOTAL))
    assert sorted(record.rewards) == list(range(TOTAL))


@pytest.mark.parametrize("name", ["ddpg", "random"])
def test_stopping_anywhere_and_going_on_changes_nothing(name: str) -> None:
    whole = run(name, Record()).contents()
    assert len(whole) == TOTAL
    for stop_at in range(0, TOTAL, 1 if name == "random" else 5):
        record = Record(stop_at)
        with pytest.raises(RunStoppedError):
            run(name, record)
        record.stop_at = None
        assert run(name, record).contents() == whole


@pytest.mark.parametrize("name", ["ddpg", "random"])
def test_a_kill_loses_nothing_but_what_came_after_the_snapshot(name: str) -> None:
    """Killed, a search has its last regular snapshot only; results that came later are in the store."""
    whole = run(name, Record()).contents()
    for killed_at in (2, 9, 17, 23):
        record = Record(killed_at)
        before_stop: list[bytes | None] = []
        save = record.save

        def remember(
            rewards: Mapping[int, float], snapshot: bytes | None, save: Any = save, seen: Any = before_stop
        ) -> None:
            seen.append(snapshot)
            save(rewards, snapshot)

        record.save = remember  # type: ignore[method-assign]
        with pytest.raises(RunStoppedError):
            run(name, record)
        regular = before_stop[:-1]  # the last one is that of the orderly stop
        record.snapshot = regular[-1] if regular else None
        record.stop_at = None
        record.save = save  # type: ignore[method-assign]
        assert run(name, record).contents() == whole


def test_ten_failures_in_a_row_stop_a_search_and_nine_do_not() -> None:
    nine = run("random", Record(fails=lambda number: 5 <= number < 5 + FAILURES_IN_A_ROW - 1))
    assert len(nine.rewards) == TOTAL
    record = Record(fails=lambda number: number >= 5)
    with pytest.raises(SearchFailedError, match="10 evaluations failed in a row, the last with: boom"):
        run("random", record)
    assert max(record.rewards) == 5 + FAILURES_IN_A_ROW - 1


def test_a_search_of_which_every_evaluation_failed_has_failed() -> None:
    with pytest.raises(SearchFailedError, match="its evaluation failed with: boom"):
        run("random", Record(fails=lambda number: True), evaluations=1)
    with pytest.raises(SearchFailedError, match="3 evaluations failed in a row, the last with: boom"):
        run("random", Record(fails=lambda number: True), evaluations=3)


@pytest.mark.parametrize("name", ["ddpg", "random"])
def test_failures_that_ended_a_search_can_be_tried_again(name: str) -> None:
    """No snapshot contains them, so the search goes on as if they had never been."""
    whole = run(name, Record()).contents()
    record = Record(fails=lambda number: number >= 7)
    with pytest.raises(SearchFailedError):
        run(name, record)
    record.fails = lambda number: False
    record.policies = {number: policy for number, policy in record.policies.items() if number < 7}
    assert run(name, record).contents() == whole


def test_a_damaged_snapshot_is_refused_in_one_line() -> None:
    record = Record(12)
    with pytest.raises(RunStoppedError):
        run("ddpg", record)
    assert record.snapshot is not None
    assert read_snapshot(record.snapshot)[1]["told"] == 12
    for length in (0, 5, 100, len(record.snapshot) // 2, len(record.snapshot) - 1):
        with pytest.raises(InputError, match="damaged") as refusal:
            read_snapshot(record.snapshot[:length])
        assert "\n" not in str(refusal.value)


def test_a_flipped_bit_in_a_snapshot_is_refused() -> None:
    """Wherever it is: a search must not go on from what it never was."""
    record = run("evolution", Record(), evaluations=12)
    assert record.snapshot is not None
    read_snapshot(record.snapshot)
    for place in range(8, len(record.snapshot), 97):
        flipped = bytearray(record.snapshot)
        flipped[place] ^= 1
        with pytest.raises(InputError, match="the snapshot of a searcher"):
            read_snapshot(bytes(flipped))


def test_a_snapshot_of_another_searcher_is_refused() -> None:
    record = run("random", Record())
    with pytest.raises(InputError, match="does not fit this search"):
        run("evolution", record)


class Unpriced(Searcher):
    """A searcher whose proposal cannot be priced, half way through it: its generator has moved on by then."""

    def __init__(self, searcher: Searcher, at: int, error: Exception) -> None:
        self.searcher, self.left, self.error = searcher, at, error
        self.tell, self.state, self.restore = searcher.tell, searcher.state, searcher.restore  # type: ignore[method-assign]

    def ask(self) -> CompressionPolicy:
        self.left -= 1
        policy = self.searcher.ask()
        if self.left < 0:
            raise self.error
        return policy

    def tell(self, policy: CompressionPolicy, evaluation: Evaluation) -> float | None: ...
    def state(self) -> Any: ...
    def restore(self, arrays: Any, values: Any) -> None: ...


@pytest.mark.parametrize(
    "error",
    [RunStoppedError("stopped"), RefusedOperatorError("conv2d", "conv2d(...)", ["it crashed", "it crashed"])],
    ids=["stopped", "refused"],
)
@pytest.mark.parametrize("at", [0, 7, 20])
@pytest.mark.parametrize("name", ["random", "ddpg"])
def test_ended_half_way_through_a_proposal_and_resumed_equals_uninterrupted(
    name: str, at: int, error: Exception
) -> None:
    whole = run(name, Record())
    record = Record()
    with pytest.raises(type(error)):
        run_search(Unpriced(searcher(name), at, error), record, evaluations=TOTAL, lag=3, snapshot_every=5)
    assert len(record.policies) == at
    run(name, record)
    assert record.contents() == whole.contents()


class Halving(RandomSearcher):
    """Every other proposal on a quarter of the images, and content after nine results."""

    told, content = 0, 1000

    def ask(self) -> CompressionPolicy:
        self.share = 1.0 if self.share == 0.25 else 0.25
        return super().ask()

    def tell(self, policy: CompressionPolicy, evaluation: Evaluation) -> float:
        self.told += 1
        self.finished = self.told >= self.content
        return super().tell(policy, evaluation)


def test_parts_of_the_images_count_as_such_and_a_content_searcher_ends() -> None:
    walk = ChannelPruningWalk(ChannelSpace.build(GRAPH), BUDGET)
    record = Record()
    searching = Halving(walk, find_reward("accuracy", "resource"), 0)
    run_search(searching, record, evaluations=5, lag=2)
    assert len(record.policies) == searching.told == 8  # 4 whole ones and 4 quarters are 5
    searching = Halving(walk, find_reward("accuracy", "resource"), 0)
    searching.content = 4
    record = Record()
    run_search(searching, record, evaluations=100, lag=2)
    assert len(record.policies) == searching.told == 4 + 2  # two were under way
