"""Training a supernet: all its sub-networks at once, by random ones in every step."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from automl.batches import calibration_data, length, mixed, training_batches
from automl.compression.elastic import IntArray
from automl.compression.pipeline import CompressionOptions, Compressor
from automl.compression.recalibration import RECALIBRATED, recalibrate_batch_norm
from automl.config_sections import SupernetSection
from automl.data.bundle import DataBundle
from automl.data.resized import resized
from automl.metrics import Metric, accuracy
from automl.supernet.network import Supernet, channels_last
from automl.supernet.schedule import Schedule
from automl.training import EpochReport, Loss, TrainingOptions, evaluate, optimizer_of, torch_device
from automl.training_state import TrainingState
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import TrimtabError
from search_spaces.policy import CompressionPolicy
from search_spaces.space import CHANNELS

Rank = Callable[[PrunableNetwork], Mapping[str, IntArray]]
"""The units of every channel group of a network with its weights, the most important first."""

LOOKS = 10
"""How often in a training the accuracies of some sub-networks are looked at, beside the end of every phase."""


@dataclass(frozen=True)
class SupernetReport(EpochReport):
    """An epoch of a supernet's training.

    Attributes:
        phase: its name.
        accuracies: of the "smallest", a "middle" and the "largest" sub-network on the search-validation slice, after
            recalibration; empty for most epochs.
    """

    phase: str = ""
    accuracies: Mapping[str, float] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """In a few words."""
        found = ", ".join(f"{name} {value:.4f}" for name, value in self.accuracies.items())
        return f"{self.phase}, {super().note}{': ' if found else ''}{found}"

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True)
class Shard:
    """The images of every batch that one of several equal processes trains on.

    Batch norm normalises by the statistics of the process's own images, so with batch norm the result depends on the
    number of processes. Gradients and losses are summed over them; torch.distributed is up where there are several.
    """

    rank: int = 0
    count: int = 1

    def of(self, batch: Tensor) -> Tensor:
        """Its part, [about N / count, ...]."""
        return batch[self.rank :: self.count]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add up over the processes, in place, in one message."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, part in zip(tensors, torch.split(flat, [each.numel() for each in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


ALONE = Shard()


def train_supernet(
    supernet: Supernet,
    teacher: nn.Module,
    data: DataBundle,
    section: SupernetSection,
    rank: Rank,
    *,
    metric: Metric = accuracy,
    state: TrainingState | None = None,
    on_epoch: Callable[[SupernetReport], None] | None = None,
    shard: Shard = ALONE,
) -> None:
    """Train a supernet IN PLACE on data.train, and leave it in eval mode on the CPU.

    Everything random comes from the section's seed. Batch norm's shared statistics become those of the largest network.

    Args:
        supernet: what to train; epochs are added to its history.
        teacher: the largest network, trained; progressive shrinking learns from its answers to the whole images, as
            much as the section's distillation says. The sandwich's largest sub-network teaches the others instead.
        data: its training split; its validation slice is looked at now and then.
        section: how.
        rank: orders channels anew, by the weights by then, where a phase begins that frees them.
        metric: of what is looked at.
        state: where the training stands after each epoch, and goes on from.
        on_epoch: told of each.
        shard: of the images, where other processes train the same supernet on the rest.

    Raises:
        InputError: phases that do not fit the space, or a device that torch does not know.
        TrimtabError: the loss is no longer a finite number.
    """
    options = TrainingOptions(**section.training.model_dump())
    schedule = Schedule.of(supernet.space, section)
    device = torch_device(options.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        supernet.to(device).train()
        gc.freeze()  # every step makes a graph, whose modules would have the collector go through all of torch: a fifth
        try:
            training = _Training(supernet, teacher, data, options, schedule, device, shard)
            _run(training, rank, metric, state, on_epoch)
        finally:
            gc.unfreeze()
            supernet.cpu().eval()
    _recalibrate(supernet, _calibration(data, options))


def accuracies(
    supernet: Supernet, data: DataBundle, images: Tensor, metric: Metric = accuracy, workers: int = 0
) -> dict[str, float]:
    """Of the smallest, a middle and the largest sub-network on the search-validation slice, each cut out.

    Args:
        supernet: on any device; sub-networks run on the CPU.
        data: whose slice it is.
        images: [N, C, H, W], that batch norm is recalibrated on.
        metric: of the answers.
        workers: see `TrainingOptions`.
    """
    options = CompressionOptions(reconstruct=False, recalibrate_images=len(images))
    compressor = Compressor(supernet.network, images, options, elastic=supernet.elastic)
    space = supernet.space
    looked = {"smallest": space.least, "middle": space.counts // 2, "largest": space.greatest}
    found = {}
    for name, point in looked.items():
        policy = space.decode(point)
        seen = resized(data, policy.resolution).val
        found[name] = evaluate(compressor.apply(policy), seen, metric, workers=workers)
    return found


class _Training:
    """Steps of the optimiser."""

    def __init__(
        self,
        supernet: Supernet,
        teacher: nn.Module,
        data: DataBundle,
        options: TrainingOptions,
        schedule: Schedule,
        device: torch.device,
        shard: Shard,
    ) -> None:
        self.supernet, self.data, self.options, self.schedule = supernet, data, options, schedule
        self.optimizer = optimizer_of(supernet, options)
        self.shard = shard
        self._loss = Loss(None if schedule.sandwich else teacher, options, device)
        self._device = device
        self._parameters = [parameter for parameter in supernet.parameters() if parameter.requires_grad]
        for parameter in self._parameters:  # what no sub-network of a step touches has a gradient of zero
            parameter.grad = torch.zeros_like(parameter)

    def epoch(self, epoch: int) -> float:
        """Train for one; the mean loss."""
        options, count = self.options, self.shard.count
        steps = -(-length(self.data.train) // options.batch_size)
        total, images = torch.zeros((), device=self._device), 0
        batches = training_batches(
            self.data, options.batch_size, seed=options.seed, epoch=epoch, workers=options.workers
        )
        for step, (inputs, labels) in enumerate(batches):
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.rate(epoch, step, steps)
            if len(labels) < 2 * count and steps > 1:
                continue  # batch norm cannot normalise a single image; it comes along in another epoch
            images += len(labels)
            self.optimizer.zero_grad(set_to_none=False)
            policies = self.schedule.policies(epoch, step)
            part = self.shard.of(labels)
            share = len(part) / len(labels) / len(policies)
            seen = channels_last(self.shard.of(inputs)).to(self._device)
            for loss in self._losses(seen, part.to(self._device), policies):
                (share * loss).backward()  # type: ignore[no-untyped-call]
                total += share * len(labels) * loss.detach()
            self.shard.sum([parameter.grad for parameter in self._parameters if parameter.grad is not None])
            self.optimizer.step()
        self.shard.sum([total])
        return float(total) / max(images, 1)

    def _losses(self, inputs: Tensor, labels: Tensor, policies: Sequence[CompressionPolicy]) -> Iterator[Tensor]:
        """One for each sub-network; each is let go of before the next is run."""
        wanted = self._loss.wanted(inputs)
        for policy in policies:
            answers = self.supernet(inputs, policy)
            yield self._loss.against(answers, labels, wanted)
            if self.schedule.sandwich and wanted is None:  # the first is the largest
                wanted = answers.detach()


def _run(
    training: _Training,
    rank: Rank,
    metric: Metric,
    state: TrainingState | None,
    on_epoch: Callable[[SupernetReport], None] | None,
) -> None:
    supernet, schedule, options = training.supernet, training.schedule, training.options
    done = 0
    if state is not None:
        done = state.restore(supernet, training.optimizer)
        supernet.history = list(state.notes) if done else []
    epochs = schedule.epochs
    for epoch in range(done, epochs):
        torch.manual_seed(mixed(options.seed, epoch))  # an epoch drops out the same things, whichever is run first
        start = time.perf_counter()
        phase, over = schedule.at(epoch)
        if epoch and over == 0 and CHANNELS in phase.opened:
            _recalibrate(supernet, _calibration(training.data, options))
            supernet.reorder(rank(supernet.network))
        loss = training.epoch(epoch)
        if not isfinite(loss):
            raise TrimtabError(f"training diverged in epoch {epoch + 1} (loss {loss}); lower lr, it is {phase.lr}")
        looks = epoch + 1 == epochs or over + 1 == phase.epochs or (epoch + 1) % -(-epochs // LOOKS) == 0
        found = {}
        if looks and training.shard.rank == 0:
            images = _calibration(training.data, options)
            found = accuracies(supernet, training.data, images, metric, options.workers)
        report = SupernetReport(epoch + 1, epochs, loss, time.perf_counter() - start, phase.name, found)
        supernet.history.append(report.record())
        if state is not None:
            state.notes = supernet.history
            state.save(epoch + 1, supernet, training.optimizer)
        if on_epoch is not None:
            on_epoch(report)


def _recalibrate(supernet: Supernet, images: Tensor) -> None:
    """Give the largest network the statistics of its batch norms, which training leaves alone."""
    device = next(supernet.largest.parameters()).device
    recalibrate_batch_norm(supernet.largest, images.to(device))


def _calibration(data: DataBundle, options: TrainingOptions) -> Tensor:
    """Training images that batch norm is recalibrated on."""
    images, _ = calibration_data(data, RECALIBRATED, options.seed)
    return images
