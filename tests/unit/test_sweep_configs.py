"""The grid of a sweep: its cells, their names and configs; what is wrong is one line, said before anything is made."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from automl.cli import main
from automl.cli_output import BAD_INPUT
from automl.config import load_config
from automl.errors import InputError
from automl.sweeps.config import load_sweep

BASE: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "budget": {"metric": "macs", "ratio": 0.5},
    "search": {"algorithm": "ddpg", "evaluations": 10, "options": {"warmup": 4}},
    "measure": {"backend": "none"},
}
CHIP = {
    "measure": {"accelerator": "bit_fusion"},
    "space": {"weight_bits": [4, 8], "activation_bits": [8]},
    "budget": {"metric": "energy_j", "limit": 1e-6},
}


def names(axes: Any, *overrides: str) -> list[str]:
    return [cell.name for cell in load_sweep({**BASE, "sweep": axes}, overrides).cells]


def test_there_is_a_cell_for_every_combination_the_last_axis_changing_first() -> None:
    device = {"cpu": {"measure.threads": 2}, "chip": {"measure": CHIP["measure"], "space": CHIP["space"]}}
    axes = {"search.algorithm": ["auto", "ddpg"], "budget.ratio": [0.3, 0.5], "device": device}
    sweep = load_sweep({**BASE, "sweep": {**axes, "search.seeds": [[0], [1, 2]]}})
    assert len(sweep.cells) == 16
    first, second, third, *_ = sweep.cells
    assert first.name == "auto-ratio0.3-cpu-seed0"
    assert second.name == "auto-ratio0.3-cpu-seeds1_2"
    assert third.name == "auto-ratio0.3-chip-seed0"
    assert third.values == {
        "search.algorithm": "auto",
        "budget.ratio": "ratio0.3",
        "device": "chip",
        "search.seeds": "seed0",
    }
    assert second.config.search.seeds == [1, 2]
    assert first.config.measure.threads == 2
    budgets = {(cell.config.budget.metric, cell.config.budget.ratio) for cell in sweep.cells if cell.config.budget}
    assert budgets == {("macs", 0.3), ("macs", 0.5)}


def test_a_section_takes_the_keys_that_are_given_and_a_budget_is_replaced() -> None:
    (cell,) = load_sweep({**BASE, "sweep": {"device": {"chip": CHIP}}}).cells
    assert (cell.config.measure.backend, cell.config.measure.accelerator) == ("none", "bit_fusion")
    assert cell.config.budget is not None
    assert (cell.config.budget.metric, cell.config.budget.ratio, cell.config.budget.limit) == ("energy_j", None, 1e-6)
    document = yaml.safe_load(cell.config.to_yaml())
    assert load_config(document) == cell.config


def test_options_are_those_of_their_algorithm() -> None:
    own = {"grow": {"search.algorithm": "evolution", "search.options": {"population": 5}}, "as_is": {"search.lag": 2}}
    found = {cell.name: cell.config.search.options for cell in load_sweep({**BASE, "sweep": {"how": own}}).cells}
    assert found == {"grow": {"population": 5}, "as_is": {"warmup": 4}}
    cells = load_sweep({**BASE, "sweep": {"search.algorithm": ["ddpg", "auto"]}}).cells
    assert [cell.config.search.options for cell in cells] == [{"warmup": 4}, {}]


@pytest.mark.parametrize(
    ("axis", "values", "expected"),
    [
        ("search.faithful", [True, False], ["faithful", "no_faithful"]),
        ("search.reward", [None, "accuracy"], ["reward_none", "accuracy"]),
        ("space.weight_bits", [[4, 8], [8], []], ["weight_bits4_8", "weight_bit8", "weight_bits"]),
        ("model.checkpoint", ["../a b.safetensors", "b.pt"], ["_a_b.safetensors", "b.pt"]),
        ("compression.seed", [1, 20], ["seed1", "seed20"]),
    ],
)
def test_names_are_readable(axis: str, values: list[Any], expected: list[str]) -> None:
    assert names({axis: values}) == expected


def test_overrides_reach_what_is_common_and_axes() -> None:
    document = {**BASE, "sweep": {"budget.ratio": [0.3, 0.5]}}
    sweep = load_sweep(document, ["search.evaluations=7", "sweep.budget.ratio=[0.25]", "sweep.search.lag=[0, 1]"])
    assert [cell.name for cell in sweep.cells] == ["ratio0.25-lag0", "ratio0.25-lag1"]
    assert sweep.cells[0].config.search.evaluations == 7
    assert document == {**BASE, "sweep": {"budget.ratio": [0.3, 0.5]}}


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**BASE, "sweep": {"model.checkpoint": ["a.pt"]}}))
    (cell,) = load_sweep(tmp_path / "sweep.yaml").cells
    assert cell.config.model.checkpoint == str(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        (None, "'sweep' maps at least one axis to its values, got None"),
        ({}, "'sweep' maps at least one axis"),
        ({"search.lag": 3}, r"sweep.search.lag is a list of values, or a mapping of names .*, got 3"),
        ({"search.lag": []}, "sweep.search.lag has no values; give it at least one"),
        ({"search.lga": [1]}, "cell 'lga1': unknown key 'search.lga'; did you mean 'lag'?"),
        ({"serach.lag": [1]}, "unknown key 'serach'; did you mean 'search'?"),
        ({"model.name.x": ["y"]}, "cell 'y': 'name' is no section, it holds 'lenet5'"),
        ({"search.lag": [1, -1]}, r"cell 'lag-1': search.lag: .* greater than or equal to 0, got -1"),
        ({"search.lag": [1, 1]}, "sweep.search.lag has two values called 'lag1'"),
        ({"search.lag": [1], "compression.x": [{"a": 1}]}, "a mapping has no name; name such values in a mapping"),
        ({"device": {"a": 3}}, "sweep.device.a maps keys of the config to their values, got 3"),
        ({"device": {"a/b": {"search.lag": 1}}}, "a name consists of letters, digits and any of .*, got 'a/b'"),
        ({"device": {"a": {"search.lag": 1}}, "search": {"b": {"search.lag": 2}}}, "'device' and 'search' both set"),
        ({"device": {"a": CHIP}, "budget.limit": [1e-6]}, "'device' and 'budget.limit' both set 'budget.limit'"),
        ({"a": {"x": {"search.lag": 4}, "y": {"search.lag": 4}}}, "the cells 'x' and 'y' are the same run"),
        ({"a": {"x": {"search.lag": 1}, "X": {"search.lag": 2}}}, "two cells are called 'X'"),
        ({"search.evaluations": [*range(1, 1002)]}, "at most 1000 cells, got 1001 = 1001"),
        ({"search.lag": [1], "model.checkpoint": ["x" * 200]}, "the name of a cell is at most 160 long"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_made(
    axes: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=said):
        names(axes)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**BASE, "sweep": axes}))
    assert main(["search", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "out")]) == BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_commands_take_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**BASE, "sweep": {"search.lag": [1]}}))
    assert main(["layers", str(tmp_path / "sweep.yaml")]) == BAD_INPUT
    assert "a config with 'sweep' stands for many runs" in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(BASE))
    assert main(["search", str(tmp_path / "run.yaml"), "--parallel", "2"]) == BAD_INPUT
    assert "this is a single one" in capsys.readouterr().err
