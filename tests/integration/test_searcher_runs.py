"""Whole runs of every search algorithm, killed for real: `trimtab search`, SIGKILL, `trimtab resume`.

test_searcher_kills.py does the same without Ray, in seconds.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from run_processes import PATIENCE_S, kill_after, none_left_behind, record, start, trimtab

from automl.searchers import searcher_names

CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "baseline": {"epochs": 1, "lr": 0.05},
    "space": {"weight_bits": [2, 4, 8], "activation_bits": [4, 8]},
    "budget": {"metric": "weight_bytes", "ratio": 0.15},
    "search": {"evaluations": 20, "evaluators": 2, "lag": 3},
    "compression": {"calibration_images": 60},
    "fine_tune": {"epochs": 0},
    "measure": {"backend": "none"},
}
NAMES = [name for name, _ in searcher_names() if name not in ("uniform", "given")]  # they are over before a kill

OPTIONS = {
    "gradient": (
        *("--set", "space={kernel: [3]}", "--set", "budget.ratio=0.4"),
        *("--set", "search.options={steps: 20, batch: 16}"),
    )
}
"""Of algorithms that do not decide on bits, or whose defaults take long."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("searchers")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


@pytest.fixture(scope="module", autouse=True)
def families() -> Iterator[list[psutil.Process]]:
    """Processes of killed drivers."""
    with none_left_behind() as left:
        yield left


@pytest.mark.parametrize("name", NAMES)
def test_killed_and_resumed_with_one_evaluator_equals_uninterrupted(
    name: str, home: Path, families: list[psutil.Process]
) -> None:
    chance = random.Random(seed := random.SystemRandom().randrange(2**32))
    command = ("search", "tiny.yaml", "--set", f"search.algorithm={name}", *OPTIONS.get(name, ()))
    code, _, err = trimtab(home, *command, "--out", f"{name}-whole")
    assert code == 0, err
    run = home / f"{name}-killed"
    process = start(home, *command, "--out", run.name, "--set", "search.evaluators=1")
    families.extend(kill_after(process, run, chance, at_least=chance.randrange(20)))
    process = start(home, "resume", run.name)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert record(run) == record(home / f"{name}-whole"), f"seed {seed}"
