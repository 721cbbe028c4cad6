"""What of the CUDA paths needs no CUDA device: code for one, and how the lack of one is told."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import tvm
import yaml
from torch import nn
from tvm import relax
from tvm.tirx import PrimFunc

from automl.cli import main
from automl.errors import InputError, TrimtabError
from automl.evaluation import _reproducible
from automl.models import build_model
from automl.orchestration.crew import gpu_share
from backends.measuring import TvmBackend, relative_error
from backends.table_backend import open_prices
from backends.torch_reference import reference_output
from backends.tvm.cuda import _compiled_by_nvcc, cuda_target, lacking, schedule_network
from backends.tvm.library import callable_network

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
NEEDS_NVCC = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
SM_80 = cuda_target("sm_80")


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, torch.Tensor]:
    """One of each kind of function that TVM schedules by a rule of its own."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(32),
        nn.Linear(32, 4),
        nn.Softmax(1),
    )
    module[1].running_mean.uniform_(-1, 1)
    module[1].running_var.uniform_(0.5, 2)
    return module.to(memory_format=torch.channels_last), torch.randn(2, 3, 8, 8)


@pytest.fixture(scope="module")
def scheduled(network: tuple[nn.Module, torch.Tensor]) -> tvm.IRModule:
    return schedule_network(*network, SM_80)


def functions(module: tvm.IRModule) -> Iterator[tuple[tvm.ir.GlobalVar, PrimFunc]]:
    return ((name, function) for name, function in module.functions.items() if isinstance(function, PrimFunc))


def serial(module: tvm.IRModule) -> tvm.IRModule:
    """The same program for a CPU: what threads do at once is done one after the other, in one kind of memory."""
    module = tvm.IRModule(dict(module.functions.items()))
    for name, function in list(functions(module)):
        text = re.sub(r'T\.thread_binding\((.*?), thread="[^"]*"', r"T.serial(\1", function.script())
        text = re.sub(r'scope="(?:shared|local)"', 'scope="global"', text)
        module.update_func(name, tvm.script.from_source(text))
    return module


def difference(module: nn.Module, x: torch.Tensor, scheduled: tvm.IRModule) -> float:
    """How far the schedules, run on the CPU, are from torch."""
    executable = tvm.compile(serial(scheduled), target=tvm.target.Target("llvm"))
    output = callable_network(relax.VirtualMachine(executable, tvm.cpu()))(x.numpy())
    return relative_error(output, reference_output(module, x))


def test_every_function_is_bound_to_the_devices_threads(scheduled: tvm.IRModule) -> None:
    names = [name.name_hint for name, _ in functions(scheduled)]
    assert "fused_conv2d_add_relu" in names  # batch norm is folded
    for name, function in functions(scheduled):
        assert "blockIdx.x" in function.script(), name
        assert "threadIdx.x" in function.script(), name


def test_the_schedules_compute_what_torch_does(
    network: tuple[nn.Module, torch.Tensor], scheduled: tvm.IRModule
) -> None:
    assert difference(*network, scheduled) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "shufflenet_v2"])
def test_the_schedules_of_whole_networks_compute_what_torch_does(name: str) -> None:
    torch.manual_seed(0)
    module, x = build_model(name, {}, classes=10, input_shape=(3, 32, 32), seed=0), torch.randn(1, 3, 32, 32)
    assert difference(module, x, schedule_network(module, x, SM_80)) < 1e-5


@NEEDS_NVCC
def test_nvcc_compiles_the_code(scheduled: tvm.IRModule) -> None:
    from tvm.support.nvcc import compile_cuda

    with _compiled_by_nvcc():
        host = tvm.compile(scheduled, target=SM_80).mod.imports[0]
    source = host.imports[0].inspect_source("cuda")
    assert all(f"{name.name_hint}_kernel" in source for name, _ in functions(scheduled))
    with SM_80:
        code = bytes(compile_cuda(source, target_format="cubin", compiler="nvcc"))
    assert code.startswith(b"\x7fELF")


def test_the_network_stays_as_it_was(network: tuple[nn.Module, torch.Tensor]) -> None:
    module, x = network
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in module.state_dict().items()}
    schedule_network(module.train(), x, SM_80)
    assert module.training
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.stride() == before[name][1]


def test_what_tvm_cannot_import_is_one_line() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(TrimtabError, match=r"TVM cannot compile Odd for CUDA: .*; measure with torch") as caught:
        schedule_network(Odd(), torch.ones(1, 4), SM_80)
    assert "\n" not in str(caught.value)


def test_nvcc_compiles_unless_the_user_chose_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TVM_CUDA_COMPILE_MODE", raising=False)
    with _compiled_by_nvcc():
        assert os.environ["TVM_CUDA_COMPILE_MODE"] == "nvcc"
    assert "TVM_CUDA_COMPILE_MODE" not in os.environ
    monkeypatch.setenv("TVM_CUDA_COMPILE_MODE", "nvrtc")
    with _compiled_by_nvcc():
        assert os.environ["TVM_CUDA_COMPILE_MODE"] == "nvrtc"
    assert os.environ["TVM_CUDA_COMPILE_MODE"] == "nvrtc"


@pytest.mark.parametrize(
    ("device", "reason"), [(False, "TVM finds no CUDA device"), (True, "nvcc, which is not on PATH")]
)
def test_what_the_machine_lacks_is_a_reason(device: bool, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm.cuda", lambda index: SimpleNamespace(exist=device))
    monkeypatch.setattr("shutil.which", lambda name: None)
    backend = TvmBackend(device="cuda")
    assert backend.name == "tvm_cuda"
    (said,) = backend.supports(SimpleNamespace(operators=()))  # type: ignore[arg-type]  # nothing else is read
    assert reason in said
    assert said == lacking()
    with pytest.raises(InputError, match=reason):
        backend.measure(nn.Linear(2, 2), torch.zeros(1, 2))
    assert TvmBackend().supports(SimpleNamespace(operators=())) == ()  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["tvm_cuda", "torch_cuda"])
def test_there_is_no_table_of_operators_for_cuda(engine: str) -> None:
    with pytest.raises(InputError, match=f"no table of operators for '{engine}'"), open_prices(engine):
        pass


CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "budget": {"metric": "macs", "ratio": 0.5},
}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        pytest.param("search.device=cuda", "search.device: device 'cuda' is not available here", marks=NO_CUDA),
        pytest.param("fine_tune.device=cuda", "fine_tune.device: device 'cuda' is not available here", marks=NO_CUDA),
        pytest.param("baseline.device=cuda", "baseline.device: device 'cuda' is not available here", marks=NO_CUDA),
        ("search.device=gpu", "search.device: should be 'cpu' or 'cuda', got 'gpu'"),
        ("measure.backend=gpu", "measure.backend: there is no backend 'gpu'; known: "),
        pytest.param("measure.backend=tvm_cuda", "measure.backend 'tvm_cuda': TVM finds no CUDA device", marks=NO_CUDA),
        pytest.param("measure.backend=torch_cuda", "measure.backend 'torch_cuda': torch finds no CUDA", marks=NO_CUDA),
    ],
)
def test_a_run_on_a_device_that_is_not_here_is_refused_at_once(
    override: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    out = tmp_path / "out"
    assert main(["search", str(tmp_path / "config.yaml"), "--out", str(out), "--set", override]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not out.exists()


@NO_CUDA
def test_an_evaluator_on_a_device_that_is_not_here_is_refused() -> None:
    import automl

    with pytest.raises(InputError, match="device 'cuda' is not available here"):
        automl.make_env({**CONFIG, "baseline": {"epochs": 0}, "search": {"device": "cuda"}})


def test_evaluators_share_the_gpus_there_are() -> None:
    for gpus in range(1, 9):
        for evaluators in range(1, 65):
            share = gpu_share(evaluators, gpus)
            assert 0 < share <= 1
            assert gpus * int(1 / share) >= evaluators  # whole evaluators fit into each
    assert gpu_share(4, 1) == 0.25
    assert gpu_share(1, 4) == 1.0
    with pytest.raises(TrimtabError, match="has no GPU"):
        gpu_share(2, 0)


def test_a_gpu_adds_up_in_float32_and_the_process_is_as_before() -> None:
    cudnn = torch.backends.cudnn
    before = (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32)
    with _reproducible(torch.device("cpu")):
        assert (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == before
    with _reproducible(torch.device("cuda")):
        assert (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == (False, True, False)
    assert (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == before
