"""What bits cost, many networks at once: by a table, by any backend whose layers add up, counted, or on an accelerator.

Bits are whole numbers [..., layers, 2], of the weights and of what a layer reads; 32 stands for float32. Costs are
[...], in the unit of whoever is asked. Layers are in execution order, and keep all their channels.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from backends.accelerators.pricing import PolicyPrices
from backends.base import HardwareBackend
from backends.counting import CountedPrices
from backends.layer_prices import FloatArray, IntArray, LayerPrices
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.layers import FLOAT32_BITS
from search_spaces.objective import COUNTED, MODELLED
from search_spaces.policy import CompressionPolicy, LayerPolicy

BitPrice = Callable[[IntArray], FloatArray]


def bits_policy(weight_bits: int, activation_bits: int) -> LayerPolicy:
    """What is done to a layer of these bits."""
    weights, activations = (None if bits == FLOAT32_BITS else bits for bits in (weight_bits, activation_bits))
    return LayerPolicy(weight_bits=weights, activation_bits=activations)


def table_price(costs: npt.ArrayLike) -> BitPrice:
    """By a table [layers, weight bits - 1, activation bits - 1], as HAQ publishes its own; NaN where it has no cost.

    Raises:
        InputError: the table has other axes; the price, where it knows no cost of the bits.
    """
    table = np.asarray(costs, dtype=np.float64)
    if table.ndim != 3:
        raise InputError(f"a table of bits is [layers, weight bits, activation bits], got the shape {table.shape}")
    layers = np.arange(len(table))

    def price(bits: IntArray) -> FloatArray:
        asked: IntArray = np.asarray(bits)
        inside = np.asarray(((asked >= 1) & (asked <= table.shape[1:])).all(axis=-1))
        at = np.where(inside[..., None], asked, 1) - 1
        found = np.where(inside, table[layers, at[..., 0], at[..., 1]], np.nan)
        if np.isnan(found).any():
            *_, layer = place = tuple(np.argwhere(np.isnan(found))[0].tolist())
            weights, activations = asked[place].tolist()
            raise InputError(
                f"the table has no cost of layer {layer} with {weights} bits of weights, {activations} of activations"
            )
        total: FloatArray = found.sum(axis=-1)
        return total

    return price


def backend_price(
    backend: HardwareBackend, graph: ModelGraph, weight_bits: Sequence[int], activation_bits: Sequence[int]
) -> BitPrice:
    """By a backend whose figure of a network is the sum of `by_layer`, such as a table file: each pair is asked once.

    Raises:
        InputError: it cannot price a pair of the bits.
    """
    names = [layer.name for layer in graph.full_layers]
    table = np.full((len(names), max(weight_bits), max(activation_bits)), np.nan)
    for weights in weight_bits:
        for activations in activation_bits:
            policy = CompressionPolicy(dict.fromkeys(names, bits_policy(weights, activations)))
            shares = backend.estimate(graph.apply(policy)).by_layer
            table[:, weights - 1, activations - 1] = [shares[name] for name in names]
    return table_price(table)


def network_price(graph: ModelGraph, price: Callable[[ModelGraph], float]) -> BitPrice:
    """By anything that prices a network; each is asked for once, and remembered."""
    names = [layer.name for layer in graph.full_layers]
    known: dict[bytes, float] = {}

    def of_one(bits: IntArray) -> float:
        key = bits.tobytes()
        if key not in known:
            layers = {name: bits_policy(*pair) for name, pair in zip(names, bits.tolist(), strict=True)}
            known[key] = price(graph.apply(CompressionPolicy(layers)))
        return known[key]

    def of_bits(bits: IntArray) -> FloatArray:
        asked = np.ascontiguousarray(bits, dtype=np.int64)
        costs = [of_one(each) for each in asked.reshape(-1, *asked.shape[-2:])]
        return np.array(costs, dtype=np.float64).reshape(asked.shape[:-2])

    return of_bits


def counted_price(graph: ModelGraph, metric: str = "weight_bytes") -> BitPrice:
    """Bytes of a network's weights with all that stays float32 beside them, or another of `COUNTED`."""
    if metric not in COUNTED:
        raise InputError(f"counted are {', '.join(COUNTED)}, got {metric!r}")
    prices, column = CountedPrices(graph), COUNTED.index(metric)
    return _of_layers(prices, lambda kept, treatments: prices.price(kept, treatments)[:, column])


def accelerator_price(prices: PolicyPrices, metric: str = "modelled_latency_s") -> BitPrice:
    """Seconds ("modelled_latency_s") or joules ("energy_j") of an image on an accelerator."""
    if metric not in MODELLED:
        raise InputError(f"an accelerator tells modelled_latency_s and energy_j, got {metric!r}")
    energy = metric == "energy_j"

    def price(kept: IntArray, treatments: IntArray) -> FloatArray:
        totals = prices.price(kept, treatments)
        return totals.energy_j if energy else totals.latency_s

    return _of_layers(prices, price)


def _of_layers(prices: LayerPrices, price: Callable[[IntArray, IntArray], FloatArray]) -> BitPrice:
    """By prices of units kept [policies, groups] and treatments [policies, layers]."""
    whole = np.array([group.width for group in prices.graph.groups], dtype=np.int64)
    numbers = np.full((FLOAT32_BITS + 1, FLOAT32_BITS + 1), -1, dtype=np.int64)

    def of_bits(bits: IntArray) -> FloatArray:
        asked = np.asarray(bits, dtype=np.int64)
        flat = asked.reshape(-1, *asked.shape[-2:])
        treatments = numbers[flat[..., 0], flat[..., 1]]
        if (treatments < 0).any():
            for weights, activations in np.unique(flat[treatments < 0], axis=0).tolist():
                numbers[weights, activations] = prices.treatment(bits_policy(weights, activations))
            treatments = numbers[flat[..., 0], flat[..., 1]]
        costs = price(np.repeat(whole[None], len(flat), axis=0), treatments)
        return np.asarray(costs, dtype=np.float64).reshape(asked.shape[:-2])

    return of_bits
