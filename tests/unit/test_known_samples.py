"""What a run's searches know before they evaluate anything: the samples beside its supernet, as they were at first."""

from pathlib import Path

import pytest

from automl.config import Config, load_config
from automl.predictors.samples import Sample, write_samples
from automl.run.known import known_samples
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy, LayerPolicy

MODEL = "a" * 64
SAMPLES = [Sample(CompressionPolicy({"conv": LayerPolicy(keep=share)}, MODEL), share) for share in (0.25, 0.5, 0.75)]
JUDGE = Sample(CompressionPolicy({}, MODEL), 1.0, held_out=True)


def config_of(checkpoint: Path | None, algorithm: str = "once_for_all") -> Config:
    return load_config(
        {
            "model": {"name": "lenet5"},
            "data": {"name": "digits", "args": {"size": 16}},
            "budget": {"metric": "macs", "ratio": 0.5},
            "supernet": {"checkpoint": None if checkpoint is None else str(checkpoint)},
            "search": {"algorithm": algorithm},
        }
    )


def test_a_resumed_run_knows_what_it_knew_and_none_of_what_judges(tmp_path: Path) -> None:
    kept = tmp_path / "run.json"
    write_samples(tmp_path / "samples.json", MODEL, [*SAMPLES[:2], JUDGE])
    assert known_samples(config_of(tmp_path), MODEL, kept) == SAMPLES[:2]
    write_samples(tmp_path / "samples.json", MODEL, SAMPLES)
    assert known_samples(config_of(tmp_path), MODEL, kept) == SAMPLES[:2]
    assert known_samples(config_of(tmp_path), MODEL, tmp_path / "another.json") == SAMPLES


def test_nothing_is_known_where_there_are_none_even_if_some_come_later(tmp_path: Path) -> None:
    kept = tmp_path / "run.json"
    for config in (config_of(None), config_of(tmp_path), config_of(tmp_path / "supernet.safetensors")):
        assert known_samples(config, MODEL, kept) == []
    write_samples(tmp_path / "samples.json", MODEL, SAMPLES)
    assert known_samples(config_of(tmp_path), MODEL, kept) == []
    assert known_samples(config_of(tmp_path, "random"), MODEL, tmp_path / "another.json") == []
    assert not (tmp_path / "another.json").exists()


def test_samples_of_another_network_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    write_samples(tmp_path / "samples.json", "b" * 64, [])
    with pytest.raises(InputError, match="are of another network"):
        known_samples(config_of(tmp_path), MODEL, tmp_path / "run.json")
    assert not (tmp_path / "run.json").exists()
    (tmp_path / "samples.json").write_text("{")
    with pytest.raises(InputError, match="are damaged"):
        known_samples(config_of(tmp_path), MODEL, tmp_path / "run.json")
