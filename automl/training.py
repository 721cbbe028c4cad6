"""Training and evaluating a network; baselines, fine-tuning and the from-scratch control all go through here.

Given the same seed, machine, torch and number of threads, training gives the same weights bit for bit. With another
number of threads torch adds up in another order, and the weights differ in their last bits, then more.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import cos, isfinite, pi
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automl.batches import batches, length, mixed, training_batches
from automl.data.bundle import DataBundle, Images
from automl.metrics import Metric, accuracy
from automl.training_state import TrainingState
from search_spaces.errors import InputError, TrimtabError


@dataclass(frozen=True)
class TrainingOptions:
    """How a network is trained.

    Attributes:
        epochs: passes over the training split; 0 leaves the network as it is.
        batch_size: images a step.
        lr: peak learning rate; it falls to zero along a cosine (Loshchilov & Hutter 2017).
        momentum: Nesterov's (SGD), or Adam's beta 1.
        weight_decay: of weights with more than one dimension; batch norm and biases are left alone.
        label_smoothing: share of the target spread over all classes.
        optimizer: "sgd" or "adam" (decoupled weight decay, AdamW).
        warmup_epochs: the learning rate first rises linearly over these, at most half of `epochs`.
        seed: of the order of the images, their augmentation and dropout.
        workers: processes that decode images; only data sets that are not held in memory use them. The result does
            not depend on their number.
        device: where to train, "cpu" or for example "cuda:0".
        distillation: share of the loss that is the distance to a teacher's answers, where there is a teacher: Hinton et
            al., "Distilling the Knowledge in a Neural Network", 2015.
        temperature: that both answers are softened by.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    optimizer: Literal["sgd", "adam"] = "sgd"
    warmup_epochs: float = 1.0
    seed: int = 0
    workers: int = 4
    device: str = "cpu"
    distillation: float = 0.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        rules = {
            "epochs must be at least 0": self.epochs >= 0,
            "batch_size must be at least 1": self.batch_size >= 1,
            "lr must be positive": self.lr > 0,
            "momentum must be in [0, 1)": 0 <= self.momentum < 1,
            "weight_decay must not be negative": self.weight_decay >= 0,
            "label_smoothing must be in [0, 1)": 0 <= self.label_smoothing < 1,
            "optimizer must be 'sgd' or 'adam'": self.optimizer in ("sgd", "adam"),
            "warmup_epochs must not be negative": self.warmup_epochs >= 0,
            "workers must not be negative": self.workers >= 0,
            "distillation must be in [0, 1]": 0 <= self.distillation <= 1,
            "temperature must be positive": self.temperature > 0,
        }
        for rule, holds in rules.items():
            if not holds:
                raise InputError(f"{rule}, got {getattr(self, rule.split()[0])!r}")


@dataclass(frozen=True)
class EpochReport:
    """What a progress bar shows after each epoch: number (from 1) of `epochs`, mean training loss, seconds it took."""

    epoch: int
    epochs: int
    loss: float
    seconds: float

    @property
    def note(self) -> str:
        """In a few words."""
        return f"loss {self.loss:.3f}"


def train(
    model: nn.Module,
    data: DataBundle,
    options: TrainingOptions,
    *,
    teacher: nn.Module | None = None,
    state: TrainingState | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> None:
    """Train `model` IN PLACE on data.train, and leave it in eval mode on the CPU.

    Everything random comes from options.seed; torch's own random state is left as it was.

    Args:
        model: what to train.
        data: its training split.
        options: how.
        teacher: whose answers count where `options.distillation` says so; it is not changed.
        state: where the training stands after each epoch, and goes on from.
        on_epoch: told of each.

    Raises:
        TrimtabError: the loss is no longer a finite number.
        InputError: torch does not know the device.
    """
    device = torch_device(options.device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        model.to(device).train()
        try:
            _train(model, data, options, device, Loss(teacher, options, device), state, on_epoch)
        finally:
            model.cpu().eval()


def step_count(data: DataBundle, options: TrainingOptions) -> int:
    """Steps of the optimiser in a whole training."""
    return options.epochs * -(-length(data.train) // options.batch_size)


class Loss:
    """Cross entropy, and the distance to a teacher's answers where there is one.

    Args:
        teacher: is copied; None, or no share of the loss, and there is none.
        options: what counts how much.
        device: that inputs are on.
    """

    def __init__(self, teacher: nn.Module | None, options: TrainingOptions, device: torch.device) -> None:
        self._options = options
        if teacher is not None and options.distillation > 0:
            self._teacher: nn.Module | None = copy.deepcopy(teacher).to(device).eval()
        else:
            self._teacher = None

    def __call__(self, inputs: Tensor, outputs: Tensor, labels: Tensor) -> Tensor:
        """Of logits [N, classes, ...]."""
        return self.against(outputs, labels, self.wanted(inputs))

    def wanted(self, inputs: Tensor) -> Tensor | None:
        """The teacher's logits; None without one."""
        if self._teacher is None:
            return None
        with torch.no_grad():
            answers: Tensor = self._teacher(inputs)
        return answers

    def against(self, outputs: Tensor, labels: Tensor, wanted: Tensor | None) -> Tensor:
        """Of logits, where other logits of the same shape are what is wanted."""
        options = self._options
        loss = F.cross_entropy(outputs, labels, label_smoothing=options.label_smoothing)
        if wanted is None:
            return loss
        expected, found = (F.log_softmax(logits / options.temperature, dim=1) for logits in (wanted, outputs))
        distance = F.kl_div(found, expected, reduction="none", log_target=True).sum(1).mean()
        # the softened gradients are smaller by the square of the temperature
        return (1 - options.distillation) * loss + options.distillation * options.temperature**2 * distance


def _train(
    model: nn.Module,
    data: DataBundle,
    options: TrainingOptions,
    device: torch.device,
    loss_of: Loss,
    state: TrainingState | None,
    on_epoch: Callable[[EpochReport], None] | None,
) -> None:
    optimizer = optimizer_of(model, options)
    steps = -(-length(data.train) // options.batch_size)
    warmup = min(options.warmup_epochs, options.epochs / 2) * steps
    done = state.restore(model, optimizer) if state is not None else 0
    step = done * steps
    for epoch in range(done, options.epochs):
        torch.manual_seed(mixed(options.seed, epoch))  # an epoch drops out the same things, whichever is run first
        start = time.perf_counter()
        total, images = torch.zeros((), device=device), 0
        for inputs, labels in training_batches(
            data, options.batch_size, seed=options.seed, epoch=epoch, workers=options.workers
        ):
            rate = options.lr * rate_share(step, options.epochs * steps, warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            step += 1
            if len(labels) == 1 and steps > 1:
                continue  # batch norm cannot normalise a single image; it comes along in another epoch
            inputs, labels = inputs.to(device), labels.to(device)
            loss = loss_of(inputs, model(inputs), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach() * len(labels)
            images += len(labels)
        mean = float(total) / max(images, 1)
        if not isfinite(mean):
            raise TrimtabError(f"training diverged in epoch {epoch + 1} (loss {mean}); lower lr, it is {options.lr}")
        if state is not None:
            state.save(epoch + 1, model, optimizer)
        if on_epoch is not None:
            on_epoch(EpochReport(epoch + 1, options.epochs, mean, time.perf_counter() - start))


def optimizer_of(model: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """Of the model's parameters, as the options say; weights of one dimension do not decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if options.optimizer == "adam":
        return torch.optim.AdamW(groups, lr=options.lr, betas=(options.momentum, 0.999), foreach=True)
    nesterov = options.momentum > 0
    return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum, nesterov=nesterov, foreach=True)


def rate_share(step: int, total: int, warmup: float) -> float:
    """Share of the peak learning rate at a step: a linear rise over `warmup` steps, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + cos(pi * (step - warmup) / max(total - warmup, 1)))


def evaluate(
    model: nn.Module, dataset: Images, metric: Metric = accuracy, batch_size: int = 256, *, workers: int = 0
) -> float:
    """The metric of the model's outputs on a whole data set, in eval mode, on the device the model is on.

    Raises:
        InputError: the metric failed.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    training = model.training
    model.eval()
    outputs, targets = [], []
    with torch.inference_mode():
        for inputs, labels in batches(dataset, batch_size, workers):
            outputs.append(model(inputs.to(device)).float().cpu())
            targets.append(labels)
        value = metric(torch.cat(outputs), torch.cat(targets))
    model.train(training)
    return value


def torch_device(name: str) -> torch.device:
    """A device that torch has.

    Raises:
        InputError: there is none of that name here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it is built without the device
        raise InputError(f"device {name!r} is not available here; use 'cpu'") from error
    return device
