"""The charts of a supernet: how its sub-networks learned, and what the predictor makes of them."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any
from xml.etree.ElementTree import Element

from automl.report import units
from automl.report.axes import Frame, Scale, draw_axes, nice_range, polyline
from automl.report.figures import WIDTH, chart_of, value_text, value_ticks
from automl.report.markup import append, tag
from automl.report.metric import Judged

HUES = {"largest": "hue-1", "middle": "hue-2", "smallest": "hue-4"}
HEIGHT = 400.0
LABEL_GAP = 14.0
LETTER = 6.2
"""Pixels that a letter takes, about."""


def learning(judged: Judged, name: str, epochs: Sequence[Mapping[str, Any]]) -> Element | None:
    """Accuracy of the smallest, a middle and the largest sub-network over the epochs; None before there is any.

    Args:
        judged: how the metric is written.
        name: of the metric.
        epochs: what is known of each, see `automl.supernet.training.SupernetReport`.
    """
    looks = {
        hue: [(each["epoch"], each["accuracies"][hue]) for each in epochs if hue in each.get("accuracies", {})]
        for hue in HUES
    }
    values = [value for series in looks.values() for _, value in series]
    if not values:
        return None
    last = min(series[-1][1] for series in looks.values() if series)
    floor = max(
        min(values), 2 * last - max(values)
    )  # where they came to has half the axis, how they got there the rest
    frame = Frame(70, 56, WIDTH - 76, 282)
    x = Scale(0, epochs[-1]["epochs"], frame.left, frame.right)
    bottom, top, y_ticks = nice_range(floor, max(values), 5)
    y = Scale(bottom, top, frame.bottom, frame.top)
    chart = chart_of(WIDTH, 332, f"search {name} over the training of the supernet")
    _phases(chart, epochs, x, frame)
    _, _, ticks = nice_range(0, epochs[-1]["epochs"], 8)
    x_ticks = [tick for tick in ticks if tick <= epochs[-1]["epochs"]]
    axes = draw_axes(
        frame,
        x,
        y,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        x_texts=[f"{tick:g}" for tick in x_ticks],
        y_texts=value_ticks(judged, y_ticks),
        x_title="epoch of the supernet",
        y_title=f"search {name}",
    )
    append(chart, axes)
    text, height = value_text(judged), frame.top - LABEL_GAP
    ends = sorted((y(series[-1][1]), subnet) for subnet, series in looks.items() if series)
    for subnet, series in looks.items():
        append(chart, polyline([(x(epoch), y(value)) for epoch, value in series], f"best {HUES[subnet]}"))
        for epoch, value in series:
            hint = tag("title", f"{subnet} sub-network, epoch {epoch}: {text(value)}")
            append(chart, tag("circle", hint, cx=x(epoch), cy=y(value), r=3.2, class_=f"dot {HUES[subnet]}"))
    for end, subnet in ends:
        height = max(end, height + LABEL_GAP)
        append(chart, tag("text", subnet, class_="label", x=frame.right + 8, y=height + 4))
    return chart


def predictions(
    judged: Judged, name: str, measured: Sequence[float], predicted: Sequence[float], rank: float | None
) -> Element | None:
    """Predicted against measured accuracies of held-out sub-networks; None where there are none.

    Args:
        judged: how the metric is written.
        name: of the metric.
        measured, predicted: accuracies in the same order.
        rank: Spearman's rank correlation.
    """
    if not measured or len(measured) != len(predicted):
        return None
    frame = Frame(70, 46, WIDTH - 24, HEIGHT - 60)
    low, high, ticks = nice_range(min(*measured, *predicted), max(*measured, *predicted), 4)
    x, y = Scale(low, high, frame.left, frame.right), Scale(low, high, frame.bottom, frame.top)
    chart = chart_of(WIDTH, HEIGHT, f"measured against predicted {name}")
    texts = value_ticks(judged, ticks)
    axes = draw_axes(
        frame,
        x,
        y,
        x_ticks=ticks,
        y_ticks=ticks,
        x_texts=texts,
        y_texts=texts,
        x_title=f"predicted {name}",
        y_title=f"measured {name}",
    )
    append(chart, axes)
    append(chart, polyline([(x(low), y(low)), (x(high), y(high))], "level"))
    text = value_text(judged)
    for found, guess in zip(measured, predicted, strict=True):
        hint = tag("title", f"measured {text(found)}, predicted {text(guess)}")
        append(chart, tag("circle", hint, cx=x(guess), cy=y(found), r=3.4, class_="dot agent"))
    if rank is not None:
        label = f"Spearman {units.significant(rank, 3)}"
        append(chart, tag("text", label, class_="label", x=frame.right - 8, y=frame.bottom - 12, text_anchor="end"))
    return chart


def _phases(chart: Element, epochs: Sequence[Mapping[str, Any]], x: Scale, frame: Frame) -> None:
    """Every other phase on a shade, with its name where there is room."""
    runs = [(phase, [each["epoch"] for each in run]) for phase, run in groupby(epochs, lambda each: each["phase"])]
    for index, (phase, numbers) in enumerate(runs):
        left, right = x(numbers[0] - 1), x(numbers[-1])
        if index % 2:
            height = frame.bottom - frame.top
            append(chart, tag("rect", class_="shade", x=left, y=frame.top, width=right - left, height=height))
        if LETTER * len(phase) < right - left:
            append(chart, tag("text", phase, class_="tick", x=left + 4, y=frame.top - 6))
