"""What a supernet's training samples when: phases, the sandwich rule, learning rates."""

from typing import Any

import numpy as np
import pytest

from automl.config_sections import SupernetSection
from automl.supernet.schedule import Schedule
from automl.testing.problems import conv_chain
from search_spaces.channel_space import ChannelSpace
from search_spaces.errors import InputError
from search_spaces.space import Decision, SearchSpace, channel_decisions

SIZES = (16, 24, 32)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    """Resolution, channels and kernels of three convolutions."""
    graph = conv_chain((16, 32, 64))
    channels = ChannelSpace.build(graph, 0.25, 4, [])
    decisions = (
        Decision("resolution", (), tuple((size, size) for size in SIZES)),
        *channel_decisions(channels),
        *(Decision("kernel", (layer.name,), (1, None)) for layer in graph.full_layers[1:3]),
    )
    return SearchSpace(channels, decisions)


def section(**fields: Any) -> SupernetSection:
    return SupernetSection(**{"training": {"epochs": 12, "lr": 0.1}, **fields})


def free(schedule: Schedule, epoch: int) -> set[str]:
    """Dimensions of which something else than the greatest is sampled."""
    below = schedule.lowest(epoch) < schedule.space.greatest
    return {each.dimension for each, samples in zip(schedule.space.decisions, below, strict=True) if samples}


def test_phases_follow_from_the_space_and_free_one_dimension_after_another(space: SearchSpace) -> None:
    schedule = Schedule.of(space, section())
    assert [(phase.name, phase.epochs) for phase in schedule.phases] == [("kernel", 4), ("channels", 8)]
    assert schedule.epochs == 12
    assert free(schedule, 0) == free(schedule, 3) == {"resolution", "kernel"}
    assert free(schedule, 4) == free(schedule, 11) == {"resolution", "kernel", "channels"}


def test_the_cheaper_half_of_channels_waits_for_the_second_half_of_their_phase(space: SearchSpace) -> None:
    schedule = Schedule.of(space, section())
    channels = np.array([each.dimension == "channels" for each in space.decisions])
    assert (schedule.lowest(7)[channels] == space.counts[channels] // 2).all()
    assert (schedule.lowest(8) == 0).all()


def test_what_is_not_free_stays_whole_and_a_step_samples_the_same_again(space: SearchSpace) -> None:
    schedule = Schedule.of(space, section(subnets=3))
    points = [point.tolist() for step in range(40) for point in schedule.points(2, step)]
    assert len(points) == 120
    for column, decision in enumerate(space.decisions):
        seen = {point[column] for point in points}
        whole = {len(decision.choices) - 1}
        assert seen == (whole if decision.dimension == "channels" else set(range(len(decision.choices))))
    again = Schedule.of(space, section(subnets=3))
    other = Schedule.of(space, section(subnets=3, training={"epochs": 12, "seed": 1}))
    assert np.array_equal(schedule.points(2, 7), again.points(2, 7))
    assert not np.array_equal(schedule.points(2, 7), schedule.points(2, 8))
    assert not np.array_equal(schedule.points(2, 7), other.points(2, 7))


def test_the_sandwich_is_the_largest_the_smallest_and_random_ones(space: SearchSpace) -> None:
    schedule = Schedule.of(space, section(method="sandwich", subnets=2))
    assert schedule.epochs == 12
    largest, smallest, *others = schedule.points(0, 0)
    assert (largest == space.greatest).all()
    assert (smallest == space.least).all()
    assert len(others) == 2
    assert free(schedule, 0) == {"resolution", "kernel", "channels"}


def test_named_phases(space: SearchSpace) -> None:
    phases = [{"free": ["channels"], "epochs": 2, "lr": 0.3}, {"free": ["resolution", "kernel"], "epochs": 4}]
    schedule = Schedule.of(space, section(phases=phases))
    assert [(phase.name, phase.epochs, phase.lr) for phase in schedule.phases] == [
        ("channels", 2, 0.3),
        ("resolution+kernel", 4, 0.1),
    ]
    assert free(schedule, 1) == {"channels"}
    assert free(schedule, 2) == {"channels", "resolution", "kernel"}


def test_the_learning_rate_rises_and_falls_in_every_phase(space: SearchSpace) -> None:
    schedule = Schedule.of(space, section())
    rates = [schedule.rate(epoch, step, 10) for epoch in range(12) for step in range(10)]
    for phase in (rates[:40], rates[40:]):
        assert max(phase) == phase[10] == 0.1
        assert phase[:10] == sorted(phase[:10])
        assert phase[10:] == sorted(phase[10:], reverse=True)
        assert phase[-1] < 0.001


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"phases": [{"free": ["depth"], "epochs": 1}]}, "frees 'depth', of which the space has no choice"),
        ({"phases": [{"free": ["kernel"], "epochs": 1}]}, "no phase of the supernet frees 'channels'"),
        (
            {"phases": [{"free": ["kernel", "channels"], "epochs": 1}, {"free": ["kernel"], "epochs": 1}]},
            "free 'kernel' 2 times",
        ),
        (
            {"training": {"epochs": 1}},
            r"supernet.training.epochs is at least 2, one for each of kernel, channels, got 1",
        ),
    ],
)
def test_nonsense_is_refused_in_one_line(space: SearchSpace, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        Schedule.of(space, section(**fields))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"method": "sandwich", "phases": [{"free": ["depth"], "epochs": 1}]},
            "phases are those of method 'progressive'",
        ),
        ({"phases": [{"free": ["width"], "epochs": 1}]}, "a phase frees some of resolution, kernel, depth, channels"),
        ({"workers": 40}, "batch_size is at least two images for each of 40 workers, got 64"),
    ],
)
def test_the_section_refuses_what_makes_no_sense_anywhere(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        section(**fields)
