"""Prices of policies: one by one, in batches and remembered they are what the hardware takes for each layer alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.models.recurrent import lstm
from automl.models.vit import vit
from automl.testing.problems import cifar_resnet, conv_chain, mobilenet_v1
from backends.accelerators.accelerator import Accelerator
from backends.accelerators.backend import AcceleratorBackend
from backends.accelerators.catalogue import load
from backends.accelerators.pricing import PolicyPrices
from backends.accelerators.workloads import Workloads
from backends.point_prices import PointPrices
from search_spaces.blocks import residual_blocks
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import capture_graph
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy, LayerPolicy

DOCUMENT: dict[str, Any] = {
    "class": "roofline",
    "title": "a small processor",
    "source": "this test",
    "clock": "1 GHz",
    "static_power": "10 mW",
    "weight_bits": [1, 2, 4, 8, 16],
    "activation_bits": [2, 4, 8, 16],
    "unquantised_bits": 16,
    "peak": {8: "8 GMAC/s", 16: "4 GMAC/s"},
    "launch": "1 us",
    "memories": {"dram": {"bandwidth": "1 GB/s"}, "l2": {"size": "32 KiB", "bandwidth": "8 GB/s"}},
}
GRAPH = cifar_resnet(8)


def made(**changes: object) -> Accelerator[Any]:
    return load({**DOCUMENT, **changes})


def direct(graph: ModelGraph, accelerator: Accelerator[Any]) -> tuple[float, float]:
    """Seconds and joules of an image, each layer run alone."""
    backend = AcceleratorBackend("direct", accelerator)
    seconds, joules = 0.0, 0.0
    _, works, _ = backend.usage(graph)
    for index in range(len(works)):
        usage = accelerator.run(works.take([index]))
        seconds += float(usage.cycles[0]) / accelerator.description.clock / accelerator.description.batch
        joules += float(usage.total_energy_j[0]) / accelerator.description.batch
    return seconds, joules


LAYERS = st.builds(
    LayerPolicy,
    weight_bits=st.sampled_from([None, 2, 4, 8]),
    activation_bits=st.sampled_from([None, 2, 8, 16]),
    sparsity=st.sampled_from([None, 0.5]),
    rank=st.sampled_from([None, 4]),
)


@st.composite
def policies(draw: st.DrawFn) -> CompressionPolicy:
    layers = {spec.name: draw(LAYERS) for spec in draw(st.sets(st.sampled_from(GRAPH.full_layers), max_size=4))}
    for group in GRAPH.groups:
        keep = draw(st.sampled_from([0.25, 0.5, 1.0]))
        layers[group.name] = replace(layers.get(group.name, LayerPolicy()), keep=keep)
    return CompressionPolicy(layers)


@settings(max_examples=10)
@given(st.lists(policies(), min_size=1, max_size=5))
def test_in_a_batch_alone_or_again_each_policy_costs_what_its_layers_take(asked: list[CompressionPolicy]) -> None:
    accelerator = made()
    graphs = [GRAPH.apply(policy) for policy in asked]
    prices = PolicyPrices(GRAPH, accelerator)
    kept, treatments = [graph.kept for graph in graphs], [prices.treatments(graph) for graph in graphs]
    together = prices.price(kept, treatments)
    again = prices.price(kept[::-1], treatments[::-1])
    for index, graph in enumerate(graphs):
        fresh = PolicyPrices(GRAPH, accelerator)
        alone = fresh.price([graph.kept], [fresh.treatments(graph)])
        expected = direct(graph, accelerator)
        for totals, at in ((together, index), (again, len(graphs) - 1 - index), (alone, 0)):
            assert (totals.latency_s[at], totals.energy_j[at]) == pytest.approx(expected, rel=1e-9)


def test_every_pair_of_bits_costs_the_same_in_any_order() -> None:
    accelerator = made()
    pairs = [(w, a) for w in (2, 4, 8, 16) for a in (2, 4, 8, 16)]
    layers = [LayerPolicy(weight_bits=w, activation_bits=a) for w, a in pairs]
    graphs = [GRAPH.apply(CompressionPolicy({spec.name: layer for spec in GRAPH.layers})) for layer in layers]
    backend = AcceleratorBackend("test", accelerator)
    found = [cost.latency_s for cost in backend.estimate_many(graphs)]
    assert found == [AcceleratorBackend("test", accelerator).estimate(graph).latency_s for graph in graphs]
    assert found == pytest.approx([direct(graph, accelerator)[0] for graph in graphs])


def test_a_batch_of_images_is_told_for_one() -> None:
    works = 16
    alone, batched = (AcceleratorBackend("test", made(batch=batch, launch="0 us")) for batch in (1, works))
    one, many = alone.estimate(GRAPH), batched.estimate(GRAPH)
    assert many.latency_s is not None
    assert one.latency_s is not None
    assert one.latency_s / works < many.latency_s < one.latency_s


def test_a_removed_block_costs_nothing() -> None:
    model = capture_graph(_Residual().eval(), torch.randn(1, 3, 8, 8))
    (block,) = residual_blocks(model)
    backend = AcceleratorBackend("test", made())
    whole = backend.estimate(model)
    cut = backend.estimate(model.apply(CompressionPolicy({block.name: LayerPolicy(remove=True)})))
    gone = sum(whole.by_layer[name] for name in block.layers)
    assert gone > 0
    assert cut.latency_s == pytest.approx(whole.latency_s - gone)  # type: ignore[operator]
    assert all(cut.by_layer.get(name, 0.0) == 0 for name in block.layers)


class _Residual(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.head((x + self.branch(x)).mean((2, 3)))  # type: ignore[no-any-return]


def test_a_lower_rank_costs_less_and_its_parts_add_up() -> None:
    accelerator, name = made(launch="0 us"), "stage2.0.conv2"
    costs = []
    for rank in (32, 16, 8):
        graph = GRAPH.apply(CompressionPolicy({name: LayerPolicy(rank=rank)}))
        cost = AcceleratorBackend("test", accelerator).estimate(graph)
        parts = [spec for spec in graph.layers if spec.name.startswith(f"{name}.")]
        prices = PolicyPrices(GRAPH, accelerator)
        works = accelerator.fitted(Workloads.of(prices.chain(parts)))
        assert len(works) == 2
        assert cost.by_layer[name] == pytest.approx(accelerator.run(works).cycles.sum() / 1e9)
        costs.append(cost.by_layer[name])
    assert costs == sorted(costs, reverse=True)


def test_steps_of_a_recurrent_layer_are_priced() -> None:
    """Each of nine steps reads the state's weights anew where they do not fit, and is launched."""
    graph = capture_graph(lstm(classes=5, input_shape=(1, 9, 4), hidden=32).eval(), torch.randn(1, 1, 9, 4))
    cost = AcceleratorBackend("test", made()).estimate(graph)
    assert cost.by_layer["lstm.weight_hh_l0"] >= 9e-6
    assert cost.by_layer["lstm.weight_ih_l0"] < 9e-6
    bare = AcceleratorBackend("test", made(launch="0 us")).estimate(graph)
    assert cost.latency_s == pytest.approx(bare.latency_s + (9 + 2) * 1e-6)  # type: ignore[operator]


def test_products_of_attention_are_priced_beside_the_layers() -> None:
    graph = capture_graph(
        vit(classes=4, input_shape=(3, 8, 8), patch=2, width=12, depth=1, heads=3).eval(), torch.randn(1, 3, 8, 8)
    )
    accelerator = made()
    backend = AcceleratorBackend("test", accelerator)
    cost = backend.estimate(graph)
    names, works, usage = backend.usage(graph)
    products = float(usage.cycles[works.product > 0].sum()) / 1e9
    assert len(names) == len(works) == len(graph.layers) + 2
    assert cost.latency_s == pytest.approx(sum(cost.by_layer.values()) + products)
    assert (cost.latency_s, cost.energy_j) == pytest.approx(direct(graph, accelerator))


def test_hardware_that_runs_no_product_of_attention_supports_no_transformer() -> None:
    graph = capture_graph(
        vit(classes=4, input_shape=(3, 8, 8), patch=2, width=12, depth=1, heads=3).eval(), torch.randn(1, 3, 8, 8)
    )
    layer = LayerPolicy(weight_bits=8, activation_bits=8)
    quantised = graph.apply(CompressionPolicy({spec.name: layer for spec in graph.layers}))
    backend = AcceleratorBackend("isaac", load("isaac"))
    reasons = backend.supports(quantised)
    assert len(reasons) == 2
    assert all(reason.startswith("product ") for reason in reasons)
    with pytest.raises(InputError, match=r"backend 'isaac' cannot price the network: .* cannot run product"):
        backend.estimate(quantised)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (LayerPolicy(weight_bits=8), "activations of 32 bits; the hardware has at most 16"),
        (LayerPolicy(weight_bits=8, weight_scheme="power_of_two", activation_bits=8), "scheme 'power_of_two'"),
    ],
)
def test_a_layer_that_cannot_run_is_refused_by_name(layer: LayerPolicy, reason: str) -> None:
    graph = conv_chain()
    others = LayerPolicy(weight_bits=8, activation_bits=8)
    policy = CompressionPolicy({spec.name: others for spec in graph.layers} | {"conv1": layer})
    backend = AcceleratorBackend("test", made(unquantised_bits=None))
    (said,) = backend.supports(graph.apply(policy))
    assert "layer 'conv1'" in said
    assert reason in said
    with pytest.raises(InputError, match=r"cannot run layer 'conv1'") as caught:
        backend.estimate(graph.apply(policy))
    assert "\n" not in str(caught.value)


def test_bits_that_cannot_run_do_not_stop_those_that_can() -> None:
    """A table over all bits is computed at once; pairs that the hardware refuses are left out of it."""

    class Picky(type(made())):  # type: ignore[misc]
        def refusals(self, works: Workloads) -> list[str | None]:
            return ["not four" if bits == 4 else None for bits in works.weight_bits.tolist()]

    accelerator = Picky(made().description, made().technology)
    backend = AcceleratorBackend("picky", accelerator)
    eight, four = (
        GRAPH.apply(
            CompressionPolicy({spec.name: LayerPolicy(weight_bits=w, activation_bits=8) for spec in GRAPH.layers})
        )
        for w in (8, 4)
    )
    assert backend.estimate(eight).latency_s == AcceleratorBackend("test", made()).estimate(eight).latency_s
    with pytest.raises(InputError, match="not four"):
        backend.estimate(four)
    with pytest.raises(InputError, match="not four"):
        backend.estimate_many([eight, four])


def test_measured_densities_are_those_of_their_layers() -> None:
    seen: list[float] = []

    class Watching(type(made())):  # type: ignore[misc]
        def run(self, works: Workloads) -> Any:
            seen.extend(works.activation_density.tolist())
            return super().run(works)

    accelerator = Watching(made(activation_density=0.5).description, made().technology)
    graph = conv_chain()
    AcceleratorBackend("test", accelerator, {"conv1": 0.25}).estimate(graph)
    assert sorted(seen) == [0.25] + [0.5] * (len(graph.layers) - 1)


def test_widths_of_depthwise_layers_are_their_groups() -> None:
    graph = mobilenet_v1(size=32)
    half = graph.with_kept([group.width // 2 for group in graph.groups])
    accelerator = made()
    cost = AcceleratorBackend("test", accelerator).estimate(half)
    assert (cost.latency_s, cost.energy_j) == pytest.approx(direct(half, accelerator))


def test_many_widths_and_bits_at_once() -> None:
    """Sixty-four random policies: every layer's figures are those of the layer alone."""
    rng, accelerator = np.random.default_rng(0), made()
    prices = PolicyPrices(GRAPH, accelerator)
    layers = [LayerPolicy(weight_bits=w, activation_bits=a) for w in (2, 4, 8) for a in (4, 8)]
    numbers = np.array([prices.treatment(layer) for layer in layers])
    kept = np.array([[rng.integers(1, group.width + 1) for group in GRAPH.groups] for _ in range(64)])
    treatments = numbers[rng.integers(0, len(layers), (64, len(GRAPH.full_layers)))]
    totals = prices.price(kept, treatments)
    for index in (0, 31, 63):
        fresh = PolicyPrices(GRAPH, accelerator)
        chosen = [fresh.treatment(layers[int(np.flatnonzero(numbers == number)[0])]) for number in treatments[index]]
        alone = fresh.price(kept[[index]], [chosen])
        assert totals.latency_s[index] == pytest.approx(alone.latency_s[0], rel=1e-12)
        assert totals.energy_j[index] == pytest.approx(alone.energy_j[0], rel=1e-12)


def test_no_points_at_all_are_priced() -> None:
    """Searchers filter points, and may be left with none, before or after others were priced."""
    graph = cifar_resnet(8)
    space = build_space(graph, SpaceOptions(weight_bits=[4, 8], activation_bits=[4, 8]))
    prices = PointPrices(space, AcceleratorBackend("bit_fusion", load("bit_fusion")).prices(graph))
    for points in (space.least[None][:0], space.least[None], space.least[None][:0]):
        assert all(cost.shape == (len(points),) for cost in prices(points).values())
