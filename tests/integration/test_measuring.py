"""Timing in a throwaway process, and what a bad artefact does to it: nothing but an error that names it."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from backends.measuring import Artefact, TvmBackend, _parties, measure, relative_error
from backends.measuring_worker import _SETTLING_CALLS, time_in_turns
from backends.onnxruntime import OnnxRuntimeBackend, export_onnx
from backends.torch_reference import reference_output
from backends.tvm import compile_module
from search_spaces.errors import TrimtabError
from search_spaces.graph import ModelGraph
from search_spaces.operators import Operator


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 20, 3, padding=1), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 4, 3)).eval()
    x = torch.randn(1, 3, 16, 16)
    return module, x, reference_output(module, x)


@pytest.fixture(scope="module")
def library(network, tmp_path_factory):
    module, x, _ = network
    path = tmp_path_factory.mktemp("tvm") / "model.so"
    compile_module(module, x).export(path)
    return path


def shared_library(path, body):
    """A .so whose loading runs the body: what a corrupt or malicious artefact can do."""
    source = path.with_suffix(".c")
    source.write_text(
        textwrap.dedent(
            f"""
            #include <signal.h>
            #include <unistd.h>
            __attribute__((constructor)) static void loaded(void) {{ {body} }}
            """
        )
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(path), str(source)], check=True)
    return path


def test_engines_are_timed_side_by_side_and_checked(network, library, tmp_path):
    module, x, expected = network
    export_onnx(module, x, tmp_path / "model.onnx")
    torch.export.save(torch.export.export(module, (x,)), tmp_path / "model.pt2")
    artefacts = [
        Artefact("tvm", library),
        Artefact("onnxruntime", tmp_path / "model.onnx"),
        Artefact("torch", tmp_path / "model.pt2"),
    ]
    results = measure(artefacts, x.numpy(), expected, rounds=5)
    assert [result.engine for result in results] == ["tvm", "onnxruntime", "torch"]
    for result in results:
        assert 0 < result.p10_s <= result.latency_s <= result.p90_s < 0.1
        assert result.max_error is not None
        assert result.max_error < 1e-5
        assert result.runs >= 5
        assert result.threads == 1
        assert result.details[result.engine]
        assert result.details["cpu"]


def test_engines_with_several_threads_do_not_share_a_process(network, library, tmp_path):
    module, x, expected = network
    export_onnx(module, x, tmp_path / "model.onnx")
    runtime = Artefact("onnxruntime", tmp_path / "model.onnx")
    artefacts = [Artefact("tvm", library), runtime, Artefact("tvm", library), runtime]
    assert _parties(artefacts, 1) == [[0, 1, 2, 3]]
    assert _parties(artefacts, 2) == [[0, 2], [1], [3]]
    results = measure(artefacts, x.numpy(), expected, threads=2, rounds=5)
    assert [result.engine for result in results] == ["tvm", "onnxruntime", "tvm", "onnxruntime"]
    assert {result.threads for result in results} == {2}
    assert all(list(result.details) == [result.engine, "cpu"] for result in results)


def test_a_wrong_answer_has_no_latency(network, library):
    _, x, expected = network
    with pytest.raises(TrimtabError, match=r"model\.so \(tvm\) answers wrongly: relative error 0\.0\d"):
        measure([Artefact("tvm", library)], x.numpy(), expected * 1.05, rounds=1)


def test_a_crash_is_an_error_that_names_the_artefact(network, library, tmp_path):
    _, x, expected = network
    bad = shared_library(tmp_path / "crash.so", "raise(SIGSEGV);")
    with pytest.raises(TrimtabError, match=r"crash\.so \(tvm\) was killed by signal 11"):
        measure([Artefact("tvm", library), Artefact("tvm", bad)], x.numpy(), expected, rounds=1)


def test_a_hang_is_stopped(network, tmp_path):
    _, x, expected = network
    bad = shared_library(tmp_path / "hang.so", "for (;;) pause();")
    with pytest.raises(TrimtabError, match=r"hang\.so \(tvm\) did not finish within 4 s"):
        measure([Artefact("tvm", bad)], x.numpy(), expected, rounds=1, timeout_s=4)


def test_a_file_that_is_no_library_is_named(network, tmp_path):
    _, x, expected = network
    (tmp_path / "text.so").write_text("not code")
    with pytest.raises(TrimtabError, match=r"text\.so \(tvm\) failed"):
        measure([Artefact("tvm", tmp_path / "text.so")], x.numpy(), expected, rounds=1)


def test_one_measurement_at_a_time(tmp_path, monkeypatch):
    from functools import partial

    from backends.lease import exclusive_lease

    monkeypatch.setattr("backends.measuring.exclusive_lease", partial(exclusive_lease, 0.1))
    artefact = Artefact("tvm", tmp_path / "never-loaded.so")
    with exclusive_lease(), pytest.raises(TrimtabError, match="has been measuring"):
        measure([artefact], np.zeros(1, dtype=np.float32), rounds=1)


@pytest.mark.parametrize("backend", [TvmBackend(), OnnxRuntimeBackend()], ids=lambda backend: backend.name)
def test_backends_measure_a_module_and_leave_it_alone(backend, network):
    module, x, _ = network
    module.train()
    result = backend.measure(module, x)
    assert module.training
    module.eval()
    assert result.engine == backend.name
    assert result.latency_s > 0


def test_recurrent_networks_are_refused_by_name():
    def graph(kind):
        operators = (Operator("x", "input", (), (4,), "float32"), Operator("cell", kind, ("x",), (4,), "float32"))
        return ModelGraph.build(operators, (), (), (), (4,))

    assert TvmBackend().supports(graph("relu")) == ()
    (reason,) = TvmBackend().supports(graph("lstm"))
    assert "cell" in reason


def test_turns_are_taken_forwards_and_backwards(monkeypatch):
    monkeypatch.setattr("backends.measuring_worker._repetitions", lambda call: 2)
    called, noted = [], []
    timings = time_in_turns([lambda name=name: called.append(name) for name in "ab"], 2, noted.append)
    turn = _SETTLING_CALLS + 2  # to settle in the cache, then twice in earnest
    assert "".join(called) == "a" * turn + "b" * turn + "b" * turn + "a" * turn
    assert noted == [0, 1, 0, 1, 1, 0]
    assert [(timing["calls"], len(timing["seconds"])) for timing in timings] == [(2, 2), (2, 2)]


def test_relative_error_sees_shapes_and_numbers_that_are_none():
    one = np.ones(3, dtype=np.float32)
    assert relative_error(one * 2, one) == 1.0
    assert relative_error(one[:2], one) == float("inf")
    assert relative_error(one * np.nan, one) == float("inf")
    assert relative_error(one, one * 0) == 1.0


def test_the_worker_needs_no_compiler():
    script = "import sys, backends.tvm.library; sys.exit('backends.tvm.lower' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
