"""Networks timed, trained and evaluated on a CUDA device; and evaluators that share one, which takes none to test."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import automl
from automl.compression import CompressionOptions, Compressor
from automl.data import DataBundle, load_data
from automl.evaluation import PolicyEvaluator
from automl.metrics import Metric, accuracy
from automl.models import build_model
from automl.orchestration.ray_session import ray_session
from automl.testing.backends import Measuring, MeasuringConformance
from automl.training import TrainingOptions, evaluate, train
from backends.counting import CountingBackend
from backends.measuring import TvmBackend
from backends.torch_engines import TorchBackend
from search_spaces.capture import PrunableNetwork
from search_spaces.objective import Constraint
from search_spaces.policy import CompressionPolicy

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device that torch can use")


def _tvm_lacks() -> str:
    from backends.tvm.cuda import lacking

    return lacking()


NEEDS_TVM_ON_CUDA = pytest.mark.skipif(bool(_tvm_lacks()), reason=_tvm_lacks())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


@NEEDS_TVM_ON_CUDA
class TestTvmOnCuda(MeasuringConformance):
    refuses_recurrent = True

    def make(self) -> Measuring:
        return TvmBackend(device="cuda")


@NEEDS_TVM_ON_CUDA
@NEEDS_CUDA
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_networks_are_measured_on_the_device(name: str) -> None:
    torch.manual_seed(0)
    module, x = build_model(name, {}, classes=10, input_shape=(3, 32, 32), seed=0), torch.randn(1, 3, 32, 32)
    backends: list[Measuring] = [TvmBackend(device="cuda"), TorchBackend(device="cuda")]
    for backend in backends:
        found = backend.measure(module, x)
        assert found.engine == backend.name
        assert found.latency_s > 0
    assert TvmBackend(device="cuda").measure(module, x).details["target"].startswith("sm_")


@pytest.fixture(scope="module")
def data() -> DataBundle:
    return load_data("digits", {"size": 16})


@pytest.fixture(scope="module")
def compressor(data: DataBundle) -> Compressor:
    model = build_model("mobilenet_v1", {"width": 0.25}, classes=10, input_shape=data.input_shape)
    train(model, data, TrainingOptions(epochs=3, lr=0.1, device="cuda"))
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    assert evaluate(model, data.val) > 0.5
    return Compressor(PrunableNetwork(model, data.train.tensors[0][:2]), data.train.tensors[0], CompressionOptions())


@NEEDS_CUDA
@pytest.mark.parametrize("held", [True, False])
def test_an_evaluator_on_the_device_says_what_one_on_the_cpu_does(
    held: bool, compressor: Compressor, data: DataBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not held:
        monkeypatch.setattr("automl.evaluation.HELD_IMAGES", 0)
    seen: list[Tensor] = []

    def kept(logits: Tensor, labels: Tensor) -> float:
        assert logits.device == labels.device == torch.device("cpu")
        seen.append(logits)
        return accuracy(logits, labels)

    limit = Constraint("macs", compressor.network.graph.macs)
    policy = CompressionPolicy.from_keep({group.name: 0.5 for group in compressor.network.graph.groups})
    for device in ("cpu", "cuda", "cuda"):
        found = PolicyEvaluator(compressor, data.val, [limit], CountingBackend(), Metric("kept", kept), device)(policy)
        assert found.error is None
    on_cpu, on_gpu, again = seen
    assert torch.equal(on_gpu, again)
    assert float((on_cpu - on_gpu).abs().max() / on_cpu.abs().max()) < 1e-4


@NEEDS_CUDA
def test_a_run_searches_and_trains_on_the_device(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "model": {"name": "lenet5"},
        "data": {"name": "digits", "args": {"size": 16}},
        "baseline": {"epochs": 2, "lr": 0.05, "device": "cuda"},
        "budget": {"metric": "macs", "ratio": 0.5},
        "search": {"algorithm": "random", "evaluations": 8, "evaluators": 2, "device": "cuda"},
        "compression": {"calibration_images": 60},
        "fine_tune": {"epochs": 1, "device": "cuda"},
        "measure": {"backend": "none"},
    }
    assert automl.search(config, tmp_path / "run").state == "done"


def test_evaluators_find_room_on_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray only counts: that the GPU is made up is not seen before somebody uses it."""

    class Worker:
        def __init__(self, *arguments: object) -> None:
            import ray

            self.gpus = ray.get_gpu_ids()

        def ready(self) -> Any:
            return tuple(self.gpus)

    (tmp_path / "baseline").touch()

    def gpus(device: str) -> list[Any]:
        from automl.orchestration import crew

        config = automl.load_config(
            {
                "model": {"name": "lenet5"},
                "data": {"name": "digits", "args": {"size": 16}},
                "budget": {"metric": "macs", "ratio": 0.5},
                "search": {"evaluators": 3, "device": device},
            }
        )
        monkeypatch.setattr(crew, "Worker", Worker)
        with crew.evaluators(config, tmp_path / "baseline", "", [Constraint("macs", 1.0)]) as found:
            while found.starting:
                ray.wait(found.starting, num_returns=len(found.starting), timeout=120)
                found.look()
            return [each.node for each in found.look()]

    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with ray_session(3):
        import ray

        assert gpus("cuda") == [(0,), (0,), (0,)]
        assert gpus("cpu") == [(), (), ()]
