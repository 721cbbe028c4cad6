"""The conformance kit on backends that sum a table of operators: ONNX Runtime's and torch's."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import nn

from automl.testing.backends import BackendConformance
from automl.testing.problems import conv_chain
from backends.base import HardwareBackend
from backends.integers import formats_of
from backends.recipes import Recipe
from backends.table_backend import TableBackend, open_prices
from search_spaces.capture import PrunableNetwork
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy, LayerPolicy


@lru_cache
def graph() -> ModelGraph:
    network = nn.Sequential(
        *[nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()],
        *[nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()],
        *[nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(32, 10)],
    )
    return PrunableNetwork(network.eval(), torch.zeros(1, 3, 16, 16), prove=False).graph


SPARSE = LayerPolicy(sparsity=0.5, weight_bits=4)
EIGHT_BITS = CompressionPolicy(dict.fromkeys(("0", "3", "9"), LayerPolicy(weight_bits=8, activation_bits=8)))


class Modelled:
    """A second for a billion multiply-adds or bytes."""

    def latencies(self, recipes: Sequence[Recipe]) -> Mapping[str, float]:
        return {recipe.recipe: 1e-9 * (recipe.work + recipe.traffic) for recipe in recipes}


class TableConformance(BackendConformance):
    measured = True
    engine: str

    def make(self) -> HardwareBackend:
        return TableBackend(self.engine, graph(), Modelled())

    def graphs(self) -> Sequence[ModelGraph]:
        return [graph(), graph().with_kept((8, 20)), graph().with_kept((1, 1))]

    def unsupported(self) -> Sequence[ModelGraph]:
        bits = CompressionPolicy({"0": LayerPolicy(weight_bits=8)})
        return [conv_chain(), graph().apply(bits)]


class TestOnnxRuntime(TableConformance):
    engine = "onnxruntime"


class TestTorch(TableConformance):
    engine = "torch"


class TestTvm(TableConformance):
    engine = "tvm"

    def graphs(self) -> Sequence[ModelGraph]:
        return [*super().graphs(), graph().apply(EIGHT_BITS), graph().apply(CompressionPolicy({"0": SPARSE}))]

    def unsupported(self) -> Sequence[ModelGraph]:
        return [conv_chain(), graph().apply(CompressionPolicy({"3": LayerPolicy(rank=4)}))]

    def test_eight_bits_run_as_integers_and_all_else_as_it_was(self) -> None:
        backend = TableBackend(self.engine, graph(), Modelled())
        whole, eight, sparse = (
            [recipe.kind for recipe in backend.recipes(each.kept, formats_of(each))]
            for each in (graph(), *self.graphs()[-2:])
        )
        assert {"conv2d_u8", "dense_u8"} < set(eight)
        assert "conv2d" not in eight
        assert sparse == whole


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(x)[0]


def test_recurrent_networks_are_refused_by_name_on_tvm_alone() -> None:
    recurrent = PrunableNetwork(Recurrent().eval(), torch.zeros(1, 4, 8), prove=False).graph
    (reason, *_) = TableBackend("tvm", recurrent, Modelled()).supports(recurrent)
    assert "lstm" in reason
    for engine in ("onnxruntime", "torch"):
        backend = TableBackend(engine, recurrent, Modelled())
        assert backend.supports(recurrent) == ()
        assert backend.price(recurrent.kept) > 0


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
class TestMeasured:
    """The same with operators that are really measured; how long they take is nobody's promise."""

    def test_the_kit(self, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
        with open_prices(engine) as prices:

            class Kit(TableConformance):
                def make(self) -> HardwareBackend:
                    return TableBackend(engine, graph(), prices)

                def shrinking(self) -> Iterable[Sequence[ModelGraph]]:
                    return ()

            kit = Kit()
            for name in [name for name in dir(kit) if name.startswith("test_")]:
                getattr(kit, name)()
            known = len(list(_entries(prices)))
        with open_prices(engine) as again:
            assert TableBackend(engine, graph(), again).estimate(graph()).latency_s
            assert len(list(_entries(again))) == known > 5


def _entries(prices: object) -> Iterator[str]:
    yield from prices.table.entries()  # type: ignore[attr-defined]
