"""Searchers and a region whose evaluations always fail."""

from collections import deque

import numpy as np
import numpy.typing as npt
import pytest

from automl.searchers import make_searcher
from automl.searchers.points.failures import WITNESSES, Failures, around
from automl.testing.points import AdditiveAccuracy, small_space
from automl.testing.problems import conv_chain
from search_spaces.channel_space import ChannelSpace
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy
from search_spaces.space import SearchSpace

COUNTS = np.array([3, 2, 4])
POINTS = [np.array(point) for point in np.ndindex(*COUNTS.tolist())]
NO_CHOICE = np.arange(4) >= COUNTS[:, None]


def causes(points: list[npt.NDArray[np.int64]], failed: list[bool]) -> npt.NDArray[np.bool_]:
    """What is known after these evaluations, and by one that takes over in the middle."""
    whole, first, second = (Failures(COUNTS) for _ in range(3))
    for number, (point, outcome) in enumerate(zip(points, failed, strict=True)):
        whole.add(point, outcome)
        if number == len(points) // 2:
            second.restore(first.points, first.innocent)
        (first if number < len(points) // 2 else second).add(point, outcome)
    assert (second.causes == whole.causes).all()
    return whole.causes


def test_the_fewest_choices_that_explain_the_failures_are_found() -> None:
    """Two of one decision and one of another, of all points of a space."""
    wrong = NO_CHOICE.copy()
    wrong[[0, 2, 2], [1, 0, 3]] = True
    failed = [bool(wrong[np.arange(3), point].any()) for point in POINTS]
    assert (causes(POINTS, failed) == wrong).all()


def test_points_are_led_around_causes_to_the_nearest_other_choice() -> None:
    wrong = NO_CHOICE.copy()
    wrong[[0, 0, 1, 1, 2, 2], [1, 2, 0, 1, 0, 1]] = True
    assert around(np.array([2, 0, 0]), wrong).tolist() == [0, 0, 2]  # of the second decision there is no other


def test_what_succeeded_once_is_no_cause() -> None:
    """Pairs of choices that fail together only are left to the search."""
    assert not causes(POINTS, [bool(point[0] == 0 and point[2] == 1) for point in POINTS])[~NO_CHOICE].any()


def test_few_failures_are_chance() -> None:
    points = [np.array([0, 0, number]) for number in range(WITNESSES)] + [np.array([1, 1, 3])]
    assert not causes(points, [number < WITNESSES - 1 for number in range(len(points))])[~NO_CHOICE].any()
    assert causes(points, [number < WITNESSES for number in range(len(points))])[~NO_CHOICE].sum() == 1
    assert not causes([], [])[~NO_CHOICE].any()


def test_where_nothing_succeeded_nothing_is_known() -> None:
    assert not causes(POINTS, [True] * len(POINTS))[~NO_CHOICE].any()


def test_agents_take_failures_for_no_better_than_their_worst_result() -> None:
    """Also where the metric is a loss, which is negated: a failed evaluation's accuracy of 0 would be the best."""
    graph = conv_chain((16, 32), size=16)
    searcher = make_searcher(
        "ddpg", space=ChannelSpace.build(graph), constraint=Constraint("macs", 0.5 * graph.macs), seed=0, evaluations=40
    )
    outcomes = [(-0.5, None), (-0.25, None), (0.0, "NaN"), (-0.75, None), (0.0, "NaN")]
    rewards = [searcher.tell(searcher.ask(), Evaluation(value, {}, 0.0, 0.0, error)) for value, error in outcomes]
    assert rewards == [-0.5, -0.25, -0.5, -0.75, -0.75]


def failures(name: str, evaluations: int = 48, lag: int = 3, channels: bool = False) -> npt.NDArray[np.bool_]:
    """Which proposals of a search fail: those whose first decision takes one of its larger choices, [evaluations].

    Larger choices are where the searchers go by themselves.
    """
    if channels:
        space = SearchSpace.of_channels(ChannelSpace.build(conv_chain((16, 32, 64), size=16)))
        constraint, prices = Constraint("macs", 0.5 * space.graph.macs), None
    else:
        space, prices = small_space()
        constraint = Constraint("weight_bytes", 0.15 * space.graph.weight_bytes)
    searcher = make_searcher(name, space=space, constraint=constraint, seed=0, evaluations=evaluations, prices=prices)
    accuracy = AdditiveAccuracy(space)
    pending: deque[CompressionPolicy] = deque()
    failed: list[bool] = []
    while len(failed) < evaluations:
        pending.append(searcher.ask())
        if len(pending) > lag:
            policy = pending.popleft()
            point = space.encode(policy)
            failed.append(bool(point[0] > (space.counts[0] - 1) // 2))
            reason = "FloatingPointError: the compressed network answers NaN or infinity" if failed[-1] else None
            searcher.tell(policy, Evaluation(0.0 if reason else accuracy(point), {}, 0.0, 0.0, reason))
    return np.array(failed)


def test_an_agent_avoids_a_region_that_always_fails() -> None:
    """It is random for a tenth of the search only, and fails less than half as often later as random policies do."""
    chance = failures("random", channels=True).mean()
    assert chance > 0.3
    assert failures("ddpg", channels=True)[16:].mean() < 0.5 * chance


@pytest.mark.parametrize("name", ["evolution", "nsga2", "annealing", "greedy", "tpe"])
def test_a_region_that_always_fails_is_avoided(name: str) -> None:
    """Far fewer of a search's last third fail than of its first."""
    first, _, last = failures(name).reshape(3, -1).mean(axis=1)
    assert first > 0.2
    assert last < 0.5 * first


@pytest.mark.parametrize("fails", [False, True])
def test_auto_leaves_out_what_fails(fails: bool) -> None:
    """Two bits for the weights of a large layer, which is what it takes where that does not fail."""
    space, prices = small_space()
    place = [decision.name for decision in space.decisions].index("stage2.0.conv1.weight_bits")
    constraint = Constraint("weight_bytes", 0.15 * space.graph.weight_bytes)
    searcher = make_searcher("auto", space=space, constraint=constraint, seed=0, evaluations=16, prices=prices)
    accuracy = AdditiveAccuracy(space)
    taken: list[bool] = []
    spent = 0.0
    while spent < 16.0 - 1e-6 and not searcher.finished:
        point, spent = space.encode(policy := searcher.ask()), spent + searcher.share
        taken.append(bool(point[place] == 0))
        reason = "FloatingPointError: the compressed network answers NaN or infinity" if fails and taken[-1] else None
        divergence = None if reason else 1.0 - accuracy(point)
        found = Evaluation(0.0 if reason else accuracy(point), {}, 0.0, 0.0, reason, divergence, searcher.share)
        searcher.tell(policy, found)
    share = np.mean(taken[-len(taken) // 3 :])
    assert share < 0.05 if fails else share > 0.2
