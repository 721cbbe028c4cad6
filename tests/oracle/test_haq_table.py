"""HAQ's latency table (Wang et al. 2019; mit-han-lab/haq, MIT) through the table backend."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from automl.models import build_model
from backends.table_file import TableFileBackend
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy, LayerPolicy

TABLE = "haq_qmobilenetv2_imagenet100_batch16_latency_table.npy"
BATCH = 16


@pytest.fixture(scope="module")
def totals(oracles: Path) -> dict[int, int]:
    document = json.loads((oracles / "haq_bit_reduction.json").read_text())
    return {int(bits): total for bits, total in document["uniform_totals"].items()}


@pytest.fixture(scope="module")
def graph() -> ModelGraph:
    shape = (3, 64, 64)
    model = build_model("mobilenet_v2", {"stem": "imagenet"}, classes=100, input_shape=shape)
    return PrunableNetwork(model, torch.zeros(1, *shape), prove=False).graph


def uniform(graph: ModelGraph, bits: int) -> ModelGraph:
    layer = LayerPolicy(weight_bits=bits, activation_bits=bits)
    return graph.apply(CompressionPolicy({spec.name: layer for spec in graph.layers}))


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_uniform_totals_are_exact(oracles: Path, totals: dict[int, int], graph: ModelGraph, bits: int) -> None:
    """All 53 layers in the same bits, the first and the last, too."""
    backend = TableFileBackend(oracles / TABLE, unit="cycles", batch=BATCH)
    cost = backend.estimate(uniform(graph, bits))
    assert len(cost.by_layer) == 53
    assert backend.total(uniform(graph, bits)) == sum(cost.by_layer.values()) == totals[bits]


def test_at_a_clock_they_are_seconds_of_one_image(oracles: Path, totals: dict[int, int], graph: ModelGraph) -> None:
    backend = TableFileBackend(oracles / TABLE, unit="cycles", frequency_hz=1 << 27, batch=BATCH)
    cost = backend.estimate(uniform(graph, 8))
    assert cost.latency_s == totals[8] / (1 << 27) / BATCH
    assert not cost.measured


def test_the_same_table_as_csv(oracles: Path, totals: dict[int, int], graph: ModelGraph, tmp_path: Path) -> None:
    table = np.load(oracles / TABLE, allow_pickle=False)
    lines = [
        f"{spec.name},{bits[0] + 1},{bits[1] + 1},{cost}"
        for spec, layer in zip(graph.layers, table, strict=True)
        for bits, cost in np.ndenumerate(layer)
    ]
    path = tmp_path / "haq.csv"
    path.write_text("\n".join(["layer,weight_bits,activation_bits,cost", *reversed(lines)]))
    backend = TableFileBackend(path, unit="cycles", batch=BATCH)
    assert {bits: backend.total(uniform(graph, bits)) for bits in totals} == totals


def test_bits_that_haq_did_not_measure_are_refused(oracles: Path, graph: ModelGraph) -> None:
    with pytest.raises(InputError, match=r"no cost of layer .* 9 bits of weights"):
        TableFileBackend(oracles / TABLE, unit="cycles").estimate(uniform(graph, 9))
