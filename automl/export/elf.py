"""Which processor a shared library is for, without loading it."""

import platform
from pathlib import Path

_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""`e_machine` of the ELF header, by what `platform.machine` calls it."""


def foreign_architecture(path: Path) -> str | None:
    """The architecture that a library is for where this machine has another; None where it may run here, and where the
    file does not name one: then running it will tell."""
    with path.open("rb") as file:
        header = file.read(20)
    if header[:4] != b"\x7fELF" or len(header) < 20:
        return None
    number = int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")
    architecture = _MACHINES.get(number)
    return None if architecture == platform.machine() else architecture
