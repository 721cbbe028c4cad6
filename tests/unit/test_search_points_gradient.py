"""Searches by gradient, once the logits are trained: `test_architecture.py` is about the training."""

from collections.abc import Sequence

import numpy as np
import pytest

from automl.searchers import make_searcher
from automl.searchers.points.base import PointProblem, PointSearcher
from automl.searchers.points.gradient import Gradient
from automl.testing.points import AdditiveAccuracy, PointSearcherConformance, elastic_space, small_space
from automl.testing.problems import cifar_resnet
from backends.layer_prices import FloatArray
from backends.point_prices import PointPrices
from search_spaces.building import SpaceOptions, build_space
from search_spaces.errors import InputError
from search_spaces.objective import Constraint, Evaluation
from search_spaces.space import SearchSpace


def logits_of(space: SearchSpace, seed: int = 0, scale: float = 1.0) -> list[FloatArray]:
    """What training might come to: the more is left of a decision, the likelier."""
    losses = AdditiveAccuracy(space, seed).losses
    return [-scale * 10.0 * loss / sum(each[0] for each in losses) for loss in losses]


class TestGradient(PointSearcherConformance):
    evaluations = 24
    ratios = (0.5, 0.5)

    def space(self) -> tuple[SearchSpace, PointPrices]:
        return elastic_space()

    def make(self, problem: PointProblem) -> PointSearcher:
        return Gradient(problem, logits=logits_of(problem.space, seed=1))


def half(space: SearchSpace, prices: PointPrices, evaluations: int = 32, seed: int = 0) -> PointProblem:
    return PointProblem(space, (Constraint("macs", 0.5 * space.graph.macs),), prices, seed, evaluations)


def every(counts: Sequence[int]) -> FloatArray:
    return np.array(list(np.ndindex(*counts)), dtype=np.int64)


def test_the_first_proposal_is_the_most_probable_point_within_the_budget() -> None:
    space = build_space(cifar_resnet(8), SpaceOptions(lower_bound=0.75))
    problem = half(space, PointPrices(space))
    problem = PointProblem(space, (Constraint("macs", 0.8 * space.graph.macs),), problem.prices, 0, 40)
    logits = logits_of(space)
    first = space.encode(Gradient(problem, logits=logits).ask())
    points = every(space.counts.tolist())
    kept = points[problem.kept(points)]
    scores = sum(each[kept[:, number]] for number, each in enumerate(logits))
    assert (first == kept[int(np.argmax(scores))]).all()


def test_draws_follow_the_distributions_and_then_the_best_result() -> None:
    """Sharp ones leave no doubt. Near the end most proposals share all but a few choices with the best."""
    space, prices = elastic_space()
    sharp = Gradient(half(space, prices), logits=logits_of(space, scale=100.0))
    flat = Gradient(half(space, prices), logits=[np.zeros(count) for count in space.counts])
    differ = {}
    for name, searcher in (("sharp", sharp), ("flat", flat)):
        accuracy, made = AdditiveAccuracy(space), []
        for _ in range(32):
            policy = searcher.ask()
            made.append(space.encode(policy))
            searcher.tell(policy, Evaluation(accuracy(made[-1]), {}, 0.0, 0.0))
        differ[name] = [float((point != made[0]).mean()) for point in made[1:11]]
        best = max(made[:-8], key=accuracy)
        late = [float((point != best).mean()) for point in made[-8:]]
    assert np.mean(differ["sharp"]) < 0.5 * np.mean(differ["flat"])
    assert np.median(late) < 0.5 * np.mean(differ["flat"])


def test_what_it_cannot_work_with_is_refused_in_one_line() -> None:
    space, prices = elastic_space()
    problem = half(space, prices)
    with pytest.raises(InputError, match="every choice of every decision has a logit"):
        Gradient(problem, logits=logits_of(space)[1:])
    with pytest.raises(RuntimeError, match="trained beforehand"):
        Gradient(problem).ask()
    bits, prices = small_space()
    with pytest.raises(InputError, match=r"not on 'stage0.0.conv1.weight_bits'; leave weight_bits out"):
        Gradient(half(bits, prices))
    for options, rule in (
        ({"batch": 1}, "batch is at least 2, for batch norms, got 1"),
        ({"tau": 0.05}, "tau is at least tau_end, got 0.05"),
        ({"relaxation": "hard"}, "relaxation is one of gumbel, softmax, got 'hard'"),
        ({"lr": 0.0}, "lr is positive, got 0.0"),
    ):
        with pytest.raises(InputError, match=rule):
            make_searcher(
                "gradient", space=space, constraint=problem.constraints, seed=0, evaluations=8, options=options
            )
