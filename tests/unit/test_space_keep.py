"""Shares of channels in place of a grid: which numbers they are, and that searches and walks come to them."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from automl.config_sections import SpaceSection
from automl.searchers import make_searcher
from automl.searchers.base import Searcher
from automl.searchers.points.auto import Auto
from automl.searchers.points.base import PointProblem, PointSearcher
from automl.searchers.points.evolution import Evolution
from automl.testing.points import PointSearcherConformance
from automl.testing.problems import cifar_resnet, conv_chain
from automl.testing.searchers import SearcherConformance
from backends.point_prices import PointPrices
from envs.budget import PublishedBounding
from envs.channel_pruning import ChannelPruningWalk
from search_spaces.building import SpaceOptions, build_space
from search_spaces.channel_space import ChannelSpace
from search_spaces.errors import InputError
from search_spaces.objective import Constraint
from search_spaces.space import SearchSpace

GRAPH = conv_chain((12, 18, 31))
SPACE = ChannelSpace.build(GRAPH, keep=(0.6667, 0.5, 0.25))


def joint_space() -> tuple[SearchSpace, PointPrices]:
    space = build_space(
        cifar_resnet(8), SpaceOptions(keep=(0.25, 0.45, 0.6, 0.7), weight_bits=(2, 4, 8), activation_bits=(4, 8))
    )
    return space, PointPrices(space)


@pytest.mark.slow
class TestAuto(PointSearcherConformance):
    divergences = True
    evaluations = 8

    def make(self, problem: PointProblem) -> PointSearcher:
        return Auto(problem)

    def space(self) -> tuple[SearchSpace, PointPrices]:
        return joint_space()


class TestEvolution(PointSearcherConformance):
    def make(self, problem: PointProblem) -> PointSearcher:
        return Evolution(problem)

    def space(self) -> tuple[SearchSpace, PointPrices]:
        return joint_space()


class TestDDPG(SearcherConformance):
    evaluations = 8

    def make(self, space: ChannelSpace, constraint: Constraint, seed: int) -> Searcher:
        return make_searcher(
            "ddpg", space=space, constraint=constraint, seed=seed, evaluations=8, options={"warmup": 4, "batch": 8}
        )

    def space(self) -> ChannelSpace:
        return ChannelSpace.build(cifar_resnet(8), keep=(0.5, 0.6667))


def test_they_are_rounded_to_the_nearest_number_of_units() -> None:
    assert [SPACE.choices(group) for group in range(3)] == [(3, 6, 8, 12), (5, 9, 12, 18), (8, 16, 21, 31)]
    assert (SPACE.least, SPACE.lower_bound) == ((3, 5, 8), 0.25)


def test_one_unit_stays_and_equal_numbers_are_one_choice() -> None:
    space = ChannelSpace.build(conv_chain((2, 30)), keep=(0.01, 0.1, 0.5, 1.0))
    assert [space.choices(group) for group in range(2)] == [(1, 2), (1, 3, 15, 30)]


def test_protected_groups_stay_whole() -> None:
    space = ChannelSpace.build(GRAPH, protect=[GRAPH.groups[1].name], keep=(0.5,))
    assert [space.choices(group) for group in range(3)] == [(6, 12), (18,), (16, 31)]


def test_what_protects_channels_says_nothing_of_bits() -> None:
    def quantised(**options: Any) -> set[str]:
        protect = [group.name for group in GRAPH.groups[1:]]
        space = build_space(GRAPH, SpaceOptions(protect=protect, weight_bits=(4, 8), ends=True, **options))
        return {name for each in space.decisions if each.dimension == "weight_bits" for name in each.targets}

    every = {layer.name for layer in GRAPH.full_layers}
    second = GRAPH.full_layers[1].name
    assert quantised() == every
    assert quantised(layers=(second,)) == {second}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": [0.5, 0.0]}, "shares of channels in \\(0, 1\\], got 0.0"),
        ({"keep": [0.5], "round_to": 8}, "got round_to 8 as well; remove one"),
        ({"keep": [0.5], "lower_bound": 0.4}, "got lower_bound 0.4 as well; remove one"),
        ({"keep": [1.0]}, "nothing is left to prune"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        ChannelSpace.build(GRAPH, **arguments)
    assert "\n" not in str(refusal.value)


def test_a_config_says_them() -> None:
    assert SpaceOptions(**SpaceSection(keep=[0.5]).model_dump()).keep == [0.5]
    with pytest.raises(ValidationError, match="keep"):
        SpaceSection(keep=[1.5])


proposals = st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3)


@settings(max_examples=60)
@given(proposals, st.floats(0.0, 1.0), st.booleans())
def test_a_walk_comes_to_allowed_numbers(ratios: list[float], position: float, bounded: bool) -> None:
    """Bounded, it stays within the budget; free, each group comes to what is nearest to the proposal."""
    least, whole = GRAPH.with_kept(SPACE.least).macs, GRAPH.macs
    constraint = Constraint("macs", least + position * (whole - least))
    walk = ChannelPruningWalk(SPACE, constraint, mode="resource" if bounded else "accuracy")
    for ratio in ratios:
        walk.keep(ratio)
    for group, units in enumerate(walk.kept()):
        assert units in SPACE.choices(group)
    if bounded:
        assert GRAPH.with_kept(walk.kept()).macs <= constraint.limit
        return
    for group, ratio in zip(walk.order, ratios, strict=True):
        wanted = ratio * GRAPH.groups[group].width
        assert abs(walk.kept()[group] - wanted) == min(abs(units - wanted) for units in SPACE.choices(group))


@settings(max_examples=60)
@given(st.floats(0.0, 1.0), st.integers(0, 2))
def test_the_published_bounding_goes_up_to_the_next_allowed_number(ratio: float, group: int) -> None:
    units = PublishedBounding(SPACE, None).units(np.array(SPACE.whole, dtype=np.float64), group, ratio)
    width = GRAPH.groups[group].width
    assert units == min(each for each in SPACE.choices(group) if each >= round(width * max(ratio, 0.25)))
