"""Sweeps as a user starts them: cells that cannot be, cells that fail, a killed driver."""

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from run_processes import evaluations, none_left_behind, record, start, trimtab, wait_until

import automl
from automl.cli import main
from automl.cli_output import BAD_INPUT, DONE, FAILED
from automl.errors import InputError
from automl.run.directory import RunDirectory
from automl.run.store import Store
from automl.sweeps.directory import SweepDirectory
from automl.sweeps.results import cell_results

TINY: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "baseline": {"epochs": 1, "lr": 0.05},
    "budget": {"metric": "macs", "ratio": 0.5},
    "search": {"algorithm": "random", "evaluations": 2, "evaluators": 1},
    "compression": {"calibration_images": 20},
    "fine_tune": {"epochs": 0},
    "measure": {"backend": "none"},
}
LONG_S = 900


@pytest.fixture(scope="module", autouse=True)
def families() -> Iterator[list[psutil.Process]]:
    """Processes of killed drivers."""
    with none_left_behind() as left:
        yield left


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_cells_that_nothing_can_keep_are_left_out_and_the_others_run(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = home / "config.yaml", home / "sweep"
    config.write_text(yaml.safe_dump({**TINY, "sweep": {"budget.ratio": [0.001, 0.5]}}))
    assert main(["search", str(config), "--out", str(out)]) == FAILED
    said = " ".join(capsys.readouterr().err.split())
    assert "cell ratio0.001 is infeasible: no policy of the search space meets the budget" in said
    found = {cell.name: cell for cell in cell_results(SweepDirectory.open(out))}
    assert {name: cell.state for name, cell in found.items()} == {"ratio0.001": "infeasible", "ratio0.5": "done"}
    assert found["ratio0.5"].accuracy is not None
    assert SweepDirectory.open(out).info().state == "done"

    before = files(out)
    assert main(["resume", str(out)]) == FAILED  # for the one that is left out
    assert files(out) == before
    assert main(["search", str(config), "--out", str(out)]) == BAD_INPUT
    assert "`trimtab resume" in capsys.readouterr().err
    assert main(["status", str(out), "--json"]) == DONE
    status = json.loads(capsys.readouterr().out)
    assert (status["state"], status["states"]) == ("done", {"infeasible": 1, "done": 1})
    assert main(["status", str(out)]) == DONE
    assert "1 infeasible, 1 done" in " ".join(capsys.readouterr().out.split())
    assert main(["compare", str(out)]) == DONE
    assert "50 % of the MACs" in capsys.readouterr().out
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == DONE
    page = (out / "report.html").read_text()
    assert 'href="ratio0.5/report.html"' in page
    assert "ratio0.001 is infeasible" in page
    assert main(["export", str(out)]) == BAD_INPUT
    assert "is a sweep" in capsys.readouterr().err


def test_a_cell_whose_config_cannot_work_stops_everything_at_once(home: Path) -> None:
    document = {**TINY, "sweep": {"search.algorithm": ["random", "evolutoin"]}}
    with pytest.raises(InputError, match=r"cell 'evolutoin': .*did you mean 'evolution'"):
        automl.sweep(document, home / "sweep")
    with pytest.raises(InputError, match=r"no cell has a budget that can be kept; cell 'ratio0.001'"):
        automl.sweep({**TINY, "sweep": {"budget.ratio": [0.001, 0.002]}}, home / "sweep")
    assert not (home / "sweep").exists()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_killed_sweep_goes_on_and_ends_as_if_it_had_not_been(home: Path, families: list[psutil.Process]) -> None:
    chance = random.Random(seed := random.SystemRandom().randrange(2**32))
    axes = {"search.algorithm": ["evolution", "auto"], "budget.ratio": [0.4, 0.6]}
    document = {**TINY, "search": {"evaluations": 12, "evaluators": 1}, "fine_tune": {"epochs": 1}, "sweep": axes}
    (home / "config.yaml").write_text(yaml.safe_dump(document))
    process = start(home, "search", "config.yaml", "--out", "whole", "--parallel", "2")
    out, err = process.communicate(timeout=LONG_S)
    assert process.returncode == DONE, err
    assert "4 of 4 cells are done" in out
    whole, killed = (SweepDirectory(home / name) for name in ("whole", "killed"))
    assert len(list((home / "cache" / "baselines").iterdir())) == 1

    process = start(home, "search", "config.yaml", "--out", "killed", "--parallel", "2")
    wait_until(process, lambda: any(evaluations(run.path) > 3 for run in killed_runs(killed)))
    time.sleep(chance.uniform(0.0, 2.0))
    families.extend(psutil.Process(process.pid).children(recursive=True))
    process.kill()
    process.communicate()
    process = start(home, "resume", "killed", "--parallel", "2")
    wait_until(process, lambda: bool(finished_runs(killed)))
    finished = [run.path for run in finished_runs(killed)]
    done = {path: when for run in finished for path, when in files(run).items() if path.name != "output.log"}
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == FAILED
    assert "the sweep is unfinished; go on with `trimtab resume killed`" in " ".join(err.split())
    assert killed.info().state == "unfinished"
    assert not any(run.driven() for run in killed.runs())

    process = start(home, "resume", "killed", "--parallel", "2")
    _, err = process.communicate(timeout=LONG_S)
    assert process.returncode == DONE, err
    assert {path: when for path, when in files(killed.path).items() if path in done} == done
    for name in whole.cells():
        assert record(killed.cell(name).path) == record(whole.cell(name).path), f"{name}, seed {seed}"
    figures = [[(cell.name, cell.state, cell.accuracy) for cell in cell_results(each)] for each in (whole, killed)]
    assert figures[0] == figures[1]
    assert trimtab(home, "verify", f"killed/{next(iter(killed.cells()))}/best")[0] == DONE


def killed_runs(sweep: SweepDirectory) -> list[RunDirectory]:
    """Runs of a sweep that may not be made yet."""
    return list(sweep.runs()) if SweepDirectory.is_at(sweep.path) else []


def finished_runs(sweep: SweepDirectory) -> list[RunDirectory]:
    """Those that nothing drives any more; their process may still be printing what they came to."""
    return [run for run in killed_runs(sweep) if run.info().state == "done" and not run.driven()]


@pytest.mark.slow
def test_a_cell_that_fails_does_not_end_the_others(home: Path) -> None:
    (home / "broken.py").write_text(
        "def share(outputs, labels):\n    raise RuntimeError('out of order')\n\n"
        "def fine(outputs, labels):\n    return 0.5\n"
    )
    axes = {"metric": ["broken:share", "broken:fine"]}
    (home / "config.yaml").write_text(yaml.safe_dump({**TINY, "sweep": axes}))
    code, _, err = trimtab(home, "search", "config.yaml", "--out", "sweep")
    assert code == FAILED
    assert "cell broken_share is failed" in " ".join(err.split())
    states = {cell.name: cell.state for cell in cell_results(SweepDirectory(home / "sweep"))}
    assert states == {"broken_share": "failed", "broken_fine": "done"}
    store = Store.read(home / "sweep" / "broken_fine" / "trials.sqlite")
    assert {row.name for row in store.searches()} == {"random-0", "uniform"}
    store.close()
