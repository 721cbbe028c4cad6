"""Whole runs of which everything is killed: nothing that was found is lost, nothing is done twice or ends elsewhere.

Ten kills of one run are in the suite, with a latency table that fills meanwhile. The others are slow: two of the run of
every search algorithm, on a table that is there, and four while a table fills; `make test-kills` runs all of them.
"""

import json
import random
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from run_processes import PATIENCE_S, alive, evaluations, none_left_behind, record, start, trimtab
from table_budgets import check_table_budget

from automl.searchers import searcher_names

CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "baseline": {"epochs": 2, "lr": 0.05},
    "space": {"round_to": 8},
    "budget": {"metric": "latency_s", "ratio": 0.8},
    "search": {"algorithm": "ddpg", "options": {"warmup": 6}, "evaluations": 20, "evaluators": 2, "lag": 3},
    "compression": {"calibration_images": 60},
    "fine_tune": {"epochs": 2, "lr": 0.01},
    "measure": {"margin": 0.1},
}
GIVEN = [{"schema_version": 2, "model": None, "layers": {"conv2": {"keep": keep}}} for keep in (0.5, 0.75)]
OPTIONS = {
    "ddpg": (),
    "gradient": (
        *("--set", "space={kernel: [3]}", "--set", "search.options={steps: 20, batch: 16}"),
        *("--set", "budget={metric: weight_bytes, ratio: 0.4}"),
    ),
    "given": ("--set", f"search.options={yaml.safe_dump({'policies': GIVEN}, default_flow_style=True, width=10_000)}"),
}
"""Of algorithms that decide on something else, or whose defaults take long."""

FURTHER = 4
"""Evaluations after which those that a kill hit have been made: two are under way at a time."""

NAMES = [name for name, _ in searcher_names()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config, whose runs share a cache and so a table."""
    folder: Path = tmp_path_factory.mktemp("kills")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


@pytest.fixture(scope="module", autouse=True)
def families() -> Iterator[list[psutil.Process]]:
    """Processes of killed drivers."""
    with none_left_behind() as left:
        yield left


# -- who is killed -----------------------------------------------------------------------------------------------------


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return [each for each in psutil.Process(process.pid).children(recursive=True) if alive(each)]
    except psutil.NoSuchProcess:
        return []


def named(*beginnings: str) -> Callable[[subprocess.Popen[str]], list[psutil.Process]]:
    def found(process: subprocess.Popen[str]) -> list[psutil.Process]:
        return [each for each in family(process) if _name(each).startswith(beginnings)]

    return found


def _name(process: psutil.Process) -> str:
    """As Ray shows it, or the module that a Python process runs."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return ""
    if "-m" in command[:-1]:
        return command[command.index("-m") + 1]
    return Path(command[0]).name if command and not command[0].startswith("ray::") else "".join(command[:1])


VICTIMS: Mapping[str, Callable[[subprocess.Popen[str]], list[psutil.Process]]] = {
    "driver": lambda process: [psutil.Process(process.pid)],
    "evaluator": named("ray::Worker"),
    "Ray worker": named("ray::DispatcherActor", "ray::Search", "ray::PriceActor", "ray::Keeper"),
    "raylet": named("raylet"),
    "measuring worker": named("backends."),
}


class Campaign:
    """A run that is begun, killed, and gone on with.

    Args:
        home: where it is started.
        name: of its directory.
        options: of `trimtab search`.
        families: takes in the processes of killed drivers.
    """

    def __init__(self, home: Path, name: str, options: tuple[str, ...], families: list[psutil.Process]) -> None:
        self.home, self.run, self._families = home, home / name, families
        self.seed = random.SystemRandom().randrange(2**32)
        self.chance = random.Random(self.seed)
        self.kills: list[str] = []
        self._finished: set[tuple[Any, ...]] = set()
        self._command = ("search", "tiny.yaml", "--out", name, *options)
        self._process: subprocess.Popen[str] | None = None

    def kill(self, victim: str, ready: Callable[[Path], bool], within_s: float = 1.0) -> None:
        """Kill one of a kind, some moment after the run is ready for it; the run must not end before."""
        process = self._going()
        deadline = time.monotonic() + PATIENCE_S
        while not (ready(self.run) and VICTIMS[victim](process)):
            if process.poll() is not None:  # it lost one that it cannot do without
                process = self._going()
            assert time.monotonic() < deadline, (victim, self.kills)
            time.sleep(0.02)
        time.sleep(self.chance.uniform(0.0, within_s))
        self._families.extend(family(process))
        self._check()
        found = VICTIMS[victim](process) or [psutil.Process(process.pid)]
        self.chance.choice(found).kill()
        self.kills.append(victim)
        if victim == "driver":
            process.communicate(timeout=PATIENCE_S)
            assert process.returncode == -signal.SIGKILL

    def further(self, least: int) -> Callable[[Path], bool]:
        """That so many are evaluated, and some since the last kill: a policy that two processes die of has failed."""
        count = max(least, evaluations(self.run) + FURTHER if self.kills else 0)
        return lambda run: evaluations(run) >= count

    def finish(self) -> None:
        """To the end; whatever was killed last, it takes one more command at most."""
        for _ in range(2):
            if self._going().wait(PATIENCE_S) == 0:
                break
        code, out, err = self._ended()
        assert code == 0, (err, out, self.kills, self.seed)
        self._check()

    def _check(self) -> None:
        """What had been evaluated still is, and was not evaluated again: it was so at the same time."""
        found = finished(self.run)
        assert self._finished <= found, (self.kills, self.seed)
        self._finished = found

    def _going(self) -> subprocess.Popen[str]:
        """The process that drives it: the one that does, or a new one."""
        if self._process is not None and self._process.poll() is not None:
            code, _, err = self._ended()
            assert code in (1, -signal.SIGKILL), (code, err, self.kills, self.seed)
            assert "Traceback" not in err, (err, self.kills, self.seed)
        if self._process is None:
            made = (self.run / "run.json").exists()
            self._process = start(self.home, *(("resume", self.run.name) if made else self._command))
        return self._process

    def _ended(self) -> tuple[int, str, str]:
        assert self._process is not None
        process, self._process = self._process, None
        out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out, err


# -- when --------------------------------------------------------------------------------------------------------------


def finished(run: Path) -> set[tuple[Any, ...]]:
    """Evaluations on record, each with the time when it ended."""
    store = run / "trials.sqlite"
    if not store.exists():
        return set()
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as connection:
        try:
            return set(connection.execute("SELECT search, number, finished_at FROM evaluations"))
        except sqlite3.OperationalError:  # a store that is just being made
            return set()


def at_once(_: Path) -> bool:
    return True


def at(stage: str) -> Callable[[Path], bool]:
    def ready(run: Path) -> bool:
        try:
            return bool(json.loads((run / "run.json").read_bytes())["stage"] == stage)
        except FileNotFoundError:
            return False

    return ready


def priced(home: Path) -> dict[Any, Any]:
    """What stands in the latency tables of a cache, after SQLite has found them sound."""
    found: dict[Any, Any] = {}
    for table in (home / "cache" / "latency").glob("*.sqlite"):
        with closing(sqlite3.connect(table)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            found |= {(table.name, key): row for key, row in connection.execute("SELECT id, row FROM entries")}
    return found


def filled(home: Path, more_than: int) -> Callable[[Path], bool]:
    def ready(_: Path) -> bool:
        try:
            return len(priced(home)) > more_than
        except sqlite3.OperationalError:  # a table that is just being made, or written to
            return False

    return ready


# -- what must not differ ----------------------------------------------------------------------------------------------


@pytest.mark.timeout(1200)
def test_ten_kills_change_nothing(home: Path, families: list[psutil.Process]) -> None:
    """From its table to its export, each kind at some moment."""
    campaign = Campaign(home, "killed", (), families)
    table: dict[Any, Any] = {}
    for _ in range(2):
        campaign.kill("measuring worker", filled(home, len(table)), 0.3)
        assert table.items() <= priced(home).items()
        table = priced(home)
    victims = ["driver", "evaluator", "Ray worker", "raylet", "evaluator"]
    campaign.chance.shuffle(victims)
    for number, victim in enumerate(victims):
        campaign.kill(victim, campaign.further(1 + 7 * number))  # of 41 in all
    campaign.kill("evaluator", at("finalists"), 2.0)
    campaign.kill("measuring worker", at("measure"), 0.5)
    campaign.kill("driver", at("export"), 0.5)
    campaign.finish()
    assert len(campaign.kills) == 10
    assert table.items() <= priced(home).items()
    check_table_budget(campaign.run, CONFIG["budget"]["ratio"], CONFIG["measure"]["margin"])
    _equals_uninterrupted(campaign, ())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_kills_of_every_searcher_change_nothing(name: str, home: Path, families: list[psutil.Process]) -> None:
    options = ("--set", f"search.algorithm={name}", *OPTIONS.get(name, ("--set", "search.options={}")))
    campaign = Campaign(home, f"{name}-killed", (*options, "--set", "search.evaluators=1"), families)
    for first in (0, 10):
        victim = campaign.chance.choice(["driver", "evaluator", "Ray worker", "raylet"])
        campaign.kill(
            victim,
            at_once if name in ("uniform", "given") else campaign.further(first + campaign.chance.randrange(9)),
        )
    campaign.finish()
    _equals_uninterrupted(campaign, options)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "measuring worker"])
def test_what_a_table_has_when_its_filling_is_killed_it_keeps(
    victim: str, tmp_path: Path, families: list[psutil.Process]
) -> None:
    """Nothing published is lost, nothing half written appears, and each operator is measured once."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG | {"fine_tune": {"epochs": 0}}))
    campaign = Campaign(tmp_path, "filling", (), families)
    table: dict[Any, Any] = {}
    for _ in range(2):
        campaign.kill(victim, filled(tmp_path, len(table)), 0.5)
        assert table.items() <= priced(tmp_path).items()
        table = priced(tmp_path)
    campaign.finish()
    assert table.items() <= priced(tmp_path).items()
    _equals_uninterrupted(campaign, ())


def _equals_uninterrupted(campaign: Campaign, options: tuple[str, ...]) -> None:
    """Another run of the config, which prices from the same table, comes to the same."""
    whole = campaign.run.with_name(f"{campaign.run.name}-not")
    code, _, err = trimtab(campaign.home, "search", "tiny.yaml", "--out", whole.name, *options)
    assert code == 0, err
    said = (campaign.kills, campaign.seed)
    assert record(campaign.run) == record(whole), said
    assert policy(campaign.run) == policy(whole), said


def policy(run: Path) -> str:
    return (run / "best" / "policy.json").read_text()
