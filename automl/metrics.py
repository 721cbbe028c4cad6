"""What a network is worth: top-1 accuracy unless the user says otherwise."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

from torch import Tensor

from automl.plugins import call_plugin, is_reference, resolve
from search_spaces.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Metric:
    """A figure computed from the outputs of a whole data set.

    Attributes:
        name: shown in reports.
        function: (outputs [N, ...] float32, labels [N] int64) -> value.
        maximise: whether larger is better.
    """

    name: str
    function: Callable[[Tensor, Tensor], float]
    maximise: bool = True

    def __call__(self, outputs: Tensor, labels: Tensor) -> float:
        """The metric's value.

        Raises:
            InputError: the function failed, or gave something that is not a finite number.
        """
        value = call_plugin(lambda: float(self.function(outputs, labels)), {}, f"metric {self.name!r}")
        if not isfinite(value):
            raise InputError(f"a metric must be a finite number, {self.name!r} gave {value}")
        return float(value)


def top1(logits: Tensor, labels: Tensor) -> float:
    """Fraction of images whose largest logit [N, classes] is at the label [N]."""
    return (logits.argmax(dim=1) == labels).double().mean().item()


def top5(logits: Tensor, labels: Tensor) -> float:
    """Fraction of images whose label is among the five largest logits."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1).double().mean().item()


accuracy = Metric("accuracy", top1)
"""Top-1 accuracy in [0, 1]."""

_METRICS = {"accuracy": accuracy, "top1": accuracy, "top5": Metric("top5", top5)}


def load_metric(reference: str | None) -> Metric:
    """A metric by name, or a user's own.

    Args:
        reference: None for top-1 accuracy, "top5", or "package.module:attribute" naming a `Metric`, or a function
            (outputs, labels) -> float that is to be maximised unless it has an attribute `maximise` that says False.

    Raises:
        InputError: there is no such metric, or the attribute is neither a Metric nor callable.
    """
    if reference is None:
        return accuracy
    if not is_reference(reference):
        if reference not in _METRICS:
            raise InputError(f"unknown metric {reference!r}{did_you_mean(reference, _METRICS)}")
        return _METRICS[reference]
    found = resolve(reference)
    if isinstance(found, Metric):
        return found
    if not callable(found):
        raise InputError(
            f"a metric is an automl.metrics.Metric or a function, {reference!r} is a {type(found).__name__}"
        )
    return Metric(getattr(found, "__name__", reference), found, bool(getattr(found, "maximise", True)))
