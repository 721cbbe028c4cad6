"""What accuracy is called, and how it is written."""

from typing import Protocol

from automl.config import Config

METRICS_AS_SHARES = (None, "accuracy", "top1", "top5")


class Judged(Protocol):
    """Something that is judged by a metric."""

    @property
    def shares(self) -> bool:
        """Whether the metric is a share of the images, shown in percent."""
        ...


def is_share(config: Config) -> bool:
    """Whether the config's metric is a share of the images."""
    return config.metric in METRICS_AS_SHARES


def metric_name(config: Config) -> str:
    """The metric for people: "accuracy", or what the user's own is called."""
    reference = config.metric or "accuracy"
    return {"top1": "accuracy", "top5": "top-5 accuracy"}.get(reference, reference.rpartition(":")[2])
