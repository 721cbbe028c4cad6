"""Global selection against a straightforward loop, and its promises on random scores."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.compression.global_selection import COUNTED, global_policy, keep_most_important
from automl.compression.selection import score_across, score_units
from automl.testing.importance import probe_inputs, probe_network
from automl.testing.problems import cifar_resnet, conv_chain
from search_spaces.channel_space import ChannelSpace
from search_spaces.errors import InputError

GRAPH = cifar_resnet(8)


def random_scores(seed: int, levels: int = 1000) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {group.name: generator.integers(levels, size=group.width).astype(float) for group in GRAPH.groups}


def cost(kept: tuple[int, ...], of: str) -> float:
    return sum(kept) if of == "units" else getattr(GRAPH.with_kept(kept), of)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1000),
    ratio=st.floats(0.3, 1.0),
    of=st.sampled_from(COUNTED),
    round_to=st.sampled_from([None, 1, 3]),
    levels=st.sampled_from([2, 1000]),
)
def test_against_removing_one_unit_after_the_other(
    seed: int, ratio: float, of: str, round_to: int | None, levels: int
) -> None:
    space = ChannelSpace.build(GRAPH, 0.1, round_to, ["stem"])
    scores = random_scores(seed, levels)
    kept = keep_most_important(space, scores, ratio, of)
    units = [(scores[group.name][unit], -index, -unit) for index, group in enumerate(GRAPH.groups)
             for unit in range(group.width)]  # fmt: skip
    left = [group.width for group in GRAPH.groups]
    allowed = tuple(left)
    for _, index, _ in sorted(units):
        if cost(allowed, of) <= ratio * cost(tuple(group.width for group in GRAPH.groups), of):
            break
        left[-index] -= 1
        allowed = tuple(min(c for c in space.choices(i) if c >= count) for i, count in enumerate(left))
    assert kept == allowed
    assert all(count in space.choices(index) for index, count in enumerate(kept))
    assert kept[0] == GRAPH.groups[0].width  # protected


def test_a_ratio_of_one_keeps_everything() -> None:
    space = ChannelSpace.build(GRAPH)
    assert keep_most_important(space, random_scores(0), 1.0) == tuple(group.width for group in GRAPH.groups)


def test_a_worthless_group_goes_first_but_never_whole() -> None:
    graph = conv_chain((16, 32, 64))
    space = ChannelSpace.build(graph, 0.01, 1)
    scores = {group.name: np.ones(group.width) + np.arange(group.width) / 100 for group in graph.groups}
    scores["conv1"] = np.zeros(32)
    assert keep_most_important(space, scores, 81 / 112, "units") == (16, 1, 64)
    assert keep_most_important(space, scores, 3 / 112, "units") == (1, 1, 1)


def test_policies_of_a_network_are_within_the_ratio_and_deterministic() -> None:
    inputs = probe_inputs(probe_network())
    space = ChannelSpace.build(inputs.network.graph, 0.1, 1)
    for importance in ("magnitude", "l1", "l2", "batch_norm_scale", "taylor", "geometric_median", "random"):
        policy = global_policy(space, inputs, importance, 0.5)
        graph = inputs.network.graph.apply(policy)
        assert graph.macs <= 0.5 * inputs.network.graph.macs
        assert policy.digest == global_policy(space, probe_inputs(probe_network()), importance, 0.5).digest
        assert policy.model == inputs.network.graph.digest


def test_scales_across_groups() -> None:
    inputs = probe_inputs(probe_network())
    for name, score in score_across(inputs, "taylor").items():
        assert np.linalg.norm(score) == pytest.approx(1.0), name
    for name, score in score_across(inputs, "l2").items():
        assert score.mean() == pytest.approx(1.0), name
    for name, score in score_across(inputs, "batch_norm_scale").items():
        np.testing.assert_array_equal(score, score_units(inputs, "batch_norm_scale")[name])


def test_what_cannot_be_is_refused() -> None:
    space = ChannelSpace.build(GRAPH, 0.5)
    scores = random_scores(0)
    for ratio in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(InputError, match=r"the global ratio lies in \(0, 1\], got"):
            keep_most_important(space, scores, ratio)
    with pytest.raises(InputError, match=r"one of macs, params, weight_bytes, units, got 'mac'; did you mean 'macs'\?"):
        keep_most_important(space, scores, 0.5, "mac")
    with pytest.raises(InputError, match=r"keeps 0.05 of the macs, the cheapest keeps 0\.2\d+; raise the ratio"):
        keep_most_important(space, scores, 0.05)
    for wrong in ({**scores, "stem": np.ones(3)}, {**scores, "stem": np.full(16, np.inf)}):
        with pytest.raises(InputError, match="one finite number for each of the 16 units of group 'stem', there is"):
            keep_most_important(space, wrong, 0.5)


def test_groups_without_scores_stay_whole() -> None:
    scores = {name: score for name, score in random_scores(0).items() if name != "stem"}
    with pytest.raises(InputError, match=r"group 'stem' cannot be ranked; choose another importance, or leave the"):
        keep_most_important(ChannelSpace.build(GRAPH, 0.5), scores, 0.9)
    guarded = ChannelSpace.build(GRAPH, 0.5, protect=["stem"])
    kept = keep_most_important(guarded, scores, 0.9)
    stem = [group.name for group in GRAPH.groups].index("stem")
    assert kept[stem] == GRAPH.groups[stem].width
    assert kept != tuple(group.width for group in GRAPH.groups)


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    inputs = probe_inputs(probe_network())
    global_policy(ChannelSpace.build(inputs.network.graph, 0.1, 1), inputs, "random", 0.6)
    assert torch.equal(torch.get_rng_state(), before)
