"""Linking compiled code into a shared library for a machine of another architecture."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence

from backends.tvm.target import Cpu
from search_spaces.errors import InputError, TrimtabError

COMPILER = "TRIMTAB_CXX"
"""Environment variable: the C++ compiler that links, with its arguments where it needs some."""


def linker(cpu: Cpu) -> Callable[[str, Sequence[str]], None] | None:
    """What `export_library` takes as `fcompile`: nothing where this machine's own compiler will do, else a function
    that raises TrimtabError where linking fails.

    Raises:
        InputError: see `cross_compiler`.
    """
    if cpu.links_here:
        return None
    compiler = cross_compiler(cpu.triple)

    def link(path: str, objects: Sequence[str]) -> None:
        command = [*compiler, "-shared", "-fPIC", "-o", path, *objects]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
            raise TrimtabError(
                f"{shlex.join(compiler)} cannot link for {cpu.triple}: {reason}; name another in {COMPILER}"
            )

    return link


def cross_compiler(triple: str) -> list[str]:
    """The command that compiles and links C++ for that triple: the one named by `TRIMTAB_CXX`, or GCC or Clang on the
    PATH under the triple's name, as Debian and Android's NDK have them.

    Raises:
        InputError: there is none.
    """
    if named := os.environ.get(COMPILER, "").strip():
        try:
            command = shlex.split(named)
        except ValueError as error:
            raise InputError(f"{COMPILER} is no command: {named!r} ({error}); correct or unset it") from None
        if shutil.which(command[0]) is None:
            raise InputError(f"{COMPILER} names the compiler {command[0]!r}, which cannot be run; correct or unset it")
        return command
    without_vendor = "-".join((triple.split("-")[0], *triple.split("-")[-2:]))
    names = [f"{prefix}-{compiler}" for prefix in (triple, without_vendor) for compiler in ("g++", "clang++")]
    for name in names:
        if shutil.which(name) is not None:
            return [name]
    debian = f" (on Debian 'apt install g++-{without_vendor.replace('_', '-')}')" if triple.endswith("-gnu") else ""
    raise InputError(
        f"linking for {triple} needs a C++ compiler, and there is no {names[0]!r} on the PATH; install it{debian} or "
        f"name one in {COMPILER}"
    )
