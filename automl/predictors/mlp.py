"""OFA's predictor, a multi-layer perceptron; several of them, whose mean is taken.

Cai et al., "Once-for-All: Train One Network and Specialize it for Efficient Deployment", ICLR 2020, section 3.4: three
layers of 400 units, trained on 16,000 sub-networks. Of a few hundred, eight perceptrons of 100 units learn more (deep
ensembles: Lakshminarayanan et al. 2017) in less time.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from automl.evaluation import one_thread
from automl.predictors.base import FloatArray, IntArray, Predictor
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
        options = self.options
        count = len(points)
        self._mean, self._scale = float(accuracies.mean()), float(accuracies.std()) or 1.0
        features = torch.from_numpy(self.encoding(points))
        targets = torch.from_numpy(((accuracies - self._mean) / self._scale).astype(np.float32))
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
