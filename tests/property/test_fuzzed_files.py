"""Files that anything may have happened to: one clear line or a result, no pickle, nothing written elsewhere.

A file of each kind is cut, spliced, overwritten and made to say other things. CI tries some tens of mutants of each;
`pytest -m slow` thousands. `tests/fuzz.py` lets the code that is covered say which to try.
"""

import re
from pathlib import Path

import pytest
from file_kinds import NAMES, ODD, Kind, Watch, forbid_pickle, judge, kinds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW, MANY = 12, 1500

PLAIN = ("samples", "latency budget", "policy")
"""Kinds that are JSON beside those of a name that says so."""


# -- mutants -----------------------------------------------------------------------------------------------------------


@st.composite
def mutants(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with one to four things done to it."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 40))
        what = draw(st.integers(0, 6))
        if what == 0:
            del data[place:]
        elif what == 1:
            del data[place : place + length]
        elif what == 2:
            data[place:place] = data[place : place + length]
        elif what == 3 and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif what == 4:
            data[place : place + length] = draw(st.binary(min_size=1, max_size=40))
        else:  # a value becomes another, which keeps the file readable more often than not
            start, end = _token(bytes(data), place)
            data[start:end] = draw(st.sampled_from(ODD))
    return bytes(data)


def _token(data: bytes, place: int) -> tuple[int, int]:
    """The word, number or string around a place."""
    between = b" \n\t,:[]{}"
    start = end = place
    while start > 0 and data[start - 1] not in between:
        start -= 1
    while end < len(data) and data[end] not in between:
        end += 1
    return start, end


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module")
def all_kinds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Kind]]:
    folder = tmp_path_factory.mktemp("files")
    return folder, kinds(folder)


def tried(
    name: str, count: int, where: tuple[Path, dict[str, Kind]], watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads that many mutants of a kind of file."""
    folder, found = where
    forbid_pickle(monkeypatch.setattr)
    with judge(name, found[name], folder, watch) as judged:

        @settings(max_examples=count, database=None, suppress_health_check=list(HealthCheck))
        @given(mutants(found[name].content))
        def one(content: bytes) -> None:
            judged(content)

        one()


@pytest.mark.parametrize("name", NAMES)
def test_a_mutant_is_read_or_refused(
    name: str, all_kinds: tuple[Path, dict[str, Kind]], watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried(name, FEW, all_kinds, watch, monkeypatch)


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.endswith("json")] + ["samples", "latency budget", "policy"]
)
def test_whole_numbers_beyond_any_float_are_read_or_refused(
    name: str, all_kinds: tuple[Path, dict[str, Kind]], watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON has them, and Python reads them: every number of the file in turn."""
    folder, found = all_kinds
    forbid_pickle(monkeypatch.setattr)
    content = found[name].content
    with judge(name, found[name], folder, watch) as judged:
        for number in re.finditer(rb"(?<=[\s:\[,])-?\d[\d.e+-]*(?=[\s,\]}])", content):
            judged(content[: number.start()] + b"1" * 400 + content[number.end() :])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_thousands_of_mutants_are_read_or_refused(
    name: str, all_kinds: tuple[Path, dict[str, Kind]], watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried(name, MANY, all_kinds, watch, monkeypatch)
