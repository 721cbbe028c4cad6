"""Layers of real networks as matrix products: their MACs and weights are the layers', their pixels torch's."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from automl.models.recurrent import lstm
from automl.models.vit import vit
from backends.accelerators.workloads import Workload, Workloads, Zeros, of_layer, products_of, steps_of
from search_spaces.capture import capture_graph
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy, LayerPolicy


class Mixed(nn.Module):
    """Every kind of convolution, one called twice, one over time, one transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, (3, 5), stride=2, padding=(1, 2))
        self.grouped = nn.Conv2d(12, 24, 3, groups=4, padding=1)
        self.depthwise = nn.Conv2d(24, 24, 3, groups=24, padding=2, dilation=2)
        self.multiplied = nn.Conv2d(24, 48, 3, groups=24, stride=3)
        self.twice = nn.Conv2d(48, 48, 1)
        self.wide = nn.Conv2d(48, 6, 7, padding=3)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.time = nn.Conv1d(4, 5, 3, padding=1)
        self.head = nn.Linear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.multiplied(self.depthwise(self.grouped(self.stem(x))))
        x = self.up(self.wide(self.twice(self.twice(x))))
        return self.head(self.time(x.flatten(2)).mean(2))


def graph_of(model: nn.Module, shape: tuple[int, ...]) -> ModelGraph:
    torch.manual_seed(0)
    return capture_graph(model.eval(), torch.randn(1, *shape))


@pytest.fixture(scope="module")
def mixed() -> ModelGraph:
    return graph_of(Mixed(), (3, 26, 20))


@pytest.mark.parametrize("batch", [1, 5])
def test_counts_are_those_of_the_layers(mixed: ModelGraph, batch: int) -> None:
    works = Workloads.of(of_layer(spec, batch) for spec in mixed.layers)
    assert works.macs.tolist() == [batch * spec.macs for spec in mixed.layers]
    assert works.weights.tolist() == [spec.weights for spec in mixed.layers]
    assert works.outputs.sum() > 0
    assert (works.inputs > 0).all()


def test_what_a_convolution_reads_and_gives(mixed: ModelGraph) -> None:
    rows = {spec.name: of_layer(spec) for spec in mixed.layers}
    works = {name: Workloads.of([row]) for name, row in rows.items()}
    stem = rows["stem"]
    assert (stem.in_height, stem.in_width, stem.out_height, stem.out_width) == (26, 20, 13, 10)
    assert works["stem"].inputs == 3 * 26 * 20
    assert (works["stem"].rows, works["stem"].depth) == (13 * 10, 3 * 15)
    assert (rows["grouped"].groups, rows["grouped"].in_channels, rows["grouped"].out_channels) == (4, 3, 6)
    assert works["depthwise"].depthwise
    assert not works["multiplied"].depthwise
    assert (rows["multiplied"].groups, rows["multiplied"].out_channels) == (24, 2)
    assert rows["twice"].batch == 2, "a layer called twice sees two images"
    assert (rows["time"].in_height, rows["time"].kernel_height, rows["time"].kernel_width) == (1, 1, 3)
    assert (rows["head"].in_channels, rows["head"].out_channels, rows["head"].in_height) == (5, 7, 1)
    up = works["up"]
    assert (up.rows, up.depth, up.out_channels) == (4 * 3, 6, 4 * 4), "each pixel read gives a whole kernel"


def test_pixels_that_a_stride_leaves_out_are_not_read() -> None:
    row = Workload(kernel_height=2, stride_height=3, in_height=9, out_height=3, in_width=5, out_width=5)
    assert Workloads.of([row]).read_height == 6
    border = Workload(kernel_height=3, stride_height=3, in_height=8, out_height=3)
    assert Workloads.of([border]).read_height == 8
    unread = Workload(kernel_height=3, stride_height=2, in_height=10, out_height=4)
    assert Workloads.of([unread]).read_height == 9


def test_a_recurrent_layer_reads_its_sequence_at_once_and_its_state_step_by_step() -> None:
    graph = graph_of(lstm(classes=5, input_shape=(1, 9, 4), hidden=6, bidirectional=True), (1, 9, 4))
    steps = steps_of(graph)
    rows = {spec.name: of_layer(spec, steps=steps.get(spec.name, 1)) for spec in graph.layers}
    assert Workloads.of(rows.values()).macs.tolist() == [spec.macs for spec in graph.layers]
    for end in ("", "_reverse"):
        state, sequence = rows[f"lstm.weight_hh_l0{end}"], rows[f"lstm.weight_ih_l0{end}"]
        assert (state.steps, state.in_height, state.in_channels, state.out_channels) == (9, 1, 6, 24)
        assert (sequence.steps, sequence.in_height, sequence.in_channels, sequence.out_channels) == (1, 9, 4, 24)
    assert rows["fc"].steps == 1


def test_products_of_attention_are_counted_with_their_heads() -> None:
    """8 x 8 pixels in patches of 2 x 2 are 16 tokens; 3 heads of 4 numbers each."""
    model = vit(classes=4, input_shape=(3, 8, 8), patch=2, width=12, depth=2, heads=3)
    graph = graph_of(model, (3, 8, 8))
    found = products_of(graph)
    assert len(found) == 2
    for rows in found.values():
        works = Workloads.of(rows)
        assert works.product.all()
        assert works.groups.tolist() == [3, 3]
        assert works.macs.tolist() == [3 * 16 * 4 * 16, 3 * 16 * 16 * 4]
        assert works.weights.tolist() == [3 * 4 * 16, 3 * 16 * 4]
        assert works.replace(batch=5).weights.tolist() == [5 * 3 * 4 * 16, 5 * 3 * 16 * 4]
    assert products_of(graph_of(Mixed(), (3, 26, 20))) == {}


@pytest.mark.parametrize(
    ("policy", "zeros", "window", "density"),
    [
        (LayerPolicy(), Zeros.NONE, 0, 1.0),
        (LayerPolicy(sparsity=0.5), Zeros.ANYWHERE, 0, 0.5),
        (LayerPolicy(sparsity=0.5, pattern="filter"), Zeros.FILTERS, 0, 0.5),
        (LayerPolicy(sparsity=0.5, pattern="block:2x2"), Zeros.BLOCKS, 0, 0.5),
        (LayerPolicy(sparsity=0.5, pattern="kernel"), Zeros.BLOCKS, 0, 0.5),
        (LayerPolicy(pattern="2:4"), Zeros.WINDOWS, 4, 0.5),
    ],
)
def test_zeros_of_a_policy(policy: LayerPolicy, zeros: Zeros, window: int, density: float, mixed: ModelGraph) -> None:
    row = of_layer(mixed.apply(CompressionPolicy({"twice": policy})).layer("twice"))
    assert (row.zeros, row.window, row.weight_density) == (zeros, window, density)


def test_bits_of_a_policy(mixed: ModelGraph) -> None:
    policy = LayerPolicy(weight_bits=3, activation_bits=5)
    row = of_layer(mixed.apply(CompressionPolicy({"head": policy})).layer("head"))
    assert (row.weight_bits, row.activation_bits) == (3, 5)
    plain = of_layer(mixed.layer("head"))
    assert (plain.weight_bits, plain.activation_bits) == (32, 32)


def test_rows_are_taken_joined_and_replaced() -> None:
    works = Workloads.of([Workload(batch=1), Workload(batch=2, weight_density=0.5), Workload(batch=3)])
    assert works.take([2, 0]).batch.tolist() == [3, 1]
    assert works.take(works.batch > 1).batch.tolist() == [2, 3]
    assert works.take([0]).joined(works.take([1])).weight_density.tolist() == [1.0, 0.5]
    changed = works.replace(steps=4, batch=[7, 8, 9])
    assert changed.steps.tolist() == [4, 4, 4]
    assert works.batch.tolist() == [1, 2, 3], "the first rows stay as they were"
    assert changed.weight_density.dtype == np.float64
    assert len(Workloads.of([])) == 0
