"""What machines do to whole runs: full disks, disks that cannot be written, clocks set back, no network. One clear line
each, and nothing that was found is lost."""

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from run_processes import PATIENCE_S, evaluations, none_left_behind, record, start, trimtab, wait_until

CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "baseline": {"epochs": 2, "lr": 0.05},
    "budget": {"metric": "macs", "ratio": 0.5},
    "search": {"algorithm": "evolution", "evaluations": 24, "evaluators": 2, "lag": 3},
    "compression": {"calibration_images": 60},
    "fine_tune": {"epochs": 1},
    "measure": {"backend": "none"},
}
CLOCK = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long back(void) {
    long seconds = 0;
    FILE *file = fopen(getenv("CLOCK_BACK_FILE"), "r");
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    long failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec -= back();
    return (int) failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    (void) zone;
    clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *where) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (where) *where = precise.tv_sec;
    return precise.tv_sec;
}
"""
"""Preloaded, the time of day is as many seconds ago as a file says. (libfaketime has Python's `sleep` fail.)"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config, whose runs share a cache."""
    folder: Path = tmp_path_factory.mktemp("faults")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


@pytest.fixture(scope="module", autouse=True)
def families() -> Iterator[list[psutil.Process]]:
    with none_left_behind() as left:
        yield left


@dataclass(frozen=True)
class Undisturbed:
    """A run to which nothing happens, in a network of its own, where that is permitted.

    Attributes:
        found: what stands on record.
        heard: addresses that connections were accepted at, meanwhile; None where it had no network of its own.
    """

    found: list[tuple[Any, ...]]
    heard: set[str] | None


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> Undisturbed:
    alone = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    permitted = shutil.which("unshare") and not subprocess.run([*alone, "true"], check=False).returncode
    process = start(home, "search", "tiny.yaml", "--out", "whole", within=alone if permitted else ())
    wait_until(process, lambda: (home / "whole" / "run.json").exists())  # it has a network of its own by then
    heard: set[str] = set()
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        for family in ("tcp", "tcp6"):
            heard |= listening(Path(f"/proc/{process.pid}/net/{family}"))
        time.sleep(0.2)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    return Undisturbed(record(home / "whole"), heard if permitted else None)


class SmallDisk:
    """A file system of a few MiB over a folder, which only commands `within` it see."""

    def __init__(self, folder: Path, mib: int) -> None:
        folder.mkdir()
        mount = f'mount -t tmpfs -o size={mib}m tmpfs "$0" && echo mounted && exec sleep infinity'
        unshare = [shutil.which("unshare") or pytest.skip("no unshare to mount a small disk with"), "-m"]
        self._keeper = subprocess.Popen([*unshare, "sh", "-c", mount, str(folder)], stdout=subprocess.PIPE, text=True)
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != "mounted\n":
            pytest.skip("mounting a small disk is not permitted here")
        self._mounted = folder
        self.folder = Path(f"/proc/{self._keeper.pid}/root{folder}")
        """The same, as others see it."""

    def run(self, name: str) -> Path:
        """A run on it, brought to where SQLite finds it: it would read the link to the disk as one to the root."""
        copy = self._mounted.with_name(f"{self._mounted.name}-{name}")
        shutil.copytree(self.folder / name, copy, dirs_exist_ok=True)
        return copy

    def evaluations(self, name: str) -> int:
        """How many stand on record in a run on it."""
        count = f"import sqlite3; print(sqlite3.connect('file:{self._mounted / name}/trials.sqlite?mode=ro', uri=True)"
        count += ".execute('SELECT count(*) FROM evaluations').fetchone()[0])"
        command = [*self.within(Path("/")), sys.executable, "-c", count]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return int(done.stdout) if done.returncode == 0 else 0

    def within(self, folder: Path) -> Sequence[str]:
        """What runs a command in a folder, where the file system is seen."""
        enter = ["nsenter", "-t", str(self._keeper.pid), "-m", "--"]
        return [*enter, "sh", "-c", 'cd "$0" && exec "$@"', str(folder)]

    def fill(self) -> None:
        with (self.folder / "ballast").open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 8, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def make_room(self) -> None:
        (self.folder / "ballast").unlink()

    def writable(self, yes: bool) -> None:
        remount = ["mount", "-o", f"remount,{'rw' if yes else 'ro'}", str(self._mounted)]
        subprocess.run([*self.within(Path("/")), *remount], check=True)

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.communicate()


@pytest.fixture
def disk(home: Path, request: pytest.FixtureRequest) -> Iterator[SmallDisk]:
    found = SmallDisk(home / request.node.name[:20], 8)
    yield found
    found.close()


def rows(run: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{run / 'trials.sqlite'}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def one_line(err: str) -> str:
    """The message that a command ended with, after the lines of its stages."""
    assert "Traceback" not in err, err
    said = [line for line in err.splitlines() if line.startswith("trimtab: error:")]
    assert len(said) == 1, err
    return said[0]


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_loses_nothing(home: Path, disk: SmallDisk, undisturbed: Undisturbed) -> None:
    within = disk.within(home)
    process = start(home, "search", "tiny.yaml", "--out", f"{disk.folder.name}/run", within=within)
    wait_until(process, lambda: disk.evaluations("run") >= 5)
    disk.fill()
    found = disk.evaluations("run")
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "No space left" in one_line(err) or "disk is full" in one_line(err)
    assert disk.evaluations("run") >= found
    disk.make_room()
    code, _, err = trimtab(home, "resume", f"{disk.folder.name}/run", within=within)
    assert code == 0, err
    assert record(disk.run("run")) == undisturbed.found


@pytest.mark.slow
def test_a_directory_that_cannot_be_written_is_one_line(
    home: Path, disk: SmallDisk, undisturbed: Undisturbed, families: list[psutil.Process]
) -> None:
    within = disk.within(home)
    name = f"{disk.folder.name}/run"
    process = start(home, "search", "tiny.yaml", "--out", name, within=within)
    wait_until(process, lambda: disk.evaluations("run") >= 5)
    families.extend(psutil.Process(process.pid).children(recursive=True))
    process.kill()
    process.communicate()
    psutil.wait_procs(families, timeout=100)  # what is left of it has files open
    disk.writable(False)
    for command, exit_code in ((("search", "tiny.yaml", "--out", f"{name}-2"), 2), (("resume", name), 1)):
        code, _, err = trimtab(home, *command, within=within)
        assert code == exit_code, err
        assert "Read-only file system" in one_line(err)
    code, out, err = trimtab(home, "status", name, "--json", within=within)
    assert code == 0, err
    assert json.loads(out)["state"] == "unfinished"
    disk.writable(True)
    code, _, err = trimtab(home, "resume", name, within=within)
    assert code == 0, err
    assert record(disk.run("run")) == undisturbed.found


DAY = 24 * 3600


@pytest.mark.slow
def test_a_clock_that_is_set_back_changes_nothing(home: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """By two days, in the midst of a search; and by a year before it is looked at."""
    run, back = home / "back", tmp_path / "back"
    back.write_text("0")
    (tmp_path / "clock.c").write_text(CLOCK)
    compiler = shutil.which("cc") or pytest.skip("no compiler to make a clock with")
    library = tmp_path / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "clock.c")], check=True)
    environment = {"LD_PRELOAD": str(library), "CLOCK_BACK_FILE": str(back)}
    process = start(home, "search", "tiny.yaml", "--out", "back", environment=environment)
    wait_until(process, lambda: evaluations(run) >= 5)
    back.write_text(str(2 * DAY))
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert record(run) == undisturbed.found
    status = json.loads((run / "run.json").read_bytes())
    assert 0 < status["wall_s"] < DAY
    times = [datetime.fromisoformat(row[0]) for row in rows(run, "SELECT finished_at FROM evaluations")]
    assert max(times) - min(times) > timedelta(days=1)  # it was set back while they were made
    back.write_text(str(365 * DAY))
    for command in (("status", "back", "--json"), ("report", "back")):
        code, _, err = trimtab(home, *command, environment=environment)
        assert code == 0, err


def test_a_run_needs_no_network_but_loopback_and_listens_nowhere_else(undisturbed: Undisturbed) -> None:
    if undisturbed.heard is None:
        pytest.skip("a network of one's own is not permitted here")
    assert undisturbed.heard
    assert undisturbed.heard <= LOOPBACK


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
"""127.0.0.1, ::1 and ::ffff:127.0.0.1, as the kernel writes them on a machine of this byte order."""
LISTENS = "0A"


def listening(table: Path) -> set[str]:
    """Addresses that connections are accepted at, from a table under /proc/net."""
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:  # the process has just ended
        return set()
    return {row[1].partition(":")[0] for row in rows if row[3] == LISTENS}


assert sys.byteorder == "little"
