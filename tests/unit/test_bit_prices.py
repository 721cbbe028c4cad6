"""Prices of bits: each the same as what the backend says of the network with those bits."""

from typing import Any

import numpy as np
import pytest

from automl.testing.problems import cifar_resnet, conv_chain
from backends.accelerators.backend import AcceleratorBackend
from backends.accelerators.catalogue import load
from backends.bit_prices import (
    accelerator_price,
    backend_price,
    bits_policy,
    counted_price,
    network_price,
    table_price,
)
from backends.counting import COUNTED
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy

Array = np.ndarray[Any, Any]


def quantised(graph: ModelGraph, bits: Array) -> ModelGraph:
    names = [layer.name for layer in graph.full_layers]
    layers = {name: bits_policy(*pair) for name, pair in zip(names, bits.tolist(), strict=True)}
    return graph.apply(CompressionPolicy(layers))


def some_bits(graph: ModelGraph, choices: tuple[int, ...], count: int = 12) -> Array:
    return np.random.default_rng(0).choice(choices, size=(count, len(graph.full_layers), 2))


@pytest.mark.parametrize("metric", COUNTED)
def test_counted_is_what_the_network_counts(metric: str) -> None:
    graph = cifar_resnet(8)
    bits = some_bits(graph, (1, 2, 5, 8, 32))
    expected = [getattr(quantised(graph, each), metric) for each in bits]
    price = counted_price(graph, metric)
    assert price(bits).tolist() == expected
    assert price(bits.reshape(3, 4, -1, 2)).tolist() == np.reshape(expected, (3, 4)).tolist()
    assert float(price(bits[0])) == expected[0]


@pytest.mark.parametrize("metric", ["modelled_latency_s", "energy_j"])
def test_on_an_accelerator_it_is_what_its_backend_estimates(metric: str) -> None:
    graph = cifar_resnet(8)
    backend = AcceleratorBackend("bit_fusion", load("bit_fusion"))
    bits = some_bits(graph, (2, 4, 8))
    found = accelerator_price(backend.prices(graph), metric)(bits)
    expected = [backend.estimate(quantised(graph, each)).as_metrics()[metric] for each in bits]
    assert found == pytest.approx(expected, rel=1e-12)
    assert len(set(found.tolist())) > 1


def test_a_backend_whose_layers_add_up_is_asked_for_each_pair_once() -> None:
    graph = cifar_resnet(8)
    backend = AcceleratorBackend("bit_fusion", load("bit_fusion"))
    price = backend_price(backend, graph, (2, 4, 8), (4, 8))
    bits = np.maximum(some_bits(graph, (2, 4, 8)), [2, 4])
    expected = [backend.estimate(quantised(graph, each)).as_metrics()["modelled_latency_s"] for each in bits]
    assert price(bits) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(InputError, match="no cost of layer 0 with 3 bits of weights, 4 of activations"):
        price(np.full_like(bits[0], 4) - [1, 0])


def test_a_network_is_asked_for_once() -> None:
    graph = conv_chain()
    asked = []

    def weigh(network: ModelGraph) -> float:
        asked.append(network)
        return float(network.weight_bytes)

    bits = some_bits(graph, (4, 8))
    price = network_price(graph, weigh)
    assert price(bits).tolist() == price(bits).tolist() == counted_price(graph)(bits).tolist()
    assert len(asked) == len({each.tobytes() for each in bits})


def test_a_table_refuses_bits_that_it_does_not_have() -> None:
    price = table_price(np.arange(2 * 3 * 4).reshape(2, 3, 4))
    assert price(np.array([[[1, 1], [3, 4]], [[3, 4], [2, 1]]])).tolist() == [0 + 23, 11 + 16]
    for wrong in ([[1, 1], [4, 4]], [[1, 1], [3, 5]], [[1, 1], [3, 0]]):
        with pytest.raises(InputError, match="no cost of layer 1"):
            price(np.array(wrong))
    with pytest.raises(InputError, match="weight bits, activation bits"):
        table_price(np.zeros((3, 3)))


def test_metrics_that_are_not_told_are_refused() -> None:
    graph = conv_chain()
    with pytest.raises(InputError, match="counted are macs, params, weight_bytes, got 'energy_j'"):
        counted_price(graph, "energy_j")
    backend = AcceleratorBackend("bit_fusion", load("bit_fusion"))
    with pytest.raises(InputError, match="an accelerator tells modelled_latency_s and energy_j, got 'macs'"):
        accelerator_price(backend.prices(graph), "macs")
