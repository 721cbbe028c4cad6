"""The charts of a run. Every mark tells its figures on hover (`<title>`); what matters is labelled directly."""

from collections.abc import Callable, Sequence
from xml.etree.ElementTree import Element

from automl.report import units
from automl.report.axes import Frame, Scale, draw_axes, nice_range, polyline, steps
from automl.report.data import Finalist, Point, RunData
from automl.report.markup import append, tag
from automl.report.metric import Judged
from search_spaces.objective import pareto_front

WIDTH = 860.0
MOST_DOTS = 6000
METRIC_TITLES = {
    "macs": "MACs of an inference",
    "params": "parameters",
    "weight_bytes": "bytes of weights",
    "latency_s": "latency of an inference by the table",
    "modelled_latency_s": "latency of an inference, modelled",
    "energy_j": "energy of an inference, modelled",
}
AXIS_TEXTS = {
    "latency_s": units.milliseconds,
    "modelled_latency_s": units.milliseconds,
    "energy_j": units.millijoules,
}
Text = Callable[[float], str]


def cost_text(metric: str) -> Text:
    """How a cost in that metric is written."""
    texts = {"weight_bytes": units.size, "energy_j": units.joules}
    return units.seconds if metric.endswith("latency_s") else texts.get(metric, units.count)


def value_text(data: Judged, digits: int = 2) -> Text:
    """How the metric is written: shares in percent, a user's own as it is."""
    if data.shares:
        return lambda value: units.percent(value, digits)
    return lambda value: f"{value:.{digits + 2}g}"


def accuracy_against_cost(data: RunData) -> Element | None:
    """Every evaluation, the Pareto front, the budget and the baseline; None where nothing was evaluated."""
    if not data.points:
        return None
    baseline, best = (_mark(data.finalist(name), data) for name in ("baseline", "best"))
    costs = [point.cost for point in data.points]
    if data.limit is not None:
        costs.append(data.limit)
    # a baseline far from every policy would squeeze them together: then it is a line at its accuracy
    near = baseline is not None and baseline[0] <= max(costs) + (max(costs) - min(costs)) / 2
    if baseline is not None and near:
        costs.append(baseline[0])
    values = sorted([point.accuracy for point in data.points] + [mark[1] for mark in (baseline, best) if mark])
    frame = Frame(70, 66, WIDTH - 24, 432)
    margin = (max(costs) - min(costs)) * 0.05 or max(costs) * 0.05
    low, high = min(costs) - margin, max(costs) + margin
    x_ticks = [tick for tick in nice_range(low, high, 6)[2] if low <= tick <= high]
    x = Scale(low, high, frame.left, frame.right)
    bottom, top, y_ticks = nice_range(value_floor(values), values[-1], 6)
    y = Scale(bottom, top, frame.bottom, frame.top)
    chart = chart_of(WIDTH, 484, f"{data.metric_name} against {METRIC_TITLES.get(data.cost_metric, 'cost')}")
    axes = draw_axes(
        frame,
        x,
        y,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        x_texts=AXIS_TEXTS.get(data.cost_metric, units.ticks)(x_ticks),
        y_texts=value_ticks(data, y_ticks),
        x_title=METRIC_TITLES.get(data.cost_metric, data.cost_metric),
        y_title=f"search {data.metric_name} (held out of train, before fine-tuning)",
    )
    append(chart, axes)
    _budget_line(chart, data, x, frame)
    for point in _drawn(data.points):
        append(chart, _dot(data, point, x(point.cost), y(point.accuracy)))
    front = [data.points[index] for index in pareto_front((point.cost, point.accuracy) for point in data.points)]
    append(chart, steps([(x(point.cost), y(point.accuracy)) for point in front], frame.right, "front"))
    hidden = sum(point.accuracy < bottom for point in data.points)
    if hidden:
        note = f"{hidden} below the axis, drawn on its edge"
        append(chart, tag("text", note, class_="tick", x=frame.left + 6, y=frame.bottom - 6))
    if baseline is not None:
        text = f"baseline, {value_text(data)(baseline[1])} at {cost_text(data.cost_metric)(baseline[0])}"
        _label_reference(chart, text, baseline, x, y, near)
    _label_best(chart, best, x, y)
    _legend(chart, data, frame.left, 14)
    return chart


def over_search(data: RunData, seed: int, width: float = WIDTH, *, rewards: bool = False) -> Element | None:
    """One seed: each evaluation of the search's algorithm and the best so far, beside random search's best so far.

    The vertical axis is the same for every seed of the run.

    Args:
        data: the run.
        seed: which of its seeds.
        width: of the picture in pixels.
        rewards: draw the rewards instead of the accuracy.
    """
    shown = [row for row in data.searches if row.algorithm in (data.config.search.algorithm, "random")]
    series = {row.name: _values(data, row.name, rewards) for row in shown}
    own = [row for row in shown if row.seed == seed and series[row.name]]
    if not own:
        return None
    frame = Frame(70, 50, width - 68, 242)
    most = max(data.config.search.evaluations, *(points[-1][0] + 1 for points in series.values() if points))
    x = Scale(0, most, frame.left, frame.right)
    # of random search only the best so far is drawn: its single evaluations stand in the other chart
    values = sorted(
        value
        for row in shown
        for _, value in (_running_best if row.algorithm == "random" else _numbered)(series[row.name])
    )
    if not values:
        return None
    bottom, top, y_ticks = nice_range(value_floor(values), values[-1], 4)
    y = Scale(bottom, top, frame.bottom, frame.top)
    name = "reward" if rewards else f"search {data.metric_name}"
    chart = chart_of(width, 292, f"{name} over the proposals of seed {seed}")
    _shade_warm_up(chart, data, x, frame)
    _, _, ticks = nice_range(0, most, 6 if width > 500 else 4)
    x_ticks = [tick for tick in ticks if tick <= most]
    axes = draw_axes(
        frame,
        x,
        y,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        x_texts=[f"{tick:.0f}" for tick in x_ticks],
        y_texts=units.ticks(y_ticks) if rewards else value_ticks(data, y_ticks),
        x_title=f"proposal (seed {seed})",
        y_title=name,
    )
    append(chart, axes)
    ends = []
    for row in own:
        kind, points = _kind(row.algorithm, data), series[row.name]
        if row.algorithm != "random":
            text = units.plain if rewards else value_text(data)
            for number, value, feasible in points[:: -(-len(points) // MOST_DOTS)]:
                title = f"proposal {number}: {name} {text(value)}" + ("" if feasible else ", over the budget")
                append(chart, _shape(kind, x(number + 0.5), y(value), 2.6, title, hollow=not feasible))
        line = [(x(number + 0.5), y(value)) for number, value in _running_best(points)]
        if line:
            append(chart, steps(line, x(points[-1][0] + 1), f"best {kind}"))
            ends.append((line[-1][1], row.algorithm, kind))
    for height, label, kind in _spread(sorted(ends), 14):
        append(chart, tag("text", label, class_=f"label {kind}", x=frame.right + 6, y=height + 4))
    return chart


def chart_of(width: float, height: float, title: str) -> Element:
    """An empty picture."""
    chart = tag("svg", class_="chart", role="img", aria_label=title)
    chart.set("viewBox", f"0 0 {width:.0f} {height:.0f}")
    return chart


def _kind(algorithm: str, data: RunData) -> str:
    """Colour and shape of an algorithm's marks."""
    if algorithm == data.config.search.algorithm:
        return "agent"
    return algorithm if algorithm in ("random", "uniform") else "reference"


def _mark(finalist: Finalist | None, data: RunData) -> tuple[float, float] | None:
    """(cost, search accuracy) of a network of the comparison, None where one is not known."""
    if finalist is None or finalist.search_accuracy is None:
        return None
    cost = finalist.cost(data.cost_metric)
    return None if cost is None else (cost, finalist.search_accuracy)


def value_floor(ordered: Sequence[float]) -> float:
    """Where an axis of accuracies starts: the better half gets nearly half of it; far lower ones lie on the edge."""
    least, median, most = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    return max(least, most - 2.5 * (most - median)) if most > median else least


def value_ticks(data: Judged, ticks: Sequence[float]) -> list[str]:
    """Labels of an axis of the metric."""
    if not data.shares:
        return units.ticks(ticks)
    digits = 0 if ticks[1] - ticks[0] >= 0.0099 else 1
    return [units.percent(value, digits) for value in ticks]


def _drawn(points: Sequence[Point]) -> Sequence[Point]:
    """All points, or every n-th of very many."""
    return points[:: -(-len(points) // MOST_DOTS)]


def _dot(data: RunData, point: Point, px: float, py: float) -> Element:
    algorithm = next((row.algorithm for row in data.searches if row.name == point.search), point.search)
    title = (
        f"{point.search}, number {point.number}\n{data.metric_name} {value_text(data)(point.accuracy)}, "
        f"{cost_text(data.cost_metric)(point.cost)} {METRIC_TITLES.get(data.cost_metric, '')}"
    )
    kind = _kind(algorithm, data)
    return _shape(kind, px, py, 5.5 if kind == "uniform" else 3.4, title, hollow=not point.feasible)


def _shape(kind: str, px: float, py: float, radius: float, title: str, *, hollow: bool = False) -> Element:
    """Agent: circle; random: diamond; uniform: square. Hollow where over the budget."""
    class_ = f"dot {kind}" + (" over" if hollow else "")
    hint = tag("title", title)
    if kind == "random":
        path = f"M{px:.1f} {py - radius:.1f}l{radius} {radius} {-radius} {radius} {-radius} {-radius}z"
        return tag("path", hint, d=path, class_=class_)
    if kind == "uniform":
        return tag("rect", hint, x=px - radius, y=py - radius, width=2 * radius, height=2 * radius, class_=class_)
    return tag("circle", hint, cx=px, cy=py, r=radius, class_=class_)


def _shade_warm_up(chart: Element, data: RunData, x: Scale, frame: Frame) -> None:
    if not data.warm_up:
        return
    width, height = x(data.warm_up) - frame.left, frame.bottom - frame.top
    append(chart, tag("rect", class_="shade", x=frame.left, y=frame.top, width=width, height=height))
    text = "warm-up: random actions" if width > 150 else "warm-up"
    append(chart, tag("text", text, class_="tick", x=frame.left, y=frame.top - 6))


def _budget_line(chart: Element, data: RunData, x: Scale, frame: Frame) -> None:
    if data.limit is None:
        return
    position = x(data.limit)
    append(chart, polyline([(position, frame.top - 6), (position, frame.bottom)], "budget"))
    text = f"budget {cost_text(data.cost_metric)(data.limit)}"
    left = position > frame.right - 130
    anchor = "end" if left else "start"
    beside = position + (-6 if left else 6)
    append(chart, tag("text", text, class_="label reference", x=beside, y=frame.bottom - 8, text_anchor=anchor))


def _label_reference(chart: Element, text: str, mark: tuple[float, float], x: Scale, y: Scale, as_mark: bool) -> None:
    px, py = (x(mark[0]) if as_mark else x.end), y(mark[1])
    if as_mark:
        append(chart, _shape("reference", px, py, 5, text))
    else:
        append(chart, polyline([(x.start, py), (px, py)], "level"))
    append(chart, tag("text", text, class_="label reference", x=px, y=py - (10 if as_mark else 6), text_anchor="end"))


def _label_best(chart: Element, mark: tuple[float, float] | None, x: Scale, y: Scale) -> None:
    if mark is None:
        return
    px, py = x(mark[0]), y(mark[1])
    append(chart, tag("circle", cx=px, cy=py, r=8, class_="ring"))
    append(chart, tag("text", "best", class_="label reference", x=px - 10, y=py + 18, text_anchor="end"))


def _legend(chart: Element, data: RunData, left: float, top: float) -> None:
    names = list(dict.fromkeys(row.algorithm for row in data.searches))
    position = left
    for name in names:
        append(chart, _shape(_kind(name, data), position + 5, top - 4, 4.5, name))
        append(chart, tag("text", name, x=position + 15, y=top))
        position += 34 + 6.8 * len(name)
    append(chart, polyline([(position, top - 4), (position + 18, top - 4)], "front"))
    append(chart, tag("text", "Pareto front", x=position + 24, y=top))
    if any(not point.feasible for point in data.points):
        append(chart, tag("text", "hollow: over the budget", class_="tick", x=position + 120, y=top))


def _values(data: RunData, search: str, rewards: bool) -> list[tuple[int, float, bool]]:
    """(number, value, feasible) of a search's evaluations."""
    return [
        (point.number, point.reward if rewards else point.accuracy, point.feasible)  # type: ignore[misc]
        for point in data.points
        if point.search == search and (not rewards or point.reward is not None)
    ]


def _numbered(points: Sequence[tuple[int, float, bool]]) -> list[tuple[int, float]]:
    return [(number, value) for number, value, _ in points]


def _running_best(points: Sequence[tuple[int, float, bool]]) -> list[tuple[int, float]]:
    """The feasible evaluations that were better than all before them."""
    best: list[tuple[int, float]] = []
    for number, value, feasible in points:
        if feasible and (not best or value > best[-1][1]):
            best.append((number, value))
    return best


def _spread(labels: Sequence[tuple[float, str, str]], gap: float) -> list[tuple[float, str, str]]:
    """Labels by rising height, pushed apart so that none covers another."""
    placed: list[tuple[float, str, str]] = []
    for height, text, kind in labels:
        placed.append((max(height, placed[-1][0] + gap) if placed else height, text, kind))
    return placed
