"""torch as a measured backend: eager and compiled, on the CPU and, where there is one, on a CUDA device."""

import shutil

import pytest
import torch
from torch import nn

from automl.testing.backends import Measuring, MeasuringConformance
from automl.testing.problems import conv_chain
from backends.torch_engines import TorchBackend
from search_spaces.errors import InputError

NEEDS_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device that torch can use")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


class TestEager(MeasuringConformance):
    def make(self) -> Measuring:
        return TorchBackend()


class TestEagerWithTwoThreads(MeasuringConformance):
    threads = 2

    def make(self) -> Measuring:
        return TorchBackend(threads=2)


@NEEDS_CUDA
class TestEagerOnCuda(MeasuringConformance):
    def make(self) -> Measuring:
        return TorchBackend(device="cuda")


@NEEDS_CUDA
class TestCompiledOnCuda(MeasuringConformance):
    def make(self) -> Measuring:
        return TorchBackend(device="cuda", compiled=True)


@NEEDS_COMPILER
@pytest.mark.slow
class TestCompiled(MeasuringConformance):
    def make(self) -> Measuring:
        return TorchBackend(compiled=True)


@NEEDS_COMPILER
@pytest.mark.slow
def test_compiled_code_is_timed_and_leaves_nothing_behind(tmp_path, monkeypatch):
    watched = tmp_path / "watched"
    watched.mkdir()
    monkeypatch.setenv("TMPDIR", str(watched))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(watched / "inductor"))
    torch.manual_seed(0)
    found = TorchBackend(compiled=True).measure(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.randn(1, 8))
    assert found.engine == "torch_compiled"
    assert found.details["torch_compiled"].startswith("2.")
    assert not [path for path in watched.rglob("*") if path.name != "inductor"]  # torch.export makes that folder itself


def test_what_the_machine_lacks_is_a_reason(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for backend, reason in [
        (TorchBackend(compiled=True), "needs a C\\+\\+ compiler, 'no-such-compiler' is not installed"),
        (TorchBackend(device="cuda"), "finds no CUDA device"),
    ]:
        assert len(backend.supports(conv_chain())) == 1
        with pytest.raises(InputError, match=reason):
            backend.measure(nn.Linear(2, 2), torch.zeros(1, 2))
    assert TorchBackend().supports(conv_chain()) == ()
