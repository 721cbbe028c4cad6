"""What is printed of a supernet, as rich tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from automl.once_for_all.results import DeviceResult
from automl.tables import amount, latency, number


def device_table(devices: Sequence[DeviceResult]) -> Table:
    """What was found for every device."""
    table = Table(title=f"{len(devices)} device{'s' if len(devices) != 1 else ''}, one supernet")
    table.add_column("device", overflow="fold")
    table.add_column("state")
    table.add_column("budget")
    for title in ("cost", "from the supernet", "fine-tuned", "trained alone", "latency", "seconds"):
        table.add_column(title, justify="right")
    for device in devices:
        alone = number(device.alone)
        if device.alone is not None and device.alone_epochs is not None:
            alone += f" ({device.alone_epochs} epochs)"
        table.add_row(
            Text(device.name),
            device.state,
            *_budget(device.budget),
            number(device.before),
            number(device.after),
            alone,
            latency(device.latency_s),
            "-" if device.seconds is None else f"{device.seconds:.0f}",
        )
    table.caption = "accuracies are those of the test split"
    return table


def supernet_table(status: Mapping[str, Any]) -> Table:
    """Where a supernet stands."""
    table = Table(title=f"{status['directory']}: {status['state']}", show_header=False)
    table.add_column("what")
    table.add_column("value", overflow="fold")
    table.add_row("stage", status["stage"])
    if status["reason"]:
        table.add_row("reason", Text(status["reason"]))
    table.add_row("driven for", f"{status['wall_s']:.0f} s")
    if (epoch := status["epoch"]) is not None:
        table.add_row("epoch of the supernet", f"{epoch['epoch']}/{epoch['epochs']}, loss {epoch['loss']:.3f}")
    for split, count in status["samples"].items():
        table.add_row(f"samples, {split.replace('_', ' ')}", f"{count['done']:g}/{count['evaluations']}")
    if (text := predictor_text(status["predictor"])) is not None:
        table.add_row("predictor", text)
    for stage, seconds in status["seconds"].items():
        table.add_row(f"seconds of {stage}", f"{seconds:.0f}")
    return table


def predictor_text(predictor: Mapping[str, Any]) -> str | None:
    """How good a predictor is, in a few words; None where there is none."""
    if not predictor:
        return None
    if predictor.get("spearman") is None:
        return f"{predictor['kind']}, not judged: too few sub-networks were evaluated"
    return (
        f"{predictor['kind']}, Spearman's rank correlation {predictor['spearman']:.3f} on {predictor['held_out']} "
        f"held-out sub-networks after {predictor['samples']}"
    )


def _budget(budget: Mapping[str, Any] | None) -> tuple[str, str]:
    """What is allowed, and what the best takes."""
    if budget is None:
        return "-", "-"
    limit, metric, best = budget.get("measured_limit") or budget.get("limit"), budget["metric"], budget.get("best")
    share = f"{budget['ratio']:.0%} of the largest's" if budget.get("ratio") is not None else "none"
    allowed = share if limit is None else amount(metric, limit)
    return f"{metric}: {allowed}", "-" if best is None else amount(metric, best)
