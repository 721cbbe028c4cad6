"""The config of a supernet and its devices: each device's is that of an ordinary run; what is wrong is one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from automl.config import Config, load_config
from automl.errors import InputError
from automl.once_for_all.config import SupernetConfig

BASE: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "supernet": {"training": {"epochs": 2}},
    "search": {"algorithm": "evolution", "evaluations": 10, "options": {"population": 5}},
    "measure": {"backend": "none"},
    "devices": {
        "small": {"budget": {"metric": "macs", "ratio": 0.3}, "search": {"algorithm": "random"}},
        "chip": {
            "budget": [{"metric": "params", "ratio": 0.9}, {"metric": "modelled_latency_s", "ratio": 0.5}],
            "measure": {"accelerator": "bit_fusion"},
            "space": {"weight_bits": [4, 8]},
            "fine_tune": {"epochs": 3},
        },
    },
}


def loaded(*overrides: str) -> SupernetConfig:
    return load_config(BASE, overrides, kind=SupernetConfig)


def test_what_a_device_says_takes_the_place_of_the_same_keys(tmp_path: Path) -> None:
    config = loaded()
    chip = config.of_device("chip", tmp_path)
    assert type(chip) is Config
    assert [each.metric for each in chip.budgets] == ["params", "modelled_latency_s"]
    assert (chip.measure.backend, chip.measure.accelerator) == ("none", "bit_fusion")
    assert (chip.space.weight_bits, chip.fine_tune.epochs, chip.fine_tune.lr) == ([4, 8], 3, config.fine_tune.lr)
    assert chip.search.options == {"population": 5}
    assert chip.supernet is not None
    assert chip.supernet.checkpoint == str(tmp_path)
    assert config.of_device("small").search.options == {}  # those of another algorithm


def test_its_own_budget_is_that_of_devices_without_one() -> None:
    config = loaded("devices.small.budget=null", "budget={metric: macs, ratio: 0.7}")
    small = config.of_device("small").budget
    assert small is not None
    assert small.ratio == 0.7
    assert config.of_training().budgets == ()


def test_it_is_written_and_read_with_its_devices(tmp_path: Path) -> None:
    own = yaml.safe_load((Path(__file__).parents[2] / "configs/accelerators/bit_fusion.yaml").read_text())
    (tmp_path / "chip.yaml").write_text(yaml.safe_dump({**own, "title": "mine"}))
    document = {**BASE, "devices": {"chip": {**BASE["devices"]["chip"], "measure": {"accelerator": "./chip.yaml"}}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(document))
    config = load_config(tmp_path / "config.yaml", kind=SupernetConfig)
    (tmp_path / "chip.yaml").unlink()  # it is remembered as part of the config
    (tmp_path / "copy.yaml").write_text(config.to_yaml())
    again = load_config(tmp_path / "copy.yaml", kind=SupernetConfig)
    assert again == config
    accelerator = again.of_device("chip").measure.accelerator
    assert isinstance(accelerator, dict)
    assert accelerator["title"] == "mine"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("devices.small.budget=null", "device 'small' has no budget; give it 'budget'"),
        ("devices.chip.measure={}", "devices.chip: a budget in modelled_latency_s is that of an accelerator's model"),
        ("devices.chip.search={algoritm: auto}", r"devices.chip: unknown key 'search.algoritm'; did you mean"),
        ("devices.small.bugdet=3", "unknown key 'devices.small.bugdet'; did you mean 'budget'"),
        ("devices={a/b: {budget: {metric: macs, ratio: 0.5}}}", "the name of a device is that of its directory"),
        ("devices.chip.measure.accelerator=./absent.yaml", "absent.yaml' cannot be read"),
        ("supernet=null", "supernet: should be a section"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(override: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        loaded(override)
    assert "\n" not in str(caught.value)
