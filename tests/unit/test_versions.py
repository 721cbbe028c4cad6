"""Files of a newer Trimtab, and of one too old, are refused in one line that says what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import save

from automl.errors import InputError
from automl.export.manifest import read_manifest
from automl.orchestration.search_loop import read_snapshot
from automl.predictors.samples import read_samples
from automl.run.explanation import Explanation
from search_spaces.policy import CompressionPolicy
from search_spaces.versions import require_version


def snapshot(path: Path, version: object) -> object:
    return read_snapshot(save({}, {"trimtab": json.dumps({"format": version})}))


def document(key: str, read: Callable[[Path], object]) -> Callable[[Path, object], object]:
    def written(path: Path, version: object) -> object:
        path.write_text(json.dumps({key: version, "layers": {}}))
        return read(path)

    return written


READERS: dict[str, Callable[[Path, object], object]] = {
    "policy": document("schema_version", CompressionPolicy.load),
    "samples": document("version", lambda path: read_samples(path, "it")),
    "explanation": document("format", Explanation.read),
    "manifest.json": document("schema_version", lambda path: read_manifest(path.parent)),
    "snapshot": snapshot,
}


@pytest.mark.parametrize("name", READERS)
def test_newer_ones_are_refused_as_such_and_others_with_a_remedy(name: str, tmp_path: Path) -> None:
    file = tmp_path / (name if "." in name else f"{name}.json")
    with pytest.raises(InputError, match=r"(has|have) \w+ 99, made by a newer Trimtab, and this one reads [\d, ]+;"):
        READERS[name](file, 99)
    for version in (0, "one", None):
        with pytest.raises(InputError, match=rf"{name}.* \w+ {version!r}, and this Trimtab reads [\d, ]+; \S+ "):
            READERS[name](file, version)


def test_known_ones_pass() -> None:
    require_version("a file", 2, [1, 2], "make it anew")
    with pytest.raises(InputError, match="a file has layout True, and this Trimtab reads 1, 2; make it anew"):
        require_version("a file", True, [1, 2], "make it anew", called="layout")
