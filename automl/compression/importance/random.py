"""No criterion at all: what the others have to beat."""

import numpy as np

from automl.compression.importance.base import FloatArray, ImportanceInputs


def random(inputs: ImportanceInputs) -> dict[str, FloatArray]:
    """Uniformly random in [0, 1), by the seed.

    The baseline that Mittal et al., "Recovering from Random Pruning", WACV 2018, find hard to beat after fine-tuning.
    """
    generator = np.random.default_rng(inputs.seed)
    return {group.name: generator.random(group.width) for group in inputs.network.graph.groups}
