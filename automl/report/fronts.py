"""The Pareto front of accuracy and several costs, as a panel for each pair of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from xml.etree.ElementTree import Element

from automl.report import units
from automl.report.axes import Frame, Scale, draw_axes, nice_range, polyline
from automl.report.data import Point, RunData
from automl.report.figures import AXIS_TEXTS, MOST_DOTS, chart_of, cost_text, value_floor, value_text, value_ticks
from automl.report.markup import append, section, tag
from automl.report.method import metric_label
from search_spaces.objective import pareto_front

WIDTH, HEIGHT = 430.0, 330.0


@dataclass(frozen=True)
class _Axis:
    """One objective: its values, how its ticks and single figures are written, and its limit."""

    title: str
    values: Sequence[float]
    ticks: Callable[[Sequence[float]], Sequence[str]]
    text: Callable[[float], str]
    limit: float | None = None
    floor: float | None = None
    """Where the axis starts, if far lower values are to lie on its edge."""


def fronts(data: RunData) -> Element | None:
    """Every pair of the search's objectives; None where there is but one cost, or nothing was evaluated."""
    if len(data.objectives) < 2 or not data.points:
        return None
    axes = _axes(data, data.objectives)
    best = set(pareto_front([point.objectives(data.objectives) for point in data.points]))
    charts = [_panel(x, y, data.points, best) for x, y in combinations(axes, 2)]
    return section(
        "The Pareto front of all objectives",
        tag("div", *charts, class_="grid"),
        f"{len(best)} of {len(data.points)} policies, the coloured marks: no other is at least as accurate and costs "
        "no more in any objective. Seen by two objectives at a time some lie behind others, which cost more elsewhere.",
    )


def front(data: RunData) -> Element | None:
    """Accuracy against the cost that policies are compared by, in a small panel; None where nothing was evaluated."""
    if not data.points:
        return None
    x, y = _axes(data, [data.cost_metric])
    return _panel(x, y, data.points, set(pareto_front([point.objectives([data.cost_metric]) for point in data.points])))


def _axes(data: RunData, metrics: Sequence[str]) -> list[_Axis]:
    """Of each cost, then of the accuracy."""
    costs = [
        _Axis(
            metric_label(metric),
            [point.costs[metric] for point in data.points],
            AXIS_TEXTS.get(metric, units.ticks),
            cost_text(metric),
            data.limits.get(metric),
        )
        for metric in metrics
    ]
    values = [point.accuracy for point in data.points]
    floor = value_floor(sorted(values))
    accuracy = _Axis(
        f"search {data.metric_name}", values, lambda ticks: value_ticks(data, ticks), value_text(data), None, floor
    )
    return [*costs, accuracy]


def _panel(across: _Axis, up: _Axis, points: Sequence[Point], front: set[int]) -> Element:
    frame = Frame(70, 40, WIDTH - 26, HEIGHT - 52)
    chart = chart_of(WIDTH, HEIGHT, f"{up.title} against {across.title}")
    x, x_ticks = _scale(across, frame.left, frame.right)
    y, y_ticks = _scale(up, frame.bottom, frame.top)
    axes = draw_axes(
        frame,
        x,
        y,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        x_texts=across.ticks(x_ticks),
        y_texts=up.ticks(y_ticks),
        x_title=across.title,
        y_title=up.title,
    )
    append(chart, axes)
    if across.limit is not None:
        append(chart, polyline([(x(across.limit), frame.top), (x(across.limit), frame.bottom)], "budget"))
    if up.limit is not None:
        append(chart, polyline([(frame.left, y(up.limit)), (frame.right, y(up.limit))], "budget"))
    behind = [index for index in range(len(points)) if index not in front]
    for index in (*behind[:: -(-len(behind) // MOST_DOTS) or 1], *sorted(front)):  # the front on top
        kind = "agent" if index in front else "behind"
        point = points[index]
        hint = (
            f"{point.search}, number {point.number}\n{across.text(across.values[index])} {across.title}, "
            f"{up.text(up.values[index])} {up.title}"
        )
        class_ = f"dot {kind}{'' if point.feasible else ' over'}"
        radius = 3.4 if index in front else 1.6
        place = {"cx": x(across.values[index]), "cy": y(up.values[index])}
        append(chart, tag("circle", tag("title", hint), r=radius, class_=class_, **place))
    return chart


def _scale(axis: _Axis, start: float, end: float) -> tuple[Scale, list[float]]:
    low = min(axis.values) if axis.floor is None else axis.floor
    low, high, ticks = nice_range(low, max([*axis.values, *([] if axis.limit is None else [axis.limit])]), 4)
    return Scale(low, high, start, end), ticks
