import platform

import pytest

from automl.export.elf import foreign_architecture


def header(machine: int, order: str = "little") -> bytes:
    return b"\x7fELF\x02" + (b"\x01" if order == "little" else b"\x02") + bytes(12) + machine.to_bytes(2, order)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("here", "content", "foreign"),
    [
        ("x86_64", header(62), None),
        ("x86_64", header(183), "aarch64"),
        ("aarch64", header(183), None),
        ("aarch64", header(62), "x86_64"),
        ("x86_64", header(183, "big"), "aarch64"),
        ("x86_64", header(9999), None),
        ("x86_64", header(183)[:19], None),
        ("x86_64", b"", None),
        ("arm64", b"\xcf\xfa\xed\xfe" + bytes(30), None),  # no ELF
    ],
)
def test_architecture_of_a_library(tmp_path, monkeypatch, here, content, foreign):
    (tmp_path / "model.so").write_bytes(content)
    monkeypatch.setattr(platform, "machine", lambda: here)
    assert foreign_architecture(tmp_path / "model.so") == foreign
