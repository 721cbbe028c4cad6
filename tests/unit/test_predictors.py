"""Accuracy predictors: what they see of a point, and what they learn."""

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch

from automl.models import build_model
from automl.predictors import PREDICTORS, make_predictor
from automl.predictors.boosted import BoostedOptions
from automl.predictors.encoding import OPEN, Encoding, encoded
from automl.predictors.mlp import Mlp, MlpOptions
from automl.predictors.quality import quality
from automl.predictors.samples import Sample
from automl.predictors.treated import Treated
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy
from search_spaces.space import ELASTIC, SearchSpace


@cache
def graph() -> ModelGraph:
    model = build_model("resnet20", {}, classes=10, input_shape=(3, 32, 32), seed=0)
    return PrunableNetwork(model.eval(), torch.zeros(1, 3, 32, 32)).graph


@cache
def space() -> SearchSpace:
    """Depth, channels and kernels of ResNet-20."""
    return build_space(graph(), SpaceOptions(depth=1, kernel=(1,), lower_bound=0.5, round_to=8))


def drawn(count: int, seed: int, of: SearchSpace | None = None) -> npt.NDArray[np.int64]:
    generator = np.random.default_rng(seed)
    return np.array([(of or space()).sample(generator) for _ in range(count)])


class Truth:
    """An accuracy with main effects, pairs of decisions that act together, and a bend; what is inactive is nothing."""

    def __init__(self, of: SearchSpace, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self._space = of
        self._losses = [
            np.append(np.cumsum(generator.exponential(size=len(each.choices) - 1))[::-1], 0.0)
            * (generator.random() if each.dimension in ELASTIC else 0.2)
            for each in of.decisions
        ]
        self._pairs = generator.normal(size=(len(of.counts),) * 2) * (generator.random((len(of.counts),) * 2) < 0.05)

    def __call__(self, points: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        lost = np.stack([loss[points[:, place]] for place, loss in enumerate(self._losses)], axis=1)
        lost = lost * self._space.depths.active(points) / sum(loss[0] for loss in self._losses)
        together = np.einsum("pi,ij,pj->p", lost, self._pairs, lost)
        found: npt.NDArray[np.float64] = 0.9 - 0.4 * (lost.sum(axis=1) + together) ** 1.5
        return found


def test_an_encoding_says_which_choices_were_at_least_taken_and_nothing_of_what_is_left_out() -> None:
    encoding = Encoding(space())
    greatest, least = space().greatest, space().least
    assert encoding(greatest[None]).tolist() == [[1.0] * encoding.width]
    active = space().depths.active(least[None])[0].tolist()
    assert 0 < sum(active) < len(active)
    unary = [[float(acts)] + [0.0] * (count - 1) for acts, count in zip(active, space().counts, strict=True)]
    assert encoding(least[None])[0].tolist() == [feature for own in unary for feature in own]
    point = least.copy()
    point[-1] = OPEN
    closed = least.copy()
    closed[-1] = greatest[-1]
    np.testing.assert_array_equal(encoding(point[None]), encoding(closed[None]))


def test_points_of_one_policy_have_one_encoding() -> None:
    points = drawn(20, 3)
    canonical = np.array([space().canonical(point) for point in points])
    assert (points != canonical).any()
    np.testing.assert_array_equal(Encoding(space())(points), Encoding(space())(canonical))


@pytest.mark.parametrize("kind", PREDICTORS)
def test_each_ranks_what_it_has_not_seen_the_same_way_every_time(kind: str) -> None:
    truth = Truth(space())
    points, others = drawn(300, 1), drawn(100, 2)
    found = truth(points)
    first, second, another = (make_predictor(kind, space()) for _ in range(3))
    generator, threads = torch.get_rng_state(), torch.get_num_threads()
    for predictor, seed in ((first, 0), (second, 0), (another, 1)):
        predictor.fit(points, found, seed)
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() == threads
    predicted = first.predict(others)
    assert quality(predicted, truth(others)).spearman > 0.85
    np.testing.assert_array_equal(second.predict(others), predicted)
    assert (another.predict(others) != predicted).any()


@cache
def space_with_bits() -> SearchSpace:
    options = SpaceOptions(depth=1, lower_bound=0.5, round_to=8, weight_bits=(3, 4, 6, 8), activation_bits=(4, 8))
    return build_space(graph(), options)


@pytest.mark.parametrize("left", [OPEN, None])
def test_networks_in_float32_teach_about_quantised_ones(left: int | None) -> None:
    """A few of these beside many of those rank better than twice as many alone, and those still as their own do.

    What has no bits is open, or a choice of the space.
    """
    of = space_with_bits()
    truth = Truth(of)
    elastic = np.array([each.dimension in ELASTIC for each in of.decisions])
    quantised, others = drawn(60, 1, of), drawn(200, 2, of)
    whole = np.where(elastic, drawn(300, 3, of), of.greatest)
    points, known = whole if left is None else np.where(elastic, whole, left), truth(whole)
    found, expected = truth(quantised), truth(others)
    alone, architecture = Mlp(of), Mlp(of)
    alone.fit(quantised, found, 0)
    architecture.fit(points, known, 0)
    together, untreated = Treated(of, Mlp(of)), Treated(of, Mlp(of))
    together.fit(np.concatenate([points, quantised[:30]]), np.concatenate([known, found[:30]]), 0)
    anew, transferred = (quality(each.predict(others), expected).spearman for each in (alone, together))
    assert transferred > anew + 0.05
    untreated.fit(points, known, 0)
    np.testing.assert_allclose(untreated.predict(points), architecture.predict(points), atol=1e-6)


def test_what_a_choice_costs_is_found_from_few_networks() -> None:
    """Losses that multiply, of an architecture that is always the same: two choices that break it are told at once."""
    of = space_with_bits()
    bits = [place for place, each in enumerate(of.decisions) if each.dimension == "weight_bits"]
    growth = np.zeros(len(of.counts))
    growth[bits[::3]] = 0.7
    points = np.tile(of.greatest, (40, 1))
    points[:, bits] = np.random.default_rng(0).integers(2, 4, (40, len(bits)))
    predictor = Treated(of, Mlp(of))
    predictor.fit(points, 1.0 - 0.1 * np.exp((points < of.greatest) @ growth), 0)
    each = np.tile(of.greatest, (len(bits), 1))
    each[np.arange(len(bits)), bits] = 2
    lost = predictor.predict(of.greatest[None])[0] - predictor.predict(each)
    assert lost[::3].min() > 3.0 * np.delete(lost, np.s_[::3]).max()
    assert (lost >= 0.0).all()


@pytest.mark.parametrize("transferred", [False, True])
def test_one_treated_sample_is_enough_to_learn_from(transferred: bool) -> None:
    of = space_with_bits()
    elastic = np.array([each.dimension in ELASTIC for each in of.decisions])
    points = np.concatenate([np.where(elastic, drawn(3, 1, of), OPEN)[: 3 * transferred], drawn(1, 2, of)])
    predictor = Treated(of, Mlp(of))
    predictor.fit(points, np.full(len(points), 0.25), 0)
    assert predictor.predict(points[-1:]) == pytest.approx([0.25], abs=0.05)


@pytest.mark.parametrize("kind", PREDICTORS)
def test_one_sample_and_equal_ones_are_enough_to_learn_from(kind: str) -> None:
    predictor = make_predictor(kind, space())
    for count in (1, 5):
        predictor.fit(drawn(count, 1), np.full(count, 0.25), 0)
        assert predictor.predict(drawn(3, 2)) == pytest.approx([0.25] * 3, abs=0.05)


def test_quality_by_hand() -> None:
    found = quality(np.array([0.1, 0.2, 0.4, 0.3]), np.array([0.1, 0.2, 0.3, 0.4]))
    assert (found.count, found.spearman, found.kendall) == (4, pytest.approx(0.8), pytest.approx(4 / 6))
    assert found.rmse == pytest.approx((0.02 / 4) ** 0.5)
    assert quality(np.ones(3), np.arange(3.0)).spearman == 0.0
    with pytest.raises(InputError, match="at least 3"):
        quality(np.ones(2), np.ones(2))


def test_samples_are_points_of_the_space() -> None:
    points = drawn(5, 1)
    samples = [Sample(space().decode(point), float(number) / 7) for number, point in enumerate(points)]
    found, accuracies = encoded(space(), samples)
    np.testing.assert_array_equal(found, [space().canonical(point) for point in points])
    assert accuracies.tolist() == [sample.accuracy for sample in samples]


def test_samples_that_say_nothing_of_bits_leave_them_open_and_those_of_other_spaces_out() -> None:
    with_bits = space_with_bits()
    architecture = with_bits.elastic
    point = architecture.sample(np.random.default_rng(0))
    samples = [
        Sample(architecture.decode(point), 0.5),
        Sample(CompressionPolicy.from_keep({"conv1": 1 / 16}), 0.4),
    ]
    found, accuracies = encoded(with_bits, samples)
    elastic = np.array([each.dimension in ELASTIC for each in with_bits.decisions])
    assert 0 < elastic.sum() < len(elastic)
    np.testing.assert_array_equal(found[0, elastic], architecture.canonical(point))
    assert (found[0, ~elastic] == OPEN).all()
    assert accuracies.tolist() == [0.5]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'mlp'"):
        make_predictor("mpl", space())
    for options in ({"members": 0}, {"lr": 0.0}):
        with pytest.raises(InputError, match="mlp: "):
            MlpOptions(**options)  # type: ignore[arg-type]
    for options in ({"trees": 0}, {"share": 1.5}):
        with pytest.raises(InputError, match="boosted: "):
            BoostedOptions(**options)  # type: ignore[arg-type]
