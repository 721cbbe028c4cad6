"""AMC's searches and OFA's: each starts on small files in the formats of its data set, and says what is missing.

OFA's goes to the point where its supernet would be trained.
"""

from pathlib import Path

import pytest
from data_files import write_cifar10, write_image_folder

from automl.cli import main
from automl.config import load_config
from automl.evaluation import PolicyEvaluator
from automl.problem import Problem

CONFIGS = Path(__file__).parents[2] / "configs"
CIFAR = ("amc_resnet56_cifar10", "amc_plain20_cifar10")
IMAGENET = "amc_mobilenet_v1_imagenet"
SUPERNET = "ofa_mobilenet_v3_imagenet"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "cache"))  # the command sets it where it is not set


def outline(name: str, root: Path, val: int, *overrides: str) -> Problem:
    given = [f"data.args.root={root}", f"data.args.val={val}", "compression.calibration_images=20", *overrides]
    return Problem.outline(load_config(CONFIGS / f"{name}.yaml", given))


def check_evaluates(problem: Problem) -> None:
    """A policy of the space meets the budget, and its network has an accuracy."""
    evaluator = problem.evaluator()
    assert isinstance(evaluator, PolicyEvaluator)
    evaluation = evaluator(problem.space.cheapest())
    assert evaluation.error is None
    assert evaluation.violation == 0
    assert problem.constraint.limit == 0.5 * problem.graph.macs


@pytest.mark.parametrize(("name", "macs"), [(CIFAR[0], 125_485_696), (CIFAR[1], 40_551_040)])
def test_cifar(tmp_path: Path, name: str, macs: int) -> None:
    write_cifar10(tmp_path)
    problem = outline(name, tmp_path, 30)
    assert problem.graph.macs == macs
    check_evaluates(problem)


def test_imagenet(tmp_path: Path) -> None:
    write_image_folder(tmp_path, train=8, side=80)
    problem = outline(IMAGENET, tmp_path, 6, "data.args.size=64")
    assert problem.data.input_shape == (3, 64, 64)
    assert all(group.width % 8 == 0 for group in problem.graph.groups)
    check_evaluates(problem)


@pytest.mark.slow
def test_supernet(tmp_path: Path) -> None:
    write_image_folder(tmp_path, train=8, side=80)
    problem = outline(
        SUPERNET, tmp_path, 6, "data.args.size=64", "space.resolution=[48]", "budget={metric: macs, ratio: 0.3}"
    )
    assert problem.space.size == 2 * (9**2 + 9**3 + 9**4) ** 5
    assert problem.graph.apply(problem.space.cheapest()).macs < problem.constraint.limit
    assert problem.supernet is None


@pytest.mark.parametrize("name", [*CIFAR, IMAGENET, SUPERNET])
def test_missing_data_is_said_in_one_line(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    code = main(
        ["search", str(CONFIGS / f"{name}.yaml"), "--out", str(out), "--set", f"data.args.root={tmp_path / 'absent'}"]
    )
    errors = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len([line for line in errors if "error" in line]) == 1
    assert str(tmp_path / "absent") in errors[-1]
    assert ("data_batch_1.bin" if name in CIFAR else "train and val are not in") in errors[-1]
    assert not out.exists()
