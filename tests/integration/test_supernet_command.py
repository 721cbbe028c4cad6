"""`trimtab supernet`: what it refuses at once, what it leaves out, and that a killed one ends as if it had not been."""

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from latency_fakes import fake_prices
from run_processes import start, trimtab, wait_until
from safetensors.torch import load_file

from automl.cli import main
from automl.cli_output import BAD_INPUT, DONE
from automl.config import load_config
from automl.once_for_all.config import SupernetConfig
from automl.once_for_all.directory import SupernetDirectory
from automl.once_for_all.results import device_results
from automl.outlines import unreachable
from automl.problem import Problem
from automl.progress import Progress

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = [
    pytest.param(path.stem, marks=[] if path.stem.startswith("tiny") else pytest.mark.slow)
    for path in sorted(FOLDER.glob("*_supernet.yaml"))
]
SMALL: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "supernet": {"training": {"epochs": 2}},
    "measure": {"backend": "none"},
    "devices": {"half": {"budget": {"metric": "macs", "ratio": 0.5}, "search": {"algorithm": "evolution"}}},
}
KILLED: dict[str, Any] = {
    **SMALL,
    "baseline": {"epochs": 1},
    "supernet": {"training": {"epochs": 2}, "predictor": {"samples": 12, "held_out": 6}},
    "search": {"evaluations": 8, "options": {"samples": 4, "adapt": 4, "iterations": 20}},
    "fine_tune": {"epochs": 1},
    "devices": {
        "bits": {
            "measure": {"accelerator": "bit_fusion"},
            "space": {"weight_bits": [4, 8], "activation_bits": [8]},
            "budget": {"metric": "energy_j", "ratio": 0.5},
        },
        "systolic": {
            "measure": {"accelerator": "scalesim_32x32_ws"},
            "budget": {"metric": "modelled_latency_s", "ratio": 0.7},
        },
        "low": {"budget": {"metric": "macs", "ratio": 0.001}},
    },
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path_factory.getbasetemp() / "supernets"))


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_that_come_along_can_begin(name: str, tmp_path: Path) -> None:
    """Untrained; where a table prices, its clock is made up."""
    config = load_config(FOLDER / f"{name}.yaml", kind=SupernetConfig)
    if config.data.name == "glyphs":
        config = load_config(config.model_dump(), ["data.args.images=1000"], kind=SupernetConfig)
    assert not Problem.outline(config.of_training()).trained
    for device in config.devices:
        with fake_prices(tmp_path / f"{device}.sqlite") as prices:
            Problem.outline(config.of_device(device), prices=prices)


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"

    def refused(*arguments: object) -> str:
        assert main(["supernet", *map(str, arguments)]) == BAD_INPUT
        *progress, said = capsys.readouterr().err.splitlines()
        assert all(line.startswith("  devices checked ") for line in progress), progress
        return said

    def changed(override: str) -> str:
        return refused(small, "--out", out, "--set", override)

    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(SMALL))

    assert "is no supernet: it has no supernet.json" in refused(tmp_path, "--resume")
    assert "leave out --out and --set" in refused(tmp_path, "--resume", "--out", out)
    assert "--parallel is at least 1, got 0" in refused(small, "--parallel", 0)
    assert "supernet.safetensors is not there" in changed(f"supernet.checkpoint={tmp_path / 'supernet.safetensors'}")
    (tmp_path / "broken.safetensors").write_bytes(b"\x10")
    assert "cannot be read" in changed(f"supernet.checkpoint={tmp_path / 'broken.safetensors'}")
    assert "device 'half' has no budget" in changed("devices.half.budget=null")
    assert "device 'half': " in changed("devices.half.search={algorithm: evolutoin}")
    low = "devices={a: {budget: {metric: macs, ratio: 0.001}}, b: {budget: {metric: macs, ratio: 0.002}}}"
    assert "no device has a budget that can be kept; device 'a': no policy" in changed(low)
    assert not out.exists()


def test_a_device_whose_budget_nothing_keeps_is_left_out_with_the_least(capsys: pytest.CaptureFixture[str]) -> None:
    devices = {name: {"budget": {"metric": "macs", "ratio": ratio}} for name, ratio in [("low", 0.001), ("high", 0.9)]}
    config = load_config({**SMALL, "devices": devices}, kind=SupernetConfig)
    with Progress() as progress:
        left_out = unreachable("device", {name: config.of_device(name) for name in config.devices}, progress)
    assert list(left_out) == ["low"]
    assert "the cheapest" in left_out["low"]
    assert "Device low is left out" in capsys.readouterr().err


def samples(directory: SupernetDirectory) -> int:
    if not directory.store_file.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"{directory.store_file.as_uri()}?mode=ro", uri=True)) as store:
            return int(store.execute("SELECT count(*) FROM evaluations").fetchone()[0])
    except sqlite3.Error:
        return 0


def test_it_is_told_from_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Just started: `status` and `report` know it, what takes a run says what it is."""
    directory = SupernetDirectory.create(tmp_path / "mine", load_config(SMALL, kind=SupernetConfig))
    assert main(["status", str(directory.path), "--json"]) == DONE
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["samples"], status["predictor"]) == ("unfinished", {}, {})
    assert [(each["name"], each["state"]) for each in status["devices"]] == [("half", "waiting")]
    assert main(["status", str(directory.path)]) == DONE
    assert "half" in capsys.readouterr().out
    assert main(["report", str(directory.path)]) == DONE
    assert directory.report_file.is_file()
    for command in ("resume", "export"):
        assert main([command, str(directory.path)]) == BAD_INPUT
        assert "is a supernet: `trimtab supernet" in capsys.readouterr().err
    directory.training_file.write_text("[")
    assert main(["status", str(directory.path)]) == BAD_INPUT
    assert "training.json' is damaged" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_killed_one_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Killed in its training, among its samples, and in a device's search; beside one that nobody stops."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(KILLED))
    command = ["supernet", "config.yaml"]
    code, _, said = trimtab(tmp_path, *command, "--out", "whole", "--parallel", "2")
    assert code == 1  # for the device that is left out
    assert "device low is infeasible" in said
    whole, killed = (SupernetDirectory(tmp_path / name) for name in ("whole", "killed"))
    for left in (tmp_path / "cache").iterdir():  # nothing trained is left over
        if left.is_dir():
            left.rename(tmp_path / f"{left.name}-of-whole")

    process = start(tmp_path, *command, "--out", "killed")
    moments = (
        lambda: len(killed.training() if killed.training_file.exists() else ()) >= 1,
        lambda: samples(killed) >= 3,
        lambda: killed.device("systolic").store_file.exists(),
    )
    for happened in moments:
        wait_until(process, happened)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        process = start(tmp_path, "supernet", "killed", "--resume")
    systolic = killed.device("systolic")
    wait_until(process, lambda: not systolic.driven())  # by the one that lost its parent
    wait_until(process, systolic.driven)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 1
    assert "the supernet is unfinished; go on with `trimtab supernet killed --resume`" in " ".join(said.split())

    code, out, _ = trimtab(tmp_path, "supernet", "killed", "--resume")
    assert code == 1
    assert "predictor: mlp, Spearman" in " ".join(out.split())
    tensors, expected = (load_file(directory.baseline_file) for directory in (killed, whole))  # seconds differ beside
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert killed.samples_file.read_bytes() == whole.samples_file.read_bytes()
    assert killed.predictor() == whole.predictor()
    figures = [
        [(each.name, each.state, each.before, each.after, each.budget) for each in device_results(directory)]
        for directory in (whole, killed)
    ]
    assert figures[0] == figures[1]
    assert [each[1] for each in figures[0]] == ["done", "infeasible", "done"]
    assert "systolic" in killed.report_file.read_text()
    code, out, _ = trimtab(tmp_path, "status", "killed")
    assert code == DONE
    assert "killed: done" in out
    assert trimtab(tmp_path, "verify", "killed/devices/systolic/best")[0] == DONE
