"""ONNX Runtime as a measured backend."""

import pytest

from automl.testing.backends import Measuring, MeasuringConformance
from backends.onnxruntime import OnnxRuntimeBackend


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


class TestOnnxRuntime(MeasuringConformance):
    def make(self) -> Measuring:
        return OnnxRuntimeBackend()


class TestOnnxRuntimeWithTwoThreads(MeasuringConformance):
    threads = 2

    def make(self) -> Measuring:
        return OnnxRuntimeBackend(threads=2)
