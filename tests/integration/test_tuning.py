"""Tunings on a real Ray: trials are stopped early or copy one another, and go on after a kill; the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from automl.cli import BAD_INPUT, main
from automl.config import load_config
from automl.problem import Problem
from automl.tuning.api import check_options
from automl.tuning.config import TuningConfig
from automl.tuning.records import TuningDirectory

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "baseline": {"epochs": 1},
    "budget": {"metric": "macs", "ratio": 0.5},
    "search": {"algorithm": "ddpg", "evaluations": 16, "lag": 1, "options": {"warmup": 3, "hidden": 16}},
    "compression": {"calibration_images": 50, "reconstruct": False},
}
ASHA = {"scheduler": "asha", "trials": 4, "every": 3, "grace": 3, "reduction": 2}
PBT = {"scheduler": "pbt", "trials": 3, "every": 3, "perturb": 3, "quantile": 0.4}
OPTIONS = {"actor_lr": {"low": 1e-5, "high": 1e-2, "log": True}, "updates": [1, 2]}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path_factory.getbasetemp() / "tunings"))


def written(folder: Path, tune: dict[str, Any], **options: Any) -> Path:
    file = folder / "tune.yaml"
    file.write_text(yaml.safe_dump({**CONFIG, "tune": {**tune, "options": {**OPTIONS, **options}}}))
    return file


def command(*arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "automl", "tune", *map(str, arguments)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    )


@pytest.mark.slow
@pytest.mark.parametrize("tune", [ASHA, PBT], ids=["asha", "pbt"])
def test_a_tuning_goes_on_after_a_kill_and_its_best_options_are_a_config(tune: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "tuning"
    first = command(written(tmp_path, tune), "--out", out)
    while not list((out / "trials").glob("*.json")):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    directory = TuningDirectory.open(out)
    before = {each.name: each for each in directory.records()}
    assert any(each.state == "running" and each.reports for each in before.values())

    second = command(out, "--resume")
    said = second.communicate()[0]
    assert second.returncode == 0, said
    assert "trial-000" in said
    records = directory.records()
    assert all(each.state in ("finished", "stopped") for each in records)
    finished = [each for each in records if each.state == "finished"]
    assert finished
    assert all(each.evaluations == 16 for each in finished)
    for each in records:
        counts = [count for count, _ in each.reports]
        assert counts == sorted(set(counts))  # nothing was reported twice
        if tune is ASHA:
            assert each.options == before[each.name].options
            assert list(each.reports)[: len(before[each.name].reports)] == list(before[each.name].reports)
    best = load_config(out / "best.yaml")
    assert best.search.options.items() >= {"warmup": 3, "hidden": 16}.items()
    assert OPTIONS.keys() <= best.search.options.keys()
    assert json.loads((out / "tuning.json").read_text())["state"] == "done"
    third = command(out, "--resume")  # there is nothing left to do
    assert "trial-000" in third.communicate()[0]
    assert third.returncode == 0


@pytest.mark.slow
def test_an_interrupted_tuning_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "tuning"
    process = command(written(tmp_path, ASHA), "--out", out)
    while not list((out / "trials").glob("*.json")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[0]
    assert process.returncode == 1
    assert f"the tuning is unfinished; go on with `trimtab tune {out} --resume`" in " ".join(said.split())
    assert not (out / "best.yaml").exists()


@pytest.mark.parametrize("name", ["tune_ddpg_asha", "tune_ddpg_pbt"])
def test_configs_that_come_along_can_begin(name: str) -> None:
    """The network untrained, of every trial the searcher; in a population each takes over the state of any other."""
    config = load_config(ROOT / f"configs/{name}.yaml", ["baseline.epochs=0"], kind=TuningConfig)
    check_options(config, Problem.outline(config))


def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: object) -> str:
        assert main(["tune", *map(str, arguments)]) == BAD_INPUT
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    out = tmp_path / "out"
    assert "has no option 'actor_rl'" in refused(written(tmp_path, ASHA, actor_rl=[0.1]), "--out", out)
    assert "tau lies in" in refused(written(tmp_path, ASHA, tau=[0.5, 2.0]), "--out", out)
    said = refused(written(tmp_path, PBT, hidden=[16, 32]), "--out", out)
    assert "option 'hidden' cannot change while a search goes on" in said
    assert "is no tuning" in refused(tmp_path, "--resume")
    assert "leave out --out and --set" in refused(tmp_path, "--resume", "--out", out)
    assert not out.exists()
