"""The weights of a network sorted by unit: what criteria that look at weights alone work on."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from automl.compression.importance.base import FloatArray, ImportanceInputs
from search_spaces.labels import IntArray

Weights = npt.NDArray[np.floating[Any]]
ByUnit = Iterator[tuple[str, Weights]]
"""(group, [width, weights of each unit]) for every layer that has weights of the group's units."""


def making(inputs: ImportanceInputs) -> ByUnit:
    """The weights that make each unit: its filters. Layers that hand channels on (depthwise) make none."""
    for name, weight, _ in _layers(inputs):
        units = inputs.network.units[name]
        yield from _by_unit(inputs, weight.reshape(len(weight), -1), units.out_group, units.out_unit)


def reading(inputs: ImportanceInputs) -> ByUnit:
    """The weights that read each unit. Layers that hand channels on (depthwise) read none."""
    for name, weight, groups in _layers(inputs):
        units = inputs.network.units[name]
        blocks = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
        rows = blocks.transpose(0, 2, 1, 3).reshape(groups * weight.shape[1], -1)
        yield from _by_unit(inputs, rows, units.in_group, units.in_unit)


def sum_of_shares(
    inputs: ImportanceInputs, weights: ByUnit, worth: Callable[[Weights], FloatArray]
) -> dict[str, FloatArray]:
    """What each unit is worth in a layer relative to the mean over the units, summed over the layers.

    Without dividing by the mean a layer with many weights would drown the others of its group.

    Args:
        inputs: of the criterion.
        weights: of one side of the layers.
        worth: [units, weights] -> worth of each unit [units].
    """
    totals = {group.name: np.zeros(group.width) for group in inputs.network.graph.groups}
    for group, matrix in weights:
        amounts = worth(matrix)
        if mean := float(amounts.mean()):
            totals[group] += amounts / mean
    return totals


def _layers(inputs: ImportanceInputs) -> Iterator[tuple[str, Weights, int]]:
    """(name, weights, convolution groups) of the layers whose channels belong to units, but for those that hand them
    on."""
    for layer in inputs.network.graph.layers:
        if not layer.depthwise and layer.name in inputs.network.units:
            weight = inputs.original.get_parameter(inputs.network.weight_names[layer.name]).detach().cpu()
            wide = weight.to(torch.promote_types(weight.dtype, torch.float32))  # numpy has no bfloat16
            yield layer.name, wide.numpy(), layer.groups


def _by_unit(inputs: ImportanceInputs, rows: Weights, in_group: IntArray, in_unit: IntArray) -> ByUnit:
    """The rows of each group, those of a unit side by side. Every unit of a group has as many rows as any other."""
    groups = inputs.network.graph.groups
    for group in np.unique(in_group[in_group >= 0]).tolist():
        entries = np.flatnonzero(in_group == group)
        ordered = entries[np.argsort(in_unit[entries], kind="stable")]
        yield groups[group].name, rows[ordered].reshape(groups[group].width, -1)
