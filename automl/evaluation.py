"""What a policy is worth: compress, measure accuracy on the search-validation slice, price."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from automl.compression.inference import for_inference
from automl.compression.pipeline import Compressor
from automl.metrics import Metric
from automl.training import torch_device
from backends.base import HardwareBackend
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy

BATCH = 64
"""Images a forward pass: the activations of a small network then stay in the cache (the fastest of 8 to 357 tried)."""

CUDA_BATCH = 512
"""The same on a GPU, where a small batch is mostly waiting. Not tuned."""

HELD_BYTES = 2**30
"""Validation images up to this size are held in memory, the device's; larger sets are read for every evaluation."""


class PolicyEvaluator:
    """A policy's accuracy before fine-tuning and its cost; the same policy always gives the same accuracy.

    An evaluation starts from the pristine weights, on one thread whatever the process is set to (the order of
    floating-point sums depends on their number), so neither earlier evaluations nor the machine's load matter. Networks
    are compressed on the CPU whatever the device; another device may round an image into another class.

    Args:
        compressor: makes the network of a policy.
        val: the search-validation slice, images and integer labels.
        constraint: the budget.
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
        constraint: Constraint,
        backend: HardwareBackend,
        metric: Metric,
        device: str = "cpu",
    ) -> None:
        self.compressor = compressor
        self.constraint = constraint
        self.backend = backend
        self.metric = metric
        self._device = torch_device(device)
        self._batches = _Batches(val, self._device)

    def cost(self, policy: CompressionPolicy) -> dict[str, float]:
        """What the backend asks for the compressed network, by metric.

        Raises:
            InputError: the policy is not one for this network.
        """
        return self.backend.estimate(self.compressor.network.graph.apply(policy)).as_metrics()

    def __call__(self, policy: CompressionPolicy, cost: Mapping[str, float] | None = None) -> Evaluation:
        """Evaluate. A network that cannot be computed is a failed evaluation, not an exception.

        Args:
            policy: what to evaluate.
            cost: of the policy, by metric, where somebody has priced it; else the backend is asked.

        Raises:
            InputError: the policy is not one for this network, or the user's metric fails.
        """
        start = time.perf_counter()
        cost = self.cost(policy) if cost is None else cost
        accuracy, error = 0.0, None
        try:
            with one_thread():
                accuracy = self._accuracy(policy)
        except (RuntimeError, ArithmeticError, MemoryError) as failure:  # torch's own errors are RuntimeErrors
            error = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else 'no details'}"
        return Evaluation(accuracy, cost, self.constraint.violation(cost), time.perf_counter() - start, error)

    def _accuracy(self, policy: CompressionPolicy) -> float:
        module = for_inference(self.compressor.apply(policy)).to(self._device)
        with torch.inference_mode(), _reproducible(self._device):
            outputs = [(module(images), labels) for images, labels in self._batches]
            logits = torch.cat([output for output, _ in outputs]).cpu()
            labels = torch.cat([labels for _, labels in outputs])
            if not torch.isfinite(logits).all():
                raise FloatingPointError("the compressed network answers NaN or infinity")
            value = self.metric(logits, labels)
        return value if self.metric.maximise else -value


class _Batches:
    """The images in batches on the device, channels last; held there where they are small enough. Labels stay here."""

    def __init__(self, dataset: Dataset[tuple[Tensor, int]], device: torch.device) -> None:
        self._source = dataset
        self._device = device
        self._held: list[tuple[Tensor, Tensor]] | None = None
        size = len(dataset)  # type: ignore[arg-type]  # torch's Dataset declares no length
        image = dataset[0][0]
        if size * image.numel() * image.element_size() <= HELD_BYTES:
            self._held = list(self._read())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._held) if self._held is not None else self._read()

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in DataLoader(self._source, batch_size=BATCH if self._device.type == "cpu" else CUDA_BATCH):
            yield images.contiguous(memory_format=torch.channels_last).to(self._device), labels


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
