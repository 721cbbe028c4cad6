"""OFA's predictor, a multi-layer perceptron; several of them, whose mean is taken.

Cai et al., "Once-for-All: Train One Network and Specialize it for Efficient Deployment", ICLR 2020, section 3.4: three
layers of 400 units, trained on 16,000 sub-networks. Of a few hundred, eight perceptrons of 100 units learn more (deep
ensembles: Lakshminarayanan et al. 2017) in less time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from automl.evaluation import one_thread
from automl.predictors.base import FloatArray, IntArray, Predictor
from automl.predictors.encoding import balanced
from search_spaces.errors import InputError
from search_spaces.space import SearchSpace


@dataclass(frozen=True)
class MlpOptions:
    """What can be set.

    Attributes:
        hidden: units of a hidden layer.
        layers: hidden ones.
        members: perceptrons; OFA has 1.
        epochs: of training, each with all samples once.
        least_steps: of the optimiser, where samples are few.
        batch: samples a step.
        lr: of AdamW, falling to 0 along a half cosine.
        weight_decay: of AdamW.
    """

    hidden: int = 100
    layers: int = 3
    members: int = 8
    epochs: int = 60
    least_steps: int = 200
    batch: int = 64
    lr: float = 3e-3
    weight_decay: float = 1.0

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "members", "epochs", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"mlp: {name} is at least 1, got {getattr(self, name)}")
        if not (self.lr > 0.0 and self.weight_decay >= 0.0):
            raise InputError(f"mlp: lr is above 0, weight_decay not below, got {self.lr} and {self.weight_decay}")


class Mlp(Predictor):
    """Perceptrons that differ in their first weights; all are trained in one go, on one thread.

    Accuracies are standardised; the loss is the squared error.

    Sub-networks in float32, samples whose bits are open, teach it about quantised ones (APQ: Wang et al., "APQ: Joint
    Search for Network Architecture, Pruning and Quantization Policy", CVPR 2020). APQ learns from them first and
    fine-tunes on the quantised ones. Here both are learned from together, those that are fewer as often as the others:
    on synthetic accuracies, of which bits decide the smaller part, 30 quantised samples beside 300 others came to rank
    correlations of 0.87 to 0.93, fine-tuned to 0.69 to 0.81 and alone to 0.70 to 0.80.

    Args:
        space: whose points they are.
        options: of the perceptrons and their training.
    """

    def __init__(self, space: SearchSpace, options: MlpOptions = MlpOptions()) -> None:
        super().__init__(space)
        self.options = options
        self._tensors: list[Tensor] = []  # of each layer weights [members, in, out] and biases [members, 1, out]
        self._mean, self._scale = 0.0, 1.0

    def fit(self, points: IntArray, accuracies: FloatArray, seed: int) -> None:
        """See `Predictor`."""
        generator = torch.Generator().manual_seed(seed)
        self._tensors = self._drawn(generator)
        self._train(points, accuracies, generator)

    def predict(self, points: IntArray) -> FloatArray:
        """See `Predictor`."""
        with one_thread(), torch.no_grad():
            answers = self._answers(torch.from_numpy(self.encoding(points))).mean(dim=0).double()
        found: FloatArray = self._mean + self._scale * answers.numpy()
        return found

    def state(self) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
        """Weights and biases, and how accuracies are standardised."""
        arrays = {str(number): tensor.detach().numpy() for number, tensor in enumerate(self._tensors)}
        return arrays, {"mean": self._mean, "scale": self._scale}

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self._tensors = [torch.from_numpy(arrays[str(number)].copy()) for number in range(len(arrays))]
        self._mean, self._scale = values["mean"], values["scale"]

    def _drawn(self, generator: torch.Generator) -> list[Tensor]:
        """Weights for units that are rectified (He et al. 2015), and biases of zero."""
        options = self.options
        sizes = [self.encoding.width, *[options.hidden] * options.layers, 1]
        found = []
        for before, after in pairwise(sizes):
            bound = ((6.0 if after > 1 else 1.0) / before) ** 0.5
            weights = torch.rand(options.members, before, after, generator=generator)
            found += [(2.0 * weights - 1.0) * bound, torch.zeros(options.members, 1, after)]
        return found

    def _answers(self, features: Tensor) -> Tensor:
        """Of every member to features [P, F], [members, P]."""
        hidden = features.expand(self.options.members, *features.shape)
        *pairs, last = zip(self._tensors[::2], self._tensors[1::2], strict=True)
        for weights, biases in pairs:
            hidden = torch.baddbmm(biases, hidden, weights).relu()
        return torch.baddbmm(last[1], hidden, last[0]).squeeze(2)

    def _train(self, points: IntArray, accuracies: FloatArray, generator: torch.Generator) -> None:
        """Descend from the weights as they are."""
        options, rows = self.options, balanced(points)
        count = len(rows)
        self._mean, self._scale = float(accuracies.mean()), float(accuracies.std()) or 1.0
        features = torch.from_numpy(self.encoding(points[rows]))
        targets = torch.from_numpy(((accuracies[rows] - self._mean) / self._scale).astype(np.float32))
        a_pass = -(-count // options.batch)
        epochs = max(options.epochs, -(-options.least_steps // a_pass))
        with one_thread():
            self._tensors = [tensor.requires_grad_() for tensor in self._tensors]
            optimizer = torch.optim.AdamW(self._tensors, options.lr, weight_decay=options.weight_decay)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * a_pass)
            for _ in range(epochs):
                order = torch.randperm(count, generator=generator)
                for chosen in torch.split(order, options.batch):
                    errors = self._answers(features[chosen]) - targets[chosen]
                    optimizer.zero_grad()
                    torch.autograd.backward((errors**2).mean(dim=1).sum())
                    optimizer.step()
                    schedule.step()
        self._tensors = [tensor.detach() for tensor in self._tensors]
