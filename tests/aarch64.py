"""Code for aarch64 run on this machine: linked by Debian's cross compiler, loaded by TVM's own runtime for that
processor, executed by qemu-user.

`python tests/aarch64.py` fetches the runtime, of the release that is installed, into the cache; nothing else here needs
the network.
"""

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tvm_ffi.libinfo

from backends.lease import cache_root

TRIPLE = "aarch64-linux-gnu"
PACKAGES = {"apache-tvm": "libtvm_runtime.so", "apache-tvm-ffi": "libtvm_ffi.so"}
"""What is loaded on the device, by the package that has it."""

Array = npt.NDArray[np.generic]
_CODES = {"i": 0, "u": 1, "f": 2}
"""DLPack's, of NumPy's kinds."""


@dataclass(frozen=True)
class Emulator:
    """Processors that run libraries of TVM's virtual machine.

    Attributes:
        host: the program that runs them.
        runtime: folder of TVM's runtime.
        system: folder of the C library.
    """

    host: Path
    runtime: Path
    system: Path

    def run(
        self, library: Path, calls: Sequence[tuple[str, Sequence[Array]]], *, cpu: str = "max", threads: int = 1
    ) -> list[Array]:
        """What the library's functions give for their operands, on a processor by qemu's name."""
        with tempfile.TemporaryDirectory() as folder:
            arguments: list[str] = []
            results: list[Path] = []
            for function, operands in calls:
                paths = [Path(folder, f"{len(results)}.{index}") for index in range(len(operands) + 1)]
                for path, operand in zip(paths, operands, strict=False):
                    _write(operand, path)
                results.append(paths[-1])
                arguments += [function, str(len(operands)), *map(str, paths)]
            subprocess.run([*self.command(cpu, threads), str(library), *arguments], check=True, timeout=300)
            return [_read(path) for path in results]

    def command(self, cpu: str = "max", threads: int = 1) -> list[str]:
        """What starts the program, before its arguments."""
        environment = {"LD_LIBRARY_PATH": str(self.runtime), "TVM_NUM_THREADS": str(threads)}
        exported = [part for item in environment.items() for part in ("-E", "=".join(item))]
        return ["qemu-aarch64", "-cpu", cpu, "-L", str(self.system), *exported, str(self.host)]


def build_emulator(folder: Path, source: str = "aarch64_host.cc") -> Emulator:
    """Compiles a program beside this file into a folder; skips the test where this machine lacks what it takes."""
    for program, package in ((f"{TRIPLE}-g++", f"g++-{TRIPLE}"), ("qemu-aarch64", "qemu-user")):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} (on Debian: apt install {package})")
    runtime = runtime_folder()
    if not runtime.is_dir():
        pytest.skip("no TVM runtime for aarch64; `make aarch64` fetches it")
    name = subprocess.run([f"{TRIPLE}-g++", "-print-file-name=libc.so.6"], capture_output=True, text=True, check=True)
    _compile_host(source, runtime, folder / "host")
    return Emulator(folder / "host", runtime, Path(name.stdout.strip()).resolve().parents[1])


def runtime_folder() -> Path:
    """Where the runtime lies, or would."""
    return cache_root() / "tvm" / "aarch64" / "-".join(importlib.metadata.version(package) for package in PACKAGES)


def _compile_host(source: str, runtime: Path, path: Path) -> None:
    includes = (tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path())
    libraries = [f"-l{library.removeprefix('lib').removesuffix('.so')}" for library in PACKAGES.values()]
    command = [f"{TRIPLE}-g++", "-std=c++17", "-O1", *(f"-I{path}" for path in includes)]
    command += [str(Path(__file__).with_name(source)), "-o", str(path)]
    command += [f"-L{runtime}", "-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined", *libraries]
    subprocess.run(command, check=True)


def _write(array: Array, path: Path) -> None:
    words = [_CODES[array.dtype.kind], 8 * array.dtype.itemsize, array.ndim, *array.shape]
    path.write_bytes(np.array(words, dtype=np.int64).tobytes() + np.ascontiguousarray(array).tobytes())


def _read(path: Path) -> Array:
    content = path.read_bytes()
    code, bits, axes = np.frombuffer(content, np.int64, 3)
    shape = np.frombuffer(content, np.int64, axes, offset=24)
    kind = next(kind for kind, number in _CODES.items() if number == code)
    return np.frombuffer(content, f"{kind}{bits // 8}", offset=8 * (3 + axes)).reshape(shape)


def fetch() -> None:
    """Downloads the runtime's packages for aarch64 and keeps their libraries."""
    target = runtime_folder()
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wanted = [f"{package}=={importlib.metadata.version(package)}" for package in PACKAGES]
        platforms = ["--platform=manylinux_2_28_aarch64", "--platform=manylinux2014_aarch64"]
        options = ["--quiet", "--no-deps", "--only-binary=:all:", *platforms, f"--dest={scratch}"]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, *wanted], check=True)
        kept = Path(scratch, "kept")
        kept.mkdir()
        for wheel in Path(scratch).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if Path(name).name in PACKAGES.values():
                        (kept / Path(name).name).write_bytes(archive.read(name))
        kept.replace(target)


if __name__ == "__main__":
    fetch()
