"""What a policy is worth: compress, measure accuracy on the search-validation slice, price."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from automl.compression.inference import for_inference
from automl.compression.pipeline import Compressor
from automl.metrics import Metric
from backends.base import HardwareBackend
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy

BATCH = 64
"""Images a forward pass: the activations of a small network then stay in the cache (the fastest of 8 to 357 tried)."""

HELD_BYTES = 2**30
"""Validation images up to this size are held in memory; larger sets are read again for every evaluation."""


class PolicyEvaluator:
    """A policy's accuracy before fine-tuning and its cost; the same policy always gives the same accuracy.

    An evaluation starts from the pristine weights, on one thread whatever the process is set to (the order of
    floating-point sums depends on their number), so neither earlier evaluations nor the machine's load matter.

    Args:
        compressor: makes the network of a policy.
        val: the search-validation slice, images and integer labels.
        constraint: the budget.
        backend: prices the graph.
        metric: of logits [N, classes] and labels [N].
    """

    def __init__(
        self,
        compressor: Compressor,
        val: Dataset[tuple[Tensor, int]],
        constraint: Constraint,
        backend: HardwareBackend,
        metric: Metric,
    ) -> None:
        self.compressor = compressor
        self.constraint = constraint
        self.backend = backend
        self.metric = metric
        self._batches = _Batches(val)

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
        module = for_inference(self.compressor.apply(policy))
        with torch.inference_mode():
            outputs = [(module(images), labels) for images, labels in self._batches]
            logits = torch.cat([output for output, _ in outputs])
            labels = torch.cat([labels for _, labels in outputs])
            if not torch.isfinite(logits).all():
                raise FloatingPointError("the compressed network answers NaN or infinity")
            value = self.metric(logits, labels)
        return value if self.metric.maximise else -value


class _Batches:
    """The images in batches, channels last; held in memory where they are small enough."""

    def __init__(self, dataset: Dataset[tuple[Tensor, int]]) -> None:
        self._source = dataset
        self._held: list[tuple[Tensor, Tensor]] | None = None
        size = len(dataset)  # type: ignore[arg-type]  # torch's Dataset declares no length
        image = dataset[0][0]
        if size * image.numel() * image.element_size() <= HELD_BYTES:
            self._held = list(self._read())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._held) if self._held is not None else self._read()

    def _read(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in DataLoader(self._source, batch_size=BATCH):
            yield images.contiguous(memory_format=torch.channels_last), labels


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
