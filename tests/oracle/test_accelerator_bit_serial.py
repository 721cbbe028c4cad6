"""Bit-serial arrays against HAQ's table and published peaks.

The constants of `haq_bismo` (see its description: array, words, depthwise lanes, images apart, 25.6 bits a cycle of
weights) were fitted on the very table that they are compared with here. Nothing of the others was fitted.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from automl.models import build_model
from backends.accelerators.backend import AcceleratorBackend
from backends.accelerators.catalogue import load
from backends.accelerators.workloads import FloatArray, Workload, Workloads, of_layer
from search_spaces.capture import PrunableNetwork
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy, LayerPolicy

TABLE = "haq_qmobilenetv2_imagenet100_batch16_latency_table.npy"
BATCH = 16
LAYERS, BITS = 53, 8


@pytest.fixture(scope="module")
def table(oracles: Path) -> FloatArray:
    """[layer, weight bits - 1, activation bits - 1]"""
    return np.asarray(np.load(oracles / TABLE, allow_pickle=False), dtype=np.float64)


@pytest.fixture(scope="module")
def graph() -> ModelGraph:
    shape = (3, 224, 224)
    model = build_model("mobilenet_v2", {"stem": "imagenet"}, classes=100, input_shape=shape)
    return PrunableNetwork(model, torch.zeros(1, *shape), prove=False).graph


@pytest.fixture(scope="module")
def modelled(graph: ModelGraph) -> FloatArray:
    """As the table."""
    accelerator = load("haq_bismo")
    works = Workloads.of(of_layer(spec, BATCH) for spec in graph.layers)
    found = np.empty((LAYERS, BITS, BITS))
    for weights in range(BITS):
        for activations in range(BITS):
            bits = works.replace(weight_bits=weights + 1, activation_bits=activations + 1)
            found[:, weights, activations] = accelerator.run(bits).cycles
    return found


def test_haq_totals_of_equal_bits(oracles: Path, modelled: FloatArray) -> None:
    totals = json.loads((oracles / "haq_bit_reduction.json").read_text())["uniform_totals"]
    for bits, total in totals.items():
        assert modelled[:, int(bits) - 1, int(bits) - 1].sum() == pytest.approx(total, rel=0.02)


def test_haq_totals_and_ranks_of_random_policies(table: FloatArray, modelled: FloatArray) -> None:
    bits = np.random.default_rng(0).integers(0, BITS, (300, LAYERS, 2))
    layers = np.arange(LAYERS)
    theirs, ours = (costs[layers, bits[..., 0], bits[..., 1]].sum(axis=1) for costs in (table, modelled))
    assert np.abs(ours / theirs - 1).max() <= 0.03
    assert np.corrcoef(_ranks(theirs), _ranks(ours))[0, 1] >= 0.999


def test_haq_layer_by_layer(table: FloatArray, modelled: FloatArray) -> None:
    """A cost in the middle between limits is missed by up to 40 %, where two of them add up in part."""
    errors = np.abs(modelled / table - 1)
    assert errors.mean() <= 0.06
    assert errors.max() <= 0.41


def test_a_network_is_priced_as_its_layers_are(graph: ModelGraph, modelled: FloatArray) -> None:
    policy = CompressionPolicy({spec.name: LayerPolicy(weight_bits=4, activation_bits=6) for spec in graph.layers})
    accelerator = load("haq_bismo")
    cost = AcceleratorBackend("haq_bismo", accelerator).estimate(graph.apply(policy))
    assert cost.latency_s == pytest.approx(modelled[:, 3, 5].sum() / accelerator.description.clock / BATCH)


def test_bismo_peak() -> None:
    """6.5 binary TOPS of 8 x 256 x 8 at 200 MHz (Umuroglu et al., FPL 2018)."""
    assert _peak(load("bismo_edge"), 1, 1) == pytest.approx(6.5e12, rel=0.01)


@pytest.mark.parametrize(("bits", "peak"), [(16, 345.6e9), (1, 7372e9)])
def test_unpu_peak(bits: int, peak: float) -> None:
    """Lee et al., JSSC 2019, at 200 MHz."""
    assert _peak(load("unpu"), bits, 16) == pytest.approx(peak, rel=0.001)


@pytest.mark.parametrize(("bits", "published"), [(16, 3.08e12), (1, 50.6e12)])
def test_unpu_operations_a_joule(bits: int, published: float) -> None:
    """Lee et al., JSSC 2019; from the array, and clock and power at the lowest voltage, the same for all bits."""
    accelerator = load("unpu_low_voltage")
    works = Workloads.of([_large(bits, 16)])
    usage = accelerator.run(works)
    chip = usage.total_energy_j[0] - usage.energy_j["dram"][0]
    assert 2 * works.macs[0] / chip == pytest.approx(published, rel=0.15)


def _large(weight_bits: int, activation_bits: int) -> Workload:
    """A layer that fills every array."""
    return Workload(
        batch=768, in_channels=768, out_channels=768, weight_bits=weight_bits, activation_bits=activation_bits
    )


def _peak(accelerator: Any, weight_bits: int, activation_bits: int) -> float:
    """Operations a second of the array."""
    works = Workloads.of([_large(weight_bits, activation_bits)])
    seconds = accelerator.run(works).compute_cycles[0] / accelerator.description.clock
    return float(2 * works.macs[0] / seconds)


def _ranks(values: FloatArray) -> FloatArray:
    return np.argsort(np.argsort(values)).astype(np.float64)
