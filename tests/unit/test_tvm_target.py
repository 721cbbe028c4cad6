import pytest

from backends.tvm import target
from backends.tvm.target import cpu_for
from search_spaces.errors import InputError

ARM = "aarch64-linux-gnu"


@pytest.mark.parametrize(
    ("mcpu", "triple", "vectors"),
    [
        ("skylake-avx512", "", (16, 32)),
        ("haswell", "", (8, 16)),
        ("haswell", "x86_64-linux-gnu", (8, 16)),
        ("x86-64", "", (4, 16)),
        (None, "x86_64-linux-musl", (4, 16)),
        *[(mcpu, ARM, (4, 32)) for mcpu in (None, "cortex-a53", "cortex-a72", "cortex-a76", "neoverse-v2", "apple-m1")],
        ("cortex-a55", "aarch64-linux-android30", (4, 32)),
        ("cortex-a72", "aarch64-unknown-linux-gnu", (4, 32)),
    ],
)
def test_target_decides_vectors_and_registers(mcpu, triple, vectors):
    cpu = cpu_for(mcpu, triple=triple)
    assert (cpu.lanes, cpu.registers) == vectors
    assert cpu.holds_inputs == triple.startswith("aarch64")


def test_target_is_what_tvm_compiles_for():
    attrs = cpu_for("cortex-a72", 2, ARM).target.attrs
    assert (attrs["mtriple"], attrs["mcpu"], attrs["num-cores"]) == (ARM, "cortex-a72", 2)
    assert "mtriple" not in cpu_for("haswell").target.attrs


def test_code_for_the_same_architecture_runs_here():
    here = cpu_for()
    assert here.runs_here
    assert cpu_for(triple=f"{here.architecture}-linux-gnu").runs_here
    other = "x86_64" if here.architecture == "aarch64" else "aarch64"
    assert not cpu_for(triple=f"{other}-linux-gnu").runs_here


def test_code_runs_where_its_instructions_are(monkeypatch):
    if cpu_for().architecture != "x86_64":
        pytest.skip("the processors are of x86_64")
    target._runs_here.cache_clear()
    monkeypatch.setattr("tvm.target.codegen.llvm_get_system_cpu", lambda: "haswell")
    runs = {name: cpu_for(name).runs_here for name in ("x86-64", "ivybridge", "haswell", "skylake-avx512")}
    target._runs_here.cache_clear()
    assert runs == {"x86-64": True, "ivybridge": True, "haswell": True, "skylake-avx512": False}


@pytest.mark.parametrize(
    ("mcpu", "triple", "message"),
    [
        ("cortex-a99", ARM, r"no processor 'cortex-a99' of aarch64-linux-gnu; did you mean 'cortex-a\d+'.*\?$"),
        ("skylake", ARM, r"no processor 'skylake' of aarch64-linux-gnu; leave it out for any of that architecture$"),
        ("q", "", "no processor 'q' of this machine; leave it out for this machine's$"),
        # LLVM would take the whole process with it
        (None, "nosuch-linux-gnu", r"triple 'nosuch-linux-gnu'; give .* such as 'aarch64-linux-gnu'$"),
        (None, "aarch64", "triple 'aarch64'; give "),
        (None, "riscv64-linux-gnu", "triple 'riscv64-linux-gnu'; give "),
        (None, "aarch64-apple-darwin", "triple 'aarch64-apple-darwin'; give "),
        (None, "aarch64-linux-gnu\n", "triple 'aarch64-linux-gnu\\\\n'; give "),
    ],
)
def test_what_llvm_does_not_know_is_one_line(mcpu, triple, message, capfd):
    with pytest.raises(InputError, match=message) as error:
        cpu_for(mcpu, triple=triple)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""
