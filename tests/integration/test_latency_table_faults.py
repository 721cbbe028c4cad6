"""What processes, kills, damaged files and full disks do to a latency table: nothing measured is lost, no wrong number
enters, and there is one clear line."""

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.latency_entries import entry_row
from backends.latency_table import DeviceKey, Entry, LatencyTable
from search_spaces.errors import InputError, TrimtabError

DEVICE = DeviceKey("tvm", "A processor", "x86-64-v4", 1, "apache-tvm 0.27", "0123abcd")

_PAGE = 16384

_PRELUDE = f"""
import json, os, resource, signal, sqlite3, sys, time
from pathlib import Path
from backends import latency_table
from backends.latency_table import DeviceKey, Entry, LatencyTable
from search_spaces.errors import TrimtabError
DEVICE = {DEVICE!r}
def entry(number):
    seconds = number * 1e-6
    return Entry(seconds, seconds, seconds, 10, 1e-6, "cafe", "conv2d", float(number), 4096.0)
def text(number):
    return f"conv2d({{number}}, source=(1, 1, 32, 32, 16), {{'epilogue, ' * 25}})"
path, arguments = Path(sys.argv[1]), [int(a) for a in sys.argv[2:]]
"""


def entry(number: int) -> Entry:
    seconds = number * 1e-6
    return Entry(seconds, seconds, seconds, 10, 1e-6, "cafe", "conv2d", float(number), 4096.0)


def text(number: int) -> str:
    """As long as the recipe of a convolution."""
    return f"conv2d({number}, source=(1, 1, 32, 32, 16), {'epilogue, ' * 25})"


def numbers(table: LatencyTable) -> set[int]:
    """Which entries stand; each is as it was published."""
    found = table.entries()
    known = {int(entry.work) for entry in found.values()}
    assert found == {text(number): entry(number) for number in known}
    return known


def start(script: str, path: Path, *arguments: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _PRELUDE + script, str(path), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(child: subprocess.Popen[str]) -> str:
    output, errors = child.communicate(timeout=120)
    assert (child.returncode, errors) == (0, "")
    return output


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "table.sqlite"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a table with 60 entries, on several pages."""
    path = tmp_path_factory.mktemp("whole") / "table.sqlite"
    with LatencyTable(path, DEVICE) as table:
        for number in range(1, 61):
            table.publish(text(number), entry(number))
    return path.read_bytes()


# -- several processes -------------------------------------------------------------------------------------------------


def test_of_processes_that_race_the_first_to_publish_wins_for_all(path: Path) -> None:
    script = """
    me, found = arguments[0], {}
    sys.stdin.readline()
    with LatencyTable(path, DEVICE) as table:
        for number in range(40):
            ours = entry(1000 * me + number)
            found[text(number)] = table.publish(text(number), ours).work
    print(json.dumps(found))
    """
    children = [start(_unindented(script), path, me) for me in (1, 2, 3)]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    seen = [json.loads(finished(child)) for child in children]
    assert seen[0] == seen[1] == seen[2]
    with LatencyTable(path, DEVICE) as table:
        assert {recipe: entry.work for recipe, entry in table.entries().items()} == seen[0]
        assert table.notices == []
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM entries").fetchone() == (40,)
    connection.close()


def test_two_searches_on_one_table_agree_on_every_price(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
    import random, time
    from dataclasses import dataclass
    from backends.operator_prices import OperatorPrices
    from backends.recipes import Timing
    @dataclass(frozen=True)
    class Operator:
        recipe: str
        kind, work, traffic = "conv2d", 1.0, 1.0
    rng, measured = random.Random(arguments[0]), []
    class Timer:
        def measure(self, recipe):
            time.sleep(0.002)
            measured.append(recipe.recipe)
            seconds = rng.uniform(1e-6, 2e-6)
            return Timing(seconds, seconds, seconds, 10, 0.0, "cafe")
        def close(self):
            pass
    operators = [Operator(text(number)) for number in range(40)]
    rng.shuffle(operators)
    sys.stdin.readline()
    with LatencyTable(path, DEVICE) as table:
        prices = OperatorPrices(table, Timer()).latencies(operators)
    print(json.dumps([prices, measured]))
    """
    monkeypatch.setenv("TRIMTAB_CACHE", str(path.parent / "cache"))
    children = [start(_unindented(script), path, seed) for seed in (1, 2)]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    (ours, a), (theirs, b) = (json.loads(finished(child)) for child in children)
    assert ours == theirs
    assert len(ours) == 40
    assert set(a) | set(b) == set(ours)
    with LatencyTable(path, DEVICE) as table:
        assert {recipe: entry.latency_s for recipe, entry in table.entries().items()} == ours


def test_a_table_that_is_locked_too_long_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.latency_table.BUSY_S", 0.05)
    with LatencyTable(path, DEVICE) as table:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TrimtabError, match=r"cannot be read or written \(database is locked\)"):
            table.publish(text(1), entry(1))
        other.execute("ROLLBACK")
        other.close()
        assert table.publish(text(1), entry(1)) == entry(1)


# -- kills -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_kill_at_any_moment_loses_nothing_that_was_published(path: Path, seed: int) -> None:
    script = """
    with LatencyTable(path, DEVICE) as table:
        for number in range(1, 100000):
            table.publish(text(number), entry(number))
            print(number, flush=True)
    """
    child = start(_unindented(script), path)
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(random.Random(seed).uniform(0, 0.05))
    child.send_signal(signal.SIGKILL)
    said = [1, *map(int, child.stdout)]  # communicate() does not know what readline() has read ahead
    child.communicate(timeout=60)
    with LatencyTable(path, DEVICE) as table:
        assert table.notices == []
        assert numbers(table) - {len(said) + 1} == set(said)  # one may have been committed and not been told of
        assert table.publish(text(99999), entry(99999)) == entry(99999)


_KILLED_MIDWAY = """
    with LatencyTable(path, DEVICE) as table:
        for number in range(1, 6):
            table.publish(text(number), entry(number))
    insert = latency_table._insert
    def cut_off(connection, device, entries):
        connection.execute("PRAGMA cache_size = 2")  # half of it reaches the file before the commit
        insert(connection, device, entries)
        os.kill(os.getpid(), signal.SIGKILL)
    latency_table._insert = cut_off
    with LatencyTable(path, DEVICE) as table:
        table._add({text(number): entry(number) for number in range(6, 400)})
"""


def test_a_transaction_cut_off_leaves_no_half_entries(path: Path) -> None:
    child = start(_unindented(_KILLED_MIDWAY), path)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert path.with_name("table.sqlite-journal").exists()
    assert path.stat().st_size > 3 * _PAGE
    with LatencyTable(path, DEVICE) as table:
        assert numbers(table) == set(range(1, 6))
        assert table.notices == []


def test_a_transaction_cut_off_in_a_file_damaged_besides_costs_nothing_published(path: Path) -> None:
    child = start(_unindented(_KILLED_MIDWAY), path)
    child.communicate(timeout=60)
    journal = path.with_name("table.sqlite-journal")
    for file in (path, journal):
        file.write_bytes(bytes(100) + file.read_bytes()[100:])
    with LatencyTable(path, DEVICE) as table:
        assert len(table.notices) == 1
        assert numbers(table) >= set(range(1, 6))
        assert not journal.exists()
        table.publish(text(500), entry(500))
    with LatencyTable(path, DEVICE) as table:
        assert numbers(table) >= {*range(1, 6), 500}
        assert table.notices == []


# -- damage ------------------------------------------------------------------------------------------------------------


def test_a_byte_that_flips_costs_at_most_its_own_entry(path: Path, whole: bytes) -> None:
    rng = random.Random(0)
    places = [*range(0, 100, 3), *(rng.randrange(len(whole)) for _ in range(80))]
    told = 0
    for place in places:
        data = bytearray(whole)
        data[place] ^= rng.randrange(1, 256)
        path.write_bytes(data)
        with LatencyTable(path, DEVICE) as table:
            known = numbers(table)
            assert len(known) >= 59, place
            assert len(known) == 60 or table.notices, place
            told += bool(table.notices)
            again = {number for number in range(1, 61) if number not in known}
            for number in again:
                table.publish(text(number), entry(number))
        with LatencyTable(path, DEVICE) as table:
            assert numbers(table) == set(range(1, 61))
            assert table.notices == []
    assert told > 20


def _zeroed(data: bytes, page: int) -> bytes:
    return data[: page * _PAGE] + bytes(_PAGE) + data[(page + 1) * _PAGE :]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: _zeroed(data, 0), id="no first page"),
        pytest.param(lambda data: _zeroed(data, 2), id="no inner page"),
        pytest.param(lambda data: _zeroed(data, 4), id="no leaf"),
        pytest.param(lambda data: data[: 4 * _PAGE + 9000], id="half of a leaf"),
        pytest.param(lambda data: data[:_PAGE], id="first page only"),
        pytest.param(lambda data: data[:50], id="half of the header"),
        pytest.param(lambda data: data[1000:] + data[:1000], id="shifted"),
        pytest.param(lambda data: b"some text, and no database at all\n" * 1000, id="text"),
        pytest.param(lambda data: data.replace(b"4096.0", b"2048.0"), id="all rows changed"),
    ],
)
def test_a_ruined_file_is_kept_aside_and_what_verifies_carried_over(
    path: Path, whole: bytes, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    ruined = damage(whole)
    path.write_bytes(ruined)
    intact = {n for n in range(1, 61) if entry_row(DEVICE, text(n), entry(n)).encode() in ruined}
    with LatencyTable(path, DEVICE) as table:
        assert numbers(table) == intact
        (notice,) = table.notices
        assert notice in caplog.text
        assert "\n" not in notice
        assert f"{len(intact)} entries carried over" in notice
        assert table.publish(text(77), entry(77)) == entry(77)
    assert path.with_name("table.sqlite.damaged-1").read_bytes() == ruined
    with LatencyTable(path, DEVICE) as table:
        assert numbers(table) == intact | {77}
        assert table.notices == []
    path.write_bytes(ruined)
    LatencyTable(path, DEVICE).close()
    assert path.with_name("table.sqlite.damaged-2").read_bytes() == ruined


def test_what_an_open_table_knows_outlives_damage_to_its_file(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)
    with LatencyTable(path, DEVICE) as table:
        path.write_bytes(b"overwritten " * 5000)
        assert table.publish(text(61), entry(61)) == entry(61)
        assert len(table.notices) == 1
    with LatencyTable(path, DEVICE) as table:
        assert numbers(table) == set(range(1, 62))


def test_who_has_the_damaged_file_open_goes_on_with_the_mended_one(path: Path, whole: bytes) -> None:
    path.write_bytes(whole)
    with LatencyTable(path, DEVICE) as first:
        path.write_bytes(_zeroed(whole, 2))
        with LatencyTable(path, DEVICE) as second:
            assert len(second.notices) == 1
            first.publish(text(61), entry(61))
            assert first.notices == []
            assert second.get([text(61)]) == {text(61): entry(61)}


def test_processes_that_find_one_damage_mend_it_once(path: Path, whole: bytes) -> None:
    script = """
    sys.stdin.readline()
    with LatencyTable(path, DEVICE) as table:
        table.publish(text(100 + arguments[0]), entry(100 + arguments[0]))
    """
    path.write_bytes(_zeroed(whole, 0))
    children = [start(_unindented(script), path, number) for number in range(4)]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        child.communicate(timeout=60)
        assert child.returncode == 0
    assert len(list(path.parent.glob("*.damaged-*"))) == 1
    with LatencyTable(path, DEVICE) as table:
        assert numbers(table) == {*range(1, 61), *range(100, 104)}


def test_a_damaged_table_is_not_merged(path: Path, whole: bytes) -> None:
    other = path.with_name("other.sqlite")
    for ruined in (_zeroed(whole, 2), whole.replace(b"4096.0", b"2048.0", 1), b"text" * 100, b""):
        other.write_bytes(ruined)
        with LatencyTable(path, DEVICE) as table:
            with pytest.raises(InputError, match=r"other\.sqlite is damaged"):
                table.merge(other)
            assert table.entries() == {}
        assert other.read_bytes() == ruined


# -- full disks --------------------------------------------------------------------------------------------------------

_UNTIL_FULL = """
    def failure(action):
        try:
            action()
        except TrimtabError as error:
            return str(error)
    def publish_until_full(first):
        for number in range(first, first + 100000):
            error = failure(lambda: table.publish(text(number), entry(number)))
            if error:
                return number, error
    with LatencyTable(path, DEVICE) as table:
        failed, error = publish_until_full(1)
        more = failure(lambda: table.publish(text(failed), entry(failed)))
        known = len(table.entries())
    with LatencyTable(path, DEVICE) as table:
        known_anew, notices = len(table.entries()), table.notices
        files = sorted(os.listdir(path.parent))
        copying = failure(lambda: table.copy_to(path.with_name("copy.sqlite")))
        files_after = sorted(os.listdir(path.parent))
        {make_room}
        table.publish(text(failed), entry(failed))
    print(json.dumps([failed, error, more, known, known_anew, notices, files, copying, files_after]))
"""


def _unindented(script: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in script.splitlines())


def _on_small_disk(folder: Path, script: str) -> str:
    """Runs the script on a table in an own file system of 512 KiB."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare to mount a small disk with")
    mount = [unshare, "-m", "sh", "-c", 'mount -t tmpfs -o size=512k tmpfs "$0" && exec "$@"', str(folder)]
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    command = [*mount, sys.executable, "-B", "-c", _PRELUDE + script, str(folder / "table.sqlite")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def _check_until_full(output: str) -> None:
    failed, error, more, known, known_anew, notices, files, copying, files_after = json.loads(output)
    assert failed > 20
    for line in (error, more, copying):
        assert "cannot be read or written" in line
        assert "make room" in line
        assert "\n" not in line
    assert known == known_anew == failed - 1
    assert notices == []
    assert files_after == files
    assert "table.sqlite-journal" not in files


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    script = _UNTIL_FULL.format(make_room="path.with_name('ballast').unlink()")
    ballast = "path.with_name('ballast').write_bytes(bytes(200_000))\n"
    _check_until_full(_on_small_disk(tmp_path, ballast + _unindented(script)))


def test_a_limit_on_file_sizes_is_one_line_and_loses_nothing(path: Path) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))\n"
    make_room = "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))"
    output = finished(start(limit + _unindented(_UNTIL_FULL.format(make_room=make_room)), path))
    failed, error, more, known, known_anew, notices, *_ = json.loads(output)
    assert failed > 20
    assert error == more
    assert "cannot be read or written" in error
    assert known == known_anew == failed - 1
    assert notices == []


def test_damage_on_a_full_disk_is_one_line_and_mended_once_there_is_room(tmp_path: Path) -> None:
    script = """
    with LatencyTable(path, DEVICE) as table:
        for number in range(1, 101):
            table.publish(text(number), entry(number))
    data = bytearray(path.read_bytes())
    data[:16] = bytes(16)
    path.write_bytes(data)
    ballast = path.with_name("ballast").open("wb", buffering=0)
    try:
        while True:
            ballast.write(bytes(4096))
    except OSError:
        ballast.close()
    lines = []
    for _ in range(2):
        try:
            LatencyTable(path, DEVICE)
        except TrimtabError as error:
            lines.append(str(error))
    files = sorted(os.listdir(path.parent))
    unchanged = path.read_bytes() == data
    path.with_name("ballast").unlink()
    latency_table._log.disabled = True
    with LatencyTable(path, DEVICE) as table:
        print(json.dumps([lines, files, unchanged, len(table.entries()), len(table.notices)]))
    """
    lines, files, unchanged, known, notices = json.loads(_on_small_disk(tmp_path, _unindented(script)))
    assert len(lines) == 2
    assert all("make room" in line and "\n" not in line for line in lines)
    assert files == [".table.sqlite.lock", "ballast", "table.sqlite"]
    assert unchanged
    assert (known, notices) == (100, 1)
