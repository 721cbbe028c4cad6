"""The samples of a predictor: read back as they were written, refused in one line where they are not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from automl.predictors.samples import Sample, read_samples, write_samples
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy, LayerPolicy

MODEL = "a" * 64
SAMPLES = [
    Sample(CompressionPolicy({"conv": LayerPolicy(keep=0.5)}, MODEL), 0.75),
    Sample(CompressionPolicy({"block": LayerPolicy(remove=True)}, MODEL, (12, 12)), -0.5, held_out=True),
]


def test_they_are_read_back_as_they_were(tmp_path: Path) -> None:
    write_samples(tmp_path / "samples.json", MODEL, SAMPLES)
    assert read_samples(tmp_path / "samples.json", MODEL) == SAMPLES


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda document: document.update(version=2), "has version 2, made by a newer Trimtab, and this one reads 1"),
        (lambda document: document.update(model="b" * 64), "are of another network"),
        (lambda document: document.pop("samples"), "are damaged: KeyError"),
        (lambda document: document.update(samples=[3]), "are damaged: TypeError"),
        (lambda document: document["samples"][0].update(accuracy="0.5"), "an accuracy is a number, got '0.5'"),
        (lambda document: document["samples"][1].update(split="test"), "a split is 'train' or 'held_out'"),
        (lambda document: document["samples"][1].update(policy={}), "are damaged: InputError"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    change: Callable[[dict[str, Any]], object], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "samples.json"
    write_samples(path, MODEL, SAMPLES)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=said) as caught:
        read_samples(path, MODEL)
    assert "\n" not in str(caught.value)


def test_a_missing_and_a_truncated_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.json"
    with pytest.raises(InputError, match="are not there"):
        read_samples(path, MODEL)
    write_samples(path, MODEL, SAMPLES)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="are damaged"):
        read_samples(path, MODEL)
