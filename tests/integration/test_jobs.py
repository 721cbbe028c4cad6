"""Jobs on a real Ray cluster with a token: submitted, listed, followed, stopped and resumed by the command."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml
from ray_heads import Head, ray_head
from run_processes import PATIENCE_S, evaluations, none_left_behind, record, start, trimtab

METRIC = "def share_right(outputs, labels):\n    return (outputs.argmax(1) == labels).double().mean().item()\n"
CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "metric": "my_metric:share_right",
    "baseline": {"epochs": 1, "lr": 0.05},
    "budget": {"metric": "macs", "ratio": 0.5},
    "search": {"algorithm": "evolution", "evaluations": 24, "evaluators": 2, "lag": 3},
    "compression": {"calibration_images": 60},
    "fine_tune": {"epochs": 1},
    "measure": {"backend": "none"},
}

FOLLOWED_S = 900
"""For a whole search on a busy machine."""

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where jobs are submitted from: a config, and a module of the user's own."""
    folder: Path = tmp_path_factory.mktemp("user")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "my_metric.py").write_text(METRIC)
    (folder / ".env").write_text("PASSWORD=not-to-travel")
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with none_left_behind(), ray_head(tmp_path_factory.mktemp("head")) as running:
        yield running


@pytest.fixture
def command(head: Head, user: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command as the user of the cluster runs it; what it says never holds the token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")  # --address wins
    file = user / "token"
    file.write_text(head.token)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))

    def run(*arguments: str) -> tuple[int, str, str]:
        process = start(user, *arguments, "--address", head.address)
        out, err = process.communicate(timeout=FOLLOWED_S)
        assert head.token not in out + err
        return process.returncode, out, err

    return run


def run_of(head: Head, name: str) -> Path:
    return head.home / "trimtab-runs" / name


def files_with(folder: Path, text: str) -> list[Path]:
    return [each for each in folder.rglob("*") if each.is_file() and text.encode() in each.read_bytes()]


def test_a_job_that_fails_says_why_in_its_logs(
    head: Head, command: Command, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = run_of(head, "taken")
    taken.mkdir(parents=True)
    (taken / "letter.txt").touch()
    code, out, err = command("submit", "tiny.yaml", "--name", "bad", "-f", "--out", "~/trimtab-runs/taken")
    assert code == 1
    assert "travelled: config.yaml, my_metric.py (" in out
    assert "trimtab run-job search --out ~/trimtab-runs/taken" in out
    assert f"trimtab: error: {str(taken)!r} exists and is not empty; choose another --out\n" in out
    assert "Traceback" not in out + err
    assert err.startswith("trimtab: error: job bad is FAILED")
    assert [each.name for each in taken.parent.iterdir()] == ["taken"]
    code, out, _ = command("jobs")
    assert code == 0
    assert [text for text in ("bad", "FAILED", "~/trimtab-runs/taken") if text not in out] == []
    request = Request(f"{head.address}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"})
    with urlopen(request) as answer:
        known = answer.read().decode()  # entry points, environments and metadata
    assert '"run": "~/trimtab-runs/taken"' in known
    assert head.token not in known
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    code, _, err = command("jobs")
    assert code == 1
    assert err.count("\n") == 1
    assert "refuses the token" in err


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_finds_what_a_run_of_ones_own_finds(head: Head, command: Command, user: Path) -> None:
    code, out, err = command("submit", "tiny.yaml", "--name", "whole", "--follow")
    assert code == 0, out + err
    assert "travelled: config.yaml, my_metric.py (" in out
    assert "from scratch" in out
    code, said, _ = command("logs", "whole")
    assert code == 0
    assert said in out
    code, out, _ = command("stop", "whole")
    assert (code, out) == (0, "job whole is SUCCEEDED\n")
    code, _, err = command("submit", "tiny.yaml", "--name", "whole")
    assert code == 2
    assert "has a job 'whole' already" in err

    run = run_of(head, "whole")
    assert json.loads((run / "run.json").read_text())["state"] == "done"
    assert trimtab(user, "search", "tiny.yaml", "--out", "own")[0] == 0
    assert record(run) == record(user / "own")
    assert sorted(each.name for each in run.with_name("whole.submitted").rglob("*") if each.is_file()) == [
        "config.yaml",
        "my_metric.py",
    ]
    assert not files_with(head.home / "trimtab-runs", head.token)
    assert not files_with(user / "own", head.token)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_job_is_stopped_where_it_can_be_resumed_and_resumed_as_a_job(
    head: Head, command: Command, user: Path
) -> None:
    longer = ("--set", "search.evaluations=100")
    assert command("submit", "tiny.yaml", "--name", "halved", *longer)[0] == 0
    run = run_of(head, "halved")
    deadline = time.monotonic() + PATIENCE_S
    while evaluations(run) < 20:
        assert time.monotonic() < deadline, command("logs", "halved")
        time.sleep(0.1)
    code, out, err = command("stop", "halved")
    assert code == 0, err
    assert out == (f"job halved is STOPPED; go on with `trimtab submit --resume halved --address {head.address}`\n")
    info = json.loads((run / "run.json").read_text())
    assert (info["state"], info["reason"]) == ("unfinished", "stopped"), command("logs", "halved")
    before = evaluations(run)
    assert before < 201
    code, out, err = command("submit", "--resume", "halved", "--name", "again", "--follow")
    assert code == 0, out + err
    assert "from scratch" in out
    assert trimtab(user, "search", "tiny.yaml", "--out", "uninterrupted", *longer)[0] == 0
    assert record(run) == record(user / "uninterrupted")
    table = command("jobs")[1]
    assert "STOPPED" in table
    assert "resume" in table
    assert not files_with(head.home / "trimtab-runs", head.token)
