"""The manifest is data that anyone may have written: names, sizes and digests are all checked."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from automl.export.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    copy_verified,
    is_plain_name,
    open_regular,
    read_manifest,
    record_file,
)
from search_spaces.errors import InputError

CONTENT = bytes(range(256)) * 5000  # more than one chunk


@pytest.fixture
def document() -> dict[str, Any]:
    return {
        "schema_version": 1,
        "trimtab": "0.1.0",
        "files": {"model.onnx": {"bytes": 3, "sha256": "a" * 64}},
        "input": {"shape": [1, 8, 8], "dtype": "float32"},
        "classes": 10,
        "batch": {"model.onnx": "dynamic", "model.so": 1},
        "data": {"name": "digits"},
        "accuracy": 0.5,
        "verification": {"images": 10, "of": 20, "accuracy": 0.5},
        "macs": 1,
        "params": 2,
        "weight_bytes": 8,
    }


@pytest.fixture
def stored(tmp_path: Path) -> FileRecord:
    (tmp_path / "model.onnx").write_bytes(CONTENT)
    return record_file(tmp_path / "model.onnx")


def test_a_manifest_survives_its_file(document: dict[str, Any]) -> None:
    manifest = Manifest.from_json(json.dumps(document))
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    "name",
    [
        "../model.so",
        "/etc/passwd",
        "a/b",
        "..",
        ".",
        "",
        ".hidden",
        "a\\b",
        "C:model.so",
        "a\nb",
        "\u202emodel",
        "x\0y",
    ],
)
def test_a_manifest_names_files_of_its_own_directory_only(document: dict[str, Any], name: str) -> None:
    document["files"] = {name: document["files"]["model.onnx"]}
    with pytest.raises(InputError, match=r"manifest\.json is damaged"):
        Manifest.from_json(json.dumps(document))


def test_plain_names_are_plain() -> None:
    assert is_plain_name("model.so")
    assert is_plain_name("policy 2.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), 2),
        (("files", "model.onnx", "bytes"), -1),
        (("files", "model.onnx", "bytes"), "3"),
        (("files", "model.onnx", "sha256"), "A" * 64),
        (("accuracy",), None),
        (("macs",), 1.5),
        (("batch", "model.so"), "many"),
        (("verification", "images"), 0),
        (("input", "shape"), []),
        (("input", "dtype"), "object"),
        (("surprise",), 1),
    ],
)
def test_every_value_is_checked(document: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    inner = document
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    with pytest.raises(InputError, match=path[0]) as caught:
        Manifest.from_json(json.dumps(document))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"accuracy": NaN}', b"[" * 100_000])
def test_what_is_no_manifest_is_refused_in_one_line(text: bytes) -> None:
    with pytest.raises(InputError, match="damaged") as caught:
        Manifest.from_json(text)
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_manifest_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match="not a directory"):
        read_manifest(tmp_path / "absent")


def test_an_intact_file_is_copied(tmp_path: Path, stored: FileRecord) -> None:
    assert stored.bytes == len(CONTENT)
    assert copy_verified(tmp_path, "model.onnx", stored, tmp_path / "copy") is None
    assert (tmp_path / "copy").read_bytes() == CONTENT


@pytest.mark.parametrize("position", [0, len(CONTENT) // 2, len(CONTENT) - 1])
def test_a_flipped_bit_is_seen_and_nothing_is_left_to_load(tmp_path: Path, stored: FileRecord, position: int) -> None:
    damaged = bytearray(CONTENT)
    damaged[position] ^= 1
    (tmp_path / "model.onnx").write_bytes(damaged)
    assert "SHA-256" in str(copy_verified(tmp_path, "model.onnx", stored, tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"\0"])
def test_another_size_is_seen(tmp_path: Path, stored: FileRecord, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    wrong = copy_verified(tmp_path, "model.onnx", stored, tmp_path / "copy")
    assert wrong == f"{len(content)} bytes, the manifest says {len(CONTENT)}"
    assert not (tmp_path / "copy").exists()


def test_a_missing_file_is_seen(tmp_path: Path, stored: FileRecord) -> None:
    assert copy_verified(tmp_path, "model.so", stored, tmp_path / "copy") == "model.so is missing"


def test_links_pipes_and_directories_are_not_read(tmp_path: Path, stored: FileRecord) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "model.onnx")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, reason in (("link", "symbolic link"), ("pipe", "not a regular file"), ("folder", "not a regular file")):
        assert reason in str(copy_verified(tmp_path, name, stored, tmp_path / "copy"))
    with pytest.raises(InputError, match="plain names"):
        open_regular(tmp_path, "../secret")


def test_a_linked_manifest_is_refused(tmp_path: Path, document: dict[str, Any]) -> None:
    (tmp_path / "elsewhere.json").write_text(json.dumps(document))
    export = tmp_path / "best"
    export.mkdir()
    (export / MANIFEST).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(InputError, match="symbolic link"):
        read_manifest(export)
