"""The scale that batch norm gives to a unit."""

import numpy as np

from automl.compression.importance.base import FloatArray, ImportanceInputs


def batch_norm_scale(inputs: ImportanceInputs) -> dict[str, FloatArray]:
    """Absolute scale |gamma| of the batch norms that a unit goes through, their mean where there are several.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, section 3. It tells
    most of a network that was trained with an L1 penalty on these scales; one without the penalty is ranked all the
    same. The scales of all groups are compared as they are. A group that goes through no batch norm with a scale has no
    scores.
    """
    groups = inputs.network.graph.groups
    found: list[list[FloatArray]] = [[] for _ in groups]
    for name, (in_group, in_unit) in inputs.network.carried.items():
        scale = inputs.original.get_submodule(name)._parameters.get("weight")
        if scale is None:  # a batch norm without affine terms
            continue
        values = scale.detach().cpu().double().abs().numpy()
        for group in np.unique(in_group[in_group >= 0]).tolist():
            entries = in_group == group
            width = groups[group].width
            found[group].append(
                np.bincount(in_unit[entries], values[entries], width) / np.bincount(in_unit[entries], minlength=width)
            )
    return {group.name: np.mean(scales, axis=0) for group, scales in zip(groups, found, strict=True) if scales}
