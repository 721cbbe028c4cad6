"""The best policy, layer by layer: what is tried alone, what a layer takes of a cost, and the file that says so."""

import json
from pathlib import Path

import pytest
import torch

from automl.costs.by_layer import costs_by_layer
from automl.models import build_model
from automl.run.directory import write_json
from automl.run.explanation import (
    INPUT,
    TOGETHER,
    WHOLE,
    BudgetUse,
    Explanation,
    Loss,
    explain,
    in_words,
    policies_to_try,
)
from automl.testing.problems import cifar_resnet, conv_chain
from backends.accelerators.backend import AcceleratorBackend
from backends.accelerators.catalogue import load
from backends.counting import CountedPrices, CountingBackend
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.objective import COUNTED, MODELLED, Evaluation
from search_spaces.policy import CompressionPolicy, LayerPolicy

GRAPH = cifar_resnet(8)
POLICY = CompressionPolicy(
    {
        "stem": LayerPolicy(keep=0.5, weight_bits=8, activation_bits=8),
        "stage0.0.conv1": LayerPolicy(keep=1.0),
        "stage0.0.conv2": LayerPolicy(weight_bits=4, activation_bits=4),
        "stage1.0.conv2": LayerPolicy(keep=0.25),
        "classifier": LayerPolicy(rank=4),
    },
    GRAPH.digest,
)
MEASURED = {WHOLE: (0.875, 0.0), TOGETHER: (0.625, 0.5), "stem": (0.75, 0.125), "stage0.0.conv2": (1.0, 0.25)}


def explained() -> Explanation:
    found = {
        name: Evaluation(MEASURED[name][0], {}, 0.0, 0.1, divergence=MEASURED[name][1])
        if name in MEASURED
        else Evaluation(0.0, {}, 0.0, 0.1, "out of memory")
        for name in policies_to_try(GRAPH, POLICY)
    }
    before, after = (
        costs_by_layer(graph, ["macs"], CountingBackend())["macs"] for graph in (GRAPH, GRAPH.apply(POLICY))
    )
    costs = {"macs": {name: (before[name], after[name]) for name in before}}
    budgets = [BudgetUse("macs", 0.5 * GRAPH.macs, GRAPH.macs, GRAPH.apply(POLICY).macs)]
    return explain(GRAPH, POLICY, found, images=64, budgets=budgets, costs=costs)


def test_each_layer_is_tried_alone_and_what_is_not_compressed_is_not() -> None:
    tried = policies_to_try(GRAPH, POLICY)
    assert list(tried) == [WHOLE, TOGETHER, "stem", "stage0.0.conv2", "stage1.0.conv2", "classifier"]
    assert GRAPH.apply(tried[WHOLE]) == GRAPH
    assert tried[TOGETHER] == POLICY
    for name in list(tried)[2:]:
        assert tried[name] == CompressionPolicy({name: POLICY.layers[name]}, GRAPH.digest)


def test_losses_are_against_the_whole_network_and_channels_are_told_of_every_layer() -> None:
    layers = {layer.name: layer for layer in explained().layers}
    assert list(layers) == [layer.name for layer in GRAPH.full_layers]
    stem = layers["stem"]
    assert (stem.kept, stem.width, stem.group) == (8, 16, None)
    assert stem.loss == Loss(0.125, 0.125)
    assert in_words(stem) == "8 of 16 channels, 8-bit weights, 8-bit activations"
    tied = layers["stage0.0.conv2"]
    assert (tied.kept, tied.group) == (8, "stem")
    assert tied.loss == Loss(-0.125, 0.25)  # alone it was more accurate
    assert in_words(tied) == "8 of 16 channels with stem, 4-bit weights, 4-bit activations"
    assert layers["stage1.0.conv2"].loss == Loss(0.0, None, "out of memory")
    assert layers["stage0.0.conv1"].loss is None
    assert in_words(layers["stage0.0.conv1"]) == "stays whole"
    assert in_words(layers["classifier"]) == "rank 4 svd"
    assert explained().together == Loss(0.25, 0.5)


def test_blocks_and_images_are_explained_after_the_layers() -> None:
    model = build_model("resnet20", {}, classes=4, input_shape=(3, 8, 8))
    graph = PrunableNetwork(model, torch.zeros(2, 3, 8, 8), prove=False, resolutions=[(6, 6)]).graph
    policy = CompressionPolicy({"blocks.0": LayerPolicy(remove=True)}, graph.digest, (6, 6))
    tried = policies_to_try(graph, policy)
    assert list(tried) == [WHOLE, TOGETHER, "blocks.0", INPUT]
    assert tried["blocks.0"].resolution is None
    assert tried[INPUT] == CompressionPolicy({}, graph.digest, (6, 6))
    found = {name: Evaluation(0.5, {}, 0.0, 0.1) for name in tried}
    layers = {each.name: each for each in explain(graph, policy, found, images=1, budgets=[], costs={}).layers}
    assert list(layers)[-2:] == ["blocks.0", "images"]
    assert in_words(layers["blocks.0"]) == in_words(layers["blocks.0.conv1"]) == "left out"
    assert in_words(layers["images"]) == "6 x 6 pixels"
    assert layers["blocks.0"].loss == layers["images"].loss == Loss(0.0)


def test_counted_costs_of_layers_are_those_that_points_are_priced_by() -> None:
    graph = GRAPH.apply(POLICY)
    prices = CountedPrices(GRAPH)
    expected = prices.by_layer([graph.kept], [prices.treatments(graph)])[0].T
    found = costs_by_layer(graph, COUNTED, CountingBackend())
    for metric, row in zip(COUNTED, expected, strict=True):
        assert list(found[metric].values()) == row.tolist()
    assert sum(found["macs"].values()) == graph.macs


def test_modelled_costs_of_layers_are_those_that_points_are_priced_by() -> None:
    chain = conv_chain((16, 32))
    policy = CompressionPolicy({"conv0": LayerPolicy(keep=0.5, weight_bits=4, activation_bits=4)})
    graph = chain.apply(policy)
    backend = AcceleratorBackend("bit_fusion", load("bit_fusion"))
    prices = backend.prices(chain)
    expected = prices.by_layer([graph.kept], [prices.treatments(graph)])[0].T
    found = costs_by_layer(graph, ["energy_j", "modelled_latency_s", "latency_s"], backend)
    assert set(found) == {"modelled_latency_s", "energy_j"}  # the other one is no model's
    for metric, row in zip(MODELLED, expected, strict=True):
        assert list(found[metric].values()) == pytest.approx(row.tolist(), rel=1e-12)


def test_the_file_says_all_of_it(tmp_path: Path) -> None:
    write_json(tmp_path / "explanation.json", explained().to_json())
    assert Explanation.read(tmp_path / "explanation.json") == explained()
    assert Explanation.read(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"layers": [{"name": "x"}]},
        {"layers": 3},
        {"together": {"accuracy": "high", "divergence": None, "error": None}},
        {"budgets": [{"metric": "macs"}]},
        {"images": None},
        {"images": float("nan")},
        {"more": 1},
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "explanation.json"
    path.write_text(json.dumps({**explained().to_json(), **change}))
    with pytest.raises(InputError, match=r"damaged|format"):
        Explanation.read(path)
