"""Networks measured once, and remembered."""

import json
from pathlib import Path

import pytest

from automl.costs.probes import remembered
from search_spaces.policy import CompressionPolicy

POLICIES = {"baseline": CompressionPolicy(), "half": CompressionPolicy.from_keep({"conv1": 0.5})}


class Clock:
    """Says how long networks take, longer each time."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, policies):
        self.asked += 1
        return {name: float(self.asked + place) for place, name in enumerate(policies)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    return tmp_path / "latency" / "networks"


def test_what_was_measured_first_stands():
    clock = Clock()
    first = remembered(clock, "model", "device")(POLICIES)
    assert remembered(clock, "model", "device")(POLICIES) == first == {"baseline": 1.0, "half": 2.0}
    assert clock.asked == 1


@pytest.mark.parametrize(
    ("model", "device", "policies"),
    [("other", "device", POLICIES), ("model", "other", POLICIES), ("model", "device", {"half": POLICIES["half"]})],
)
def test_another_model_device_or_set_of_networks_is_measured(model, device, policies):
    clock = Clock()
    remembered(clock, "model", "device")(POLICIES)
    remembered(clock, model, device)(policies)
    assert clock.asked == 2


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"baseline": 1}', '{"baseline": -1, "half": 1}', '{"baseline": "x"}']
)
def test_a_damaged_figure_is_measured_again(cache, content):
    clock = Clock()
    remembered(clock, "model", "device")(POLICIES)
    (file,) = cache.iterdir()
    file.write_text(content)
    assert remembered(clock, "model", "device")(POLICIES) == {"baseline": 2.0, "half": 3.0}
    assert json.loads(file.read_text()) == {"baseline": 2.0, "half": 3.0}
