import sys

import pytest

from backends.tvm.linking import COMPILER, cross_compiler, linker
from backends.tvm.target import cpu_for
from search_spaces.errors import InputError, TrimtabError

ARM = "aarch64-linux-gnu"
OTHER = "x86_64" if cpu_for().architecture == "aarch64" else "aarch64"


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder that is the whole PATH; without it nothing is named or found."""
    monkeypatch.delenv(COMPILER, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def program(path, code="raise SystemExit(0)"):
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("triple", "there", "found"),
    [
        (ARM, ["aarch64-linux-gnu-g++", "aarch64-linux-gnu-clang++", "g++"], "aarch64-linux-gnu-g++"),
        (ARM, ["aarch64-linux-gnu-clang++", "clang++"], "aarch64-linux-gnu-clang++"),
        ("aarch64-unknown-linux-gnu", ["aarch64-linux-gnu-g++"], "aarch64-linux-gnu-g++"),
        ("aarch64-linux-android30", ["g++", "aarch64-linux-android30-clang++"], "aarch64-linux-android30-clang++"),
    ],
)
def test_compiler_is_found_by_the_name_of_the_triple(tools, triple, there, found):
    for name in there:
        program(tools / name)
    assert cross_compiler(triple) == [found]


def test_named_compiler_comes_first_with_its_arguments(tools, monkeypatch):
    program(tools / "aarch64-linux-gnu-g++")
    monkeypatch.setenv(COMPILER, f"{program(tools / 'clang++')} --target={ARM} '-isysroot=a b'")
    assert cross_compiler(ARM) == [str(tools / "clang++"), f"--target={ARM}", "-isysroot=a b"]


@pytest.mark.parametrize(
    ("named", "triple", "message"),
    [
        (
            "",
            ARM,
            r"no 'aarch64-linux-gnu-g\+\+' .* \(on Debian 'apt install g\+\+-aarch64-linux-gnu'\) or name one in",
        ),
        (" ", "x86_64-linux-gnu", r"'apt install g\+\+-x86-64-linux-gnu'\) or name one in TRIMTAB_CXX$"),
        ("", "x86_64-linux-musl", "'x86_64-linux-musl-g.*; install it or name one in TRIMTAB_CXX$"),
        ("nosuch -x", ARM, "TRIMTAB_CXX names the compiler 'nosuch', which cannot be run; correct or unset it$"),
        ("a 'b", ARM, "TRIMTAB_CXX is no command: .*; correct or unset it$"),
    ],
)
def test_missing_compiler_is_one_line(tools, monkeypatch, named, triple, message):
    monkeypatch.setenv(COMPILER, named)
    with pytest.raises(InputError, match=message) as error:
        cross_compiler(triple)
    assert "\n" not in str(error.value)


def test_shared_library_is_linked_of_all_objects(tools, monkeypatch):
    monkeypatch.setenv(
        COMPILER, f"{program(tools / 'cxx', 'import sys; print(*sys.argv[1:], file=open(sys.argv[5], chr(119)))')} -O1"
    )
    link = linker(cpu_for(triple=f"{OTHER}-linux-gnu"))
    link(str(tools / "out.so"), ["a.o", "b.o"])
    assert (tools / "out.so").read_text().split() == [
        "-O1",
        "-shared",
        "-fPIC",
        "-o",
        str(tools / "out.so"),
        "a.o",
        "b.o",
    ]


@pytest.mark.parametrize(("says", "reason"), [("bad object\nand more\n", "bad object"), ("", "exit code 3")])
def test_failed_linking_is_one_line(tools, monkeypatch, says, reason):
    cxx = program(tools / "cxx", f"import sys; sys.stderr.write({says!r}); sys.exit(3)")
    monkeypatch.setenv(COMPILER, str(cxx))
    with pytest.raises(
        TrimtabError, match=f"cxx cannot link for {OTHER}-linux-gnu: {reason}; name another in TRIMTAB_CXX$"
    ):
        linker(cpu_for(triple=f"{OTHER}-linux-gnu"))("out.so", ["a.o"])


def test_own_compiler_links_for_this_machine_and_its_like(tools):
    here = cpu_for().architecture
    assert linker(cpu_for()) is None
    assert linker(cpu_for(triple=f"{here}-linux-gnu")) is None
    with pytest.raises(InputError):  # another C library
        linker(cpu_for(triple=f"{here}-linux-musl"))
