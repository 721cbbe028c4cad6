"""What a policy is worth: compress, measure accuracy on the search-validation slice, price."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils.data import DataLoader, Dataset, Subset

from automl.compression.calibration import draw
from automl.compression.held import Held
from automl.compression.pipeline import Compressor
from automl.compression.running import BATCH, HELD_BYTES, Images, RunningNetwork, channels_last
from automl.metrics import Metric
from automl.training import torch_device
from backends.base import HardwareBackend
from search_spaces.errors import InputError
from search_spaces.objective import Constraint, Evaluation, violation
from search_spaces.policy import CompressionPolicy
from search_spaces.resizing import resize
from search_spaces.resolution import Resolution

CUDA_BATCH = 512
"""Images a forward pass on a GPU, where a small batch is mostly waiting. Not tuned."""

HELD_IMAGES = 2**30
"""Validation images up to so many bytes are held in memory, the device's; more are read for every evaluation."""


class PolicyEvaluator:
    """A policy's accuracy before fine-tuning and its cost; the same policy always gives the same accuracy.

    An evaluation starts from the pristine weights, on one thread whatever the process is set to (the order of
    floating-point sums depends on their number), so neither earlier evaluations nor the machine's load matter: what
    earlier ones left behind saves time and changes no bit (see `automl.compression.running`). Networks are compressed
    on the CPU whatever the device; another device may round an image into another class. A policy's network sees the
    images at the policy's resolution.

    Args:
        compressor: makes the network of a policy.
        val: the search-validation slice, images and integer labels.
        constraints: the budgets.
        backend: prices the graph.
        metric: of logits [N, classes] and labels [N], both on the CPU.
        device: where the compressed network is run, "cpu" or "cuda".

    Raises:
        InputError: there is no such device.
    """

    def __init__(
        self,
        compressor: Compressor,
        val: Dataset[tuple[Tensor, int]],
        constraints: Sequence[Constraint],
        backend: HardwareBackend,
        metric: Metric,
        device: str = "cpu",
    ) -> None:
        self.compressor = compressor
        self.constraints = tuple(constraints)
        self.backend = backend
        self.metric = metric
        self._device = torch_device(device)
        self._val = val
        self._seen: dict[int, _Seen] = {}
        self._held = Held(HELD_BYTES)

    def cost(self, policy: CompressionPolicy) -> dict[str, float]:
        """What the backend asks for the compressed network, by metric.

        Raises:
            InputError: the policy is not one for this network.
        """
        return self.backend.estimate(self.compressor.network.graph.apply(policy)).as_metrics()

    def __call__(
        self, policy: CompressionPolicy, cost: Mapping[str, float] | None = None, share: float = 1.0
    ) -> Evaluation:
        """Evaluate. A network that cannot be computed is a failed evaluation, not an exception.

        Args:
            policy: what to evaluate.
            cost: of the policy, by metric, where somebody has priced it; else the backend is asked.
            share: of the validation images, the same ones for every policy.

        Raises:
            InputError: the policy is not one for this network, or the user's metric fails; or no such share.
        """
        if not 0.0 < share <= 1.0:
            raise InputError(f"a share of the validation images lies in (0, 1], got {share}")
        start = time.perf_counter()
        cost = self.cost(policy) if cost is None else cost
        total = len(self._val)  # type: ignore[arg-type]  # torch's Dataset declares no length
        count = max(1, round(share * total))
        accuracy, divergence, error = 0.0, None, None
        try:
            with one_thread():
                accuracy, divergence = self._found(policy, count)
        except (RuntimeError, ArithmeticError, MemoryError) as failure:  # torch's own errors are RuntimeErrors
            error = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else 'no details'}"
        seconds = time.perf_counter() - start
        images = count + self.compressor.images(policy)
        return Evaluation(accuracy, cost, violation(cost, self.constraints), seconds, error, divergence, share, images)

    def _found(self, policy: CompressionPolicy, count: int) -> tuple[float, float | None]:
        """Accuracy, and divergence from the uncompressed network."""
        if count not in self._seen:
            self._seen[count] = self._see(count)
        seen = self._seen[count]
        logits = self._logits(self.compressor.apply(policy), seen.batches, policy.resolution)
        if not torch.isfinite(logits).all():
            raise FloatingPointError("the compressed network answers NaN or infinity")
        value = self.metric(logits, seen.labels)
        return value if self.metric.maximise else -value, divergence(seen.logits, logits)

    def _see(self, count: int) -> "_Seen":
        batches = _Batches(self._val, count, self._device)
        return _Seen(batches, batches.labels(), self._logits(self.compressor.network.prune({}), batches))

    def _logits(self, module: fx.GraphModule, batches: "_Batches", resolution: Resolution | None = None) -> Tensor:
        with _reproducible(self._device):
            return RunningNetwork(module, self._device).outputs(batches.at(resolution), self._held).cpu()


def divergence(wanted: Tensor, found: Tensor) -> float | None:
    """Kullback-Leibler divergence of one network's answers from another's, nats, the mean over the images.

    Args:
        wanted: logits [N, classes, ...].
        found: of the same shape.

    Returns:
        None where the answers are no logits of two classes or more.
    """
    if wanted.ndim < 2 or wanted.shape[1] < 2 or wanted.shape != found.shape:
        return None
    expected, got = (F.log_softmax(logits.double(), dim=1) for logits in (wanted, found))
    return max(0.0, float(F.kl_div(got, expected, reduction="none", log_target=True).sum(dim=1).mean()))


@dataclass(frozen=True)
class _Seen:
    """Validation images with their labels, and what the uncompressed network answers."""

    batches: "_Batches"
    labels: Tensor
    logits: Tensor


class _Batches:
    """The images in batches on the device; held there where they are small enough.

    Args:
        dataset: images and labels.
        count: how many of them, drawn once and for all.
        device: see there.
    """

    def __init__(self, dataset: Dataset[tuple[Tensor, int]], count: int, device: torch.device) -> None:
        size = len(dataset)  # type: ignore[arg-type]  # torch's Dataset declares no length
        if count < size:
            dataset = Subset(dataset, sorted(draw(size, count, seed=0).tolist()))
        self._source = dataset
        self._device = device
        image = dataset[0][0]
        self._small = count * image.numel() * image.element_size() <= HELD_IMAGES
        self._at: dict[Resolution | None, Images] = {}

    def labels(self) -> Tensor:
        """Of all images."""
        return torch.cat([labels for _, labels in self._read()])

    def at(self, resolution: Resolution | None) -> Images:
        """The images at a resolution; None is their own."""
        if resolution not in self._at:
            streamed = _Streamed(self._read(), resolution, self._device)
            self._at[resolution] = Images.held(list(streamed)) if self._small else Images(streamed)
        return self._at[resolution]

    def _read(self) -> DataLoader[Any]:
        return DataLoader(self._source, batch_size=BATCH if self._device.type == "cpu" else CUDA_BATCH)


@dataclass(frozen=True, eq=False)
class _Streamed:
    """Images that are read anew each time."""

    source: DataLoader[Any]
    resolution: Resolution | None
    device: torch.device

    def __iter__(self) -> Iterator[Tensor]:
        for images, _ in self.source:
            yield channels_last(resize(images, self.resolution)).to(self.device)


def _reproducible(device: torch.device) -> AbstractContextManager[None]:
    """On a GPU float32 that is float32, by algorithms that give the same every time; a CPU knows no other."""
    if device.type == "cpu":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


_THREAD_SETTING = threading.Lock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, then on as many as before. One caller at a time: the setting is the process's."""
    with _THREAD_SETTING:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
