"""Trained networks that benchmarks compress, and how many images their compressed versions read."""

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from automl.baseline import load_baseline, state_digest
from automl.cache import digest_of
from automl.compression import CompressionOptions, Compressor, QuantisationOptions, fine_tune
from automl.compression.inference import for_inference
from automl.compression.quantisation import Observer
from automl.compression.recalibration import recalibrate_batch_norm
from automl.data import DataBundle
from automl.models import build_model
from automl.training import TrainingOptions, evaluate, train
from search_spaces.capture import PrunableNetwork
from search_spaces.number_formats import NumberFormat
from search_spaces.policy import CompressionPolicy

CALIBRATION_IMAGES = 512

Split = Literal["val", "test"]


@dataclass(frozen=True)
class Recipe:
    """How a network is built and trained; fine-tuning takes a tenth of the learning rate."""

    training: TrainingOptions
    model: Mapping[str, Any] = field(default_factory=dict)


_ADAM: dict[str, Any] = {"optimizer": "adam", "warmup_epochs": 2}

RECIPES = {
    "resnet20": Recipe(TrainingOptions(12, batch_size=64, lr=0.1)),
    "mobilenet_v2": Recipe(TrainingOptions(8, batch_size=128, lr=0.1), {"width": 0.35}),
    "lstm": Recipe(TrainingOptions(25, lr=4e-3, weight_decay=1e-2, **_ADAM)),
    "gru": Recipe(TrainingOptions(25, lr=4e-3, weight_decay=1e-2, **_ADAM)),
    "vit": Recipe(
        TrainingOptions(30, batch_size=128, lr=2e-3, weight_decay=5e-2, **_ADAM), {"width": 64, "depth": 3, "heads": 4}
    ),
}
"""By name in `build_model`."""


@dataclass(frozen=True)
class How:
    """How a policy is applied and judged.

    Attributes:
        reconstruct: whether layers that lost inputs are refitted.
        ranges: finds the ranges of weights and activations.
        epochs: of fine-tuning with all that the policy does in force.
        learn: what quantisers learn while it is fine-tuned.
        folded: whether batch norm is folded into the layers before anything else is done.
        state_bits: of the hidden state of a recurrent layer, which a policy cannot name; None leaves it float32.
        recalibrate: whether batch norm then finds its statistics anew, on the calibration images.
        split: whose images are read.
    """

    reconstruct: bool = False
    ranges: str = "min_max"
    epochs: int = 0
    learn: str = "nothing"
    folded: bool = False
    state_bits: int | None = None
    recalibrate: bool = False
    split: Split = "test"


class Accuracies:
    """What was measured so far, in a file, so that a benchmark goes on where it was."""

    def __init__(self, file: Path) -> None:
        self._database = sqlite3.connect(file, isolation_level=None)
        self._database.execute("CREATE TABLE IF NOT EXISTS accuracies (recipe TEXT PRIMARY KEY, accuracy REAL)")

    def get(self, recipe: Mapping[str, Any], measure: Callable[[], float]) -> float:
        key = digest_of(recipe)
        row = self._database.execute("SELECT accuracy FROM accuracies WHERE recipe = ?", (key,)).fetchone()
        if row is not None:
            return float(row[0])
        accuracy = measure()
        self._database.execute("INSERT INTO accuracies VALUES (?, ?)", (key, accuracy))
        return accuracy


class Subject:
    """A trained network of one seed; the weights, the order of the images and their augmentation come from it."""

    def __init__(self, name: str, seed: int, data: DataBundle, accuracies: Accuracies, quick: bool = False) -> None:
        recipe = RECIPES[name]
        self.name, self.seed, self.data = name, seed, data
        self.training = replace(recipe.training, seed=seed, epochs=1 if quick else recipe.training.epochs)
        fresh = build_model(name, recipe.model, classes=data.classes, input_shape=data.input_shape, seed=seed)
        key = {"name": name, "args": dict(recipe.model), "seed": seed}
        self.model = load_baseline(fresh, key, data, self.training)
        self._digest, self._accuracies = state_digest(self.model), accuracies
        self._compressor = cache(self._make_compressor)

    @cached_property
    def network(self) -> PrunableNetwork:
        return PrunableNetwork(self.model, self._images[:1])

    @cached_property
    def baseline(self) -> float:
        return self.accuracy(CompressionPolicy())

    def accuracy(self, policy: CompressionPolicy, how: How = How()) -> float:
        """Per cent of the images that the compressed network reads."""
        recipe = {
            "model": [self.name, self._digest],
            "data": self.data.digest,
            "policy": policy.digest,
            "how": asdict(how),
            "training": asdict(self.training) if how.epochs else None,
        }
        return self._accuracies.get(recipe, lambda: self._measure(policy, how))

    def _measure(self, policy: CompressionPolicy, how: How) -> float:
        compressed = self._compressor(how.folded, how.reconstruct, how.ranges).compress(policy)
        if how.state_bits is not None:
            quantise_state(compressed.module, self._images, how.state_bits, how.ranges)
        if how.recalibrate:
            recalibrate_batch_norm(compressed.module, self._images)
        if how.epochs:
            training = replace(self.training, epochs=how.epochs, lr=self.training.lr / 10, warmup_epochs=0)
            compressed = fine_tune(compressed, lambda module: train(module, self.data, training), how.learn)
        return 100 * evaluate(compressed.module, getattr(self.data, how.split))

    def _make_compressor(self, folded: bool, reconstruct: bool, ranges: str) -> Compressor:
        network = self.network
        if folded:
            network = PrunableNetwork(for_inference(network.prune({})), self._images[:1], prove=False)
        options = CompressionOptions(
            reconstruct=reconstruct,
            calibration_images=CALIBRATION_IMAGES,
            quantisation=QuantisationOptions(weight_range=ranges, activation_range=ranges),
        )
        return Compressor(network, self._images, options)

    @cached_property
    def _images(self) -> Tensor:
        """[CALIBRATION_IMAGES, C, H, W] of the training split."""
        count = min(CALIBRATION_IMAGES, len(self.data.train))  # type: ignore[arg-type]  # torch's Dataset has no __len__
        return torch.stack([self.data.train[index][0] for index in range(count)])


class QuantisedState(nn.Module):
    """A recurrent layer that goes from row to row with a quantised hidden state; an LSTM's cell state stays float32."""

    def __init__(self, recurrent: nn.RNNBase, quantiser: nn.Module) -> None:
        super().__init__()
        self.recurrent, self.quantiser = recurrent, quantiser

    def forward(self, rows: Tensor) -> tuple[Tensor, Any]:
        """[N, rows, features] -> what the layer gives, [N, rows, hidden], and its last state."""
        state, read = None, []
        for row in rows.split(1, dim=1):
            values, state = self.recurrent(row, state)
            hidden, *cell = state if isinstance(state, tuple) else (state,)
            state = (self.quantiser(hidden), *cell) if cell else self.quantiser(hidden)
            read.append(values)
        return torch.cat(read, dim=1), state


def quantise_state(module: nn.Module, images: Tensor, bits: int, method: str) -> None:
    """Have the recurrent layer of a network keep its hidden state in so many bits, in place."""
    name, recurrent = next((name, each) for name, each in module.named_modules() if isinstance(each, nn.RNNBase))
    observer = Observer(NumberFormat(bits, "asymmetric", "tensor"), method)
    listening = recurrent.register_forward_hook(lambda _, inputs, outputs: observer.observe(outputs[0]))
    with torch.no_grad():
        module(images)
    listening.remove()
    module.set_submodule(name, QuantisedState(recurrent, observer.quantiser()))
