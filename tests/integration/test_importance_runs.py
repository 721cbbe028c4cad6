"""Importance by name in a run's config: data are drawn for what needs them, and always the same."""

from pathlib import Path
from typing import Any

import pytest

import automl
from automl.errors import InputError
from automl.problem import Problem


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def problem(**compression: Any) -> Problem:
    return Problem.build(
        automl.load_config(
            {
                "model": {"name": "lenet5"},
                "data": {"name": "digits", "args": {"size": 16}},
                "baseline": {"epochs": 0},
                "budget": {"metric": "macs", "ratio": 0.5},
                "compression": {"calibration_images": 30, **compression},
                "measure": {"backend": "none"},
            }
        )
    )


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "random"])
@pytest.mark.parametrize("others", [{}, {"reconstruct": False}, {"recalibrate_images": 50}])
def test_what_is_reported_as_kept_is_what_is_kept(importance: str, others: dict[str, Any]) -> None:
    found = problem(importance=importance, **others)
    policy = found.graph.policy([group.width // 2 for group in found.graph.groups])
    assert found.kept(policy) == found.compressor().kept(policy)


def test_what_the_network_lacks_is_said_before_anything_is_trained() -> None:
    with pytest.raises(InputError, match="'conv1' cannot be ranked by 'batch_norm_scale': no batch norm with a scale"):
        problem(importance="batch_norm_scale")
    with pytest.raises(InputError, match=r"unknown importance 'tailor'; did you mean 'taylor'\?"):
        problem(importance="tailor")
