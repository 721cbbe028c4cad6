"""The tensor-train engine: its array, what stays on the chip, and the chain of a tensor-train layer."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from automl.testing.accelerators import AcceleratorConformance
from backends.accelerators.accelerator import Accelerator
from backends.accelerators.backend import AcceleratorBackend
from backends.accelerators.catalogue import load
from backends.accelerators.tensor_train import TensorTrainDescription, tensor_train_layer
from backends.accelerators.workloads import Workload, Workloads
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy, LayerPolicy


class TestNarrow(AcceleratorConformance):
    """Memories that layers do not fit, several widths, and a slow memory outside."""

    def make(self) -> Accelerator[Any]:
        memories = {
            "dram": {"bandwidth": "3 B/cycle"},
            "weights": {"size": "2 KiB", "read_bandwidth": "40 bit/cycle", "double_buffered": True},
            "working": {"size": "3 KiB", "bandwidth": "60 bit/cycle"},
        }
        return load(
            {
                "class": "tensor_train",
                "title": "a narrow engine",
                "source": "a test",
                "clock": "1 GHz",
                "weight_bits": [4, 8, 16],
                "activation_bits": [8, 16],
                "processing_elements": 16,
                "multipliers": 5,
                "memories": memories,
            }
        )


@pytest.fixture(scope="module")
def tie() -> Accelerator[TensorTrainDescription]:
    return load("tie")


def row(**columns: int) -> Workload:
    return Workload(weight_bits=16, activation_bits=16, **columns)


@pytest.mark.parametrize(
    ("work", "cycles"),
    [
        (row(in_channels=100, out_channels=16, in_height=16, out_height=16), 100),
        (row(in_channels=100, out_channels=17, in_height=16, out_height=16), 200),
        (row(in_channels=100, out_channels=16, in_height=17, out_height=17), 200),
        (row(in_channels=100, out_channels=1, batch=3), 100),
        (row(in_channels=8, out_channels=4, kernel_height=3, kernel_width=3, groups=5, out_height=4, out_width=4), 360),
        (row(in_channels=10, out_channels=40, steps=7), 3 * 10 * 7),
        (row(in_channels=10, out_channels=16, groups=2, batch=4, product=1), 80),
    ],
)
def test_cycles_by_hand(tie: Accelerator[TensorTrainDescription], work: Workload, cycles: int) -> None:
    assert tie.run(Workloads.of([work])).compute_cycles.tolist() == [cycles]


def test_what_passes_between_parts_stays_on_the_chip(tie: Accelerator[TensorTrainDescription]) -> None:
    works = tensor_train_layer([2, 7, 8, 8, 7, 4], [4] * 6, [1, 4, 4, 4, 4, 4, 1])
    moved = tie.run(works).traffic["dram"]
    assert moved.read_bits.sum() == pytest.approx((25088 + works.weights.sum()) * 16)
    assert moved.written_bits.sum() == pytest.approx(4096 * 16)


def test_what_is_larger_than_the_working_memory_does_not(tie: Accelerator[TensorTrainDescription]) -> None:
    edge = 384 * 1024 * 8 // 16 // 64  # rows of 64 channels that just fit
    for rows, stays in ((edge, True), (edge + 1, False)):
        first = row(in_channels=8, out_channels=64, in_height=rows, out_height=rows)
        chain = [replace(first, feeds_part=1), replace(first, in_channels=64, out_channels=8, reads_part=1)]
        moved = tie.run(Workloads.of(chain)).traffic["dram"]
        between = 64 * rows * 16
        assert (moved.written_bits[0] < 1) == stays
        assert (moved.read_bits[1] < between) == stays


def test_a_factorised_layer_of_a_network_keeps_its_middle_on_the_chip() -> None:
    graph = network()
    policy = CompressionPolicy({"0": LayerPolicy(rank=(4,), factorisation="svd")})
    factorised = graph.apply(policy)
    backend = AcceleratorBackend("tie", load("tie"))
    names, works, usage = backend.usage(factorised)
    assert names == ["0.0", "0.1", "2"]
    assert works.reads_part.tolist() == [0, 1, 0]
    assert works.feeds_part.tolist() == [1, 0, 0]
    assert usage.traffic["dram"].written_bits[0] < 1
    cost = backend.estimate(factorised)
    assert cost.latency_s == pytest.approx(usage.cycles.sum() / 1e9)
    assert cost.energy_j == pytest.approx(usage.total_energy_j.sum())
    alone = backend.accelerator.run(works.replace(reads_part=0, feeds_part=0))
    assert alone.total_energy_j.sum() > usage.total_energy_j.sum()


def network() -> ModelGraph:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return PrunableNetwork(model, torch.zeros(1, 64), prove=False).graph


MODES = st.integers(1, 5)


@given(st.integers(1, 5).flatmap(lambda n: st.tuples(*[st.lists(MODES, min_size=n, max_size=n)] * 3)))
def test_the_chain_computes_the_layer(modes: tuple[list[int], list[int], list[int]]) -> None:
    """Stage by stage, with real cores: the shapes are those of the rows, and the result is that of the dense matrix."""
    inputs, outputs, ranks = modes[0], modes[1], [1, *modes[2][1:], 1]
    generator = np.random.default_rng(0)
    cores = [
        generator.normal(size=(ranks[k], inputs[k], outputs[k], ranks[k + 1])) for k in range(len(inputs))
    ]  # r_(k-1), n_k, m_k, r_k
    dense = np.ones((1, 1, 1))  # inputs so far, outputs so far, rank
    for core in cores:
        joined = np.einsum("ior,rnms->inoms", dense, core)
        dense = joined.reshape(dense.shape[0] * core.shape[1], dense.shape[1] * core.shape[2], core.shape[3])
    x = generator.normal(size=dense.shape[0])
    works = tensor_train_layer(inputs, outputs, ranks)
    state = x  # [inputs still to come, rank, outputs there]
    done = 1
    for at, core in enumerate(reversed(cores)):
        rank_in, n, m, rank_out = core.shape
        matrix = core.transpose(2, 0, 1, 3).reshape(m * rank_in, n * rank_out)
        columns = state.reshape(-1, n, rank_out, done).transpose(1, 2, 0, 3).reshape(n * rank_out, -1)
        assert works.take([at]).depth[0] == matrix.shape[1]
        assert works.out_channels[at] == matrix.shape[0]
        assert works.rows[at] == columns.shape[1]
        product = (matrix @ columns).reshape(m, rank_in, -1, done).transpose(2, 1, 0, 3)
        state, done = product.ravel(), done * m
    assert np.allclose(state, x @ dense[..., 0])


@given(st.data())
def test_no_cost_of_a_chain_rises_when_a_rank_falls(data: st.DataObject) -> None:
    """What stays on the chip included: memories are small."""
    length = data.draw(st.integers(2, 4))
    modes = st.lists(st.integers(1, 9), min_size=length, max_size=length)
    inputs, outputs = data.draw(modes), data.draw(modes)
    high = data.draw(st.lists(st.integers(1, 16), min_size=length - 1, max_size=length - 1))
    low = [data.draw(st.integers(1, rank)) for rank in high]
    engine = TestNarrow().make()
    chains = [engine.fitted(tensor_train_layer(inputs, outputs, [1, *ranks, 1])) for ranks in (high, low)]
    assume(not any(reason for chain in chains for reason in engine.refusals(chain)))
    before, after = map(engine.run, chains)
    assert after.cycles.sum() <= before.cycles.sum() * (1 + 1e-9)
    assert after.total_energy_j.sum() <= before.total_energy_j.sum() * (1 + 1e-9)


@pytest.mark.parametrize(
    ("inputs", "outputs", "ranks", "what"),
    [
        ([], [], [1], "at least one"),
        ([2], [2, 2], [1, 1], "as many input as output modes"),
        ([2, 2], [2, 2], [1, 1], "one rank more"),
        ([2, 0], [2, 2], [1, 2, 1], "whole numbers from 1"),
        ([2, 2], [2, 2], [1, -1, 1], "whole numbers from 1"),
        ([2, 2], [2, 2], [2, 2, 1], "the first and the last rank are 1"),
    ],
)
def test_no_tensor_train(inputs: list[int], outputs: list[int], ranks: list[int], what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        tensor_train_layer(inputs, outputs, ranks)
    assert "\n" not in str(caught.value)


def test_a_weight_memory_below_a_tile_is_refused() -> None:
    tie = load("tie")
    memories = tie.description.memories
    small = {**memories, "weights": memories["weights"].model_copy(update={"size": 100.0})}
    engine = type(tie)(tie.description.model_copy(update={"memories": small}), tie.technology)
    reasons = engine.refusals(Workloads.of([row(kernel_height=3, kernel_width=3), row()]))
    assert reasons[1] is None
    assert "'weights' and 'working'" in (reasons[0] or "")
