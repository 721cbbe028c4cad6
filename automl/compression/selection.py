"""Which units of a channel group stay: the most important ones, by a criterion registered under a name.

A criterion is a function `(network, original) -> {group name: importance of each unit, [width]}`; another one is
another entry of `IMPORTANCES`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError, did_you_mean

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Importance = Callable[[PrunableNetwork, nn.Module], Mapping[str, FloatArray]]


def magnitude(network: PrunableNetwork, original: nn.Module) -> dict[str, FloatArray]:
    """Sum of the absolute weights that read a unit, over the layers that consume it.

    He et al., "AMC: AutoML for Model Compression and Acceleration on Mobile Devices", ECCV 2018, rank the input
    channels of the next layer so. Where several layers read a group (a residual stream), each one's share is divided
    by its mean over the units, or a large layer would drown the others. A group that no layer reads is ranked by the
    weights that produce it.
    """
    graph = network.graph
    reading = [np.zeros(group.width) for group in graph.groups]
    producing = [np.zeros(group.width) for group in graph.groups]
    for layer in graph.layers:
        if layer.depthwise or layer.name not in network.units:  # hands its channels on, or keeps them all
            continue
        weight = weight_of(original, layer.name)
        blocks = np.abs(weight).reshape(layer.groups, weight.shape[0] // layer.groups, weight.shape[1], -1)
        units = network.units[layer.name]
        _add_share(reading, units.in_group, units.in_unit, blocks.sum((1, 3)).ravel())
        _add_share(producing, units.out_group, units.out_unit, blocks.sum((2, 3)).ravel())
    return {
        group.name: read if read.any() else produced
        for group, read, produced in zip(graph.groups, reading, producing, strict=True)
    }


IMPORTANCES: dict[str, Importance] = {"magnitude": magnitude}


def rank_units(network: PrunableNetwork, original: nn.Module, importance: str) -> dict[str, IntArray]:
    """The units of every group, the most important first; of equally important ones the lower index.

    Raises:
        InputError: there is no criterion of that name.
    """
    if importance not in IMPORTANCES:
        raise InputError(f"unknown importance {importance!r}{did_you_mean(importance, IMPORTANCES)}")
    scores = IMPORTANCES[importance](network, original)
    return {name: np.argsort(-score, kind="stable") for name, score in scores.items()}


def weight_of(model: nn.Module, layer: str) -> FloatArray:
    """Weights of a layer [out, in / groups, *kernel] in double precision."""
    weight: Any = model.get_parameter(f"{layer}.weight")
    array: FloatArray = weight.detach().double().numpy()
    return array


def _add_share(totals: list[FloatArray], groups: npt.ArrayLike, units: npt.ArrayLike, amounts: FloatArray) -> None:
    """Add each entry's amount, relative to the mean of its group, to the unit it belongs to."""
    groups, units = np.asarray(groups), np.asarray(units)
    for group in np.unique(groups[groups >= 0]):
        entries = groups == group
        by_unit = np.bincount(units[entries], amounts[entries], minlength=len(totals[group]))
        if mean := by_unit.mean():
            totals[group] += by_unit / mean
