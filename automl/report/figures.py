"""The charts of a run. Every mark tells its figures on hover (`<title>`); what matters is labelled directly."""

from collections.abc import Callable, Sequence
from xml.etree.ElementTree import Element

from automl.report import units
from automl.report.axes import Frame, Scale, draw_axes, nice_range, polyline, steps
from automl.report.data import Finalist, Point, RunData
from automl.report.markup import append, tag
from search_spaces.objective import pareto_front

WIDTH = 860.0
MOST_DOTS = 6000
METRIC_TITLES = {"macs": "MACs of an inference", "params": "parameters", "weight_bytes": "bytes of weights"}
ROW = 18.0
Text = Callable[[float], str]


def cost_text(metric: str) -> Text:
    """How a cost in that metric is written."""
    return units.size if metric == "weight_bytes" else units.count


def value_text(data: RunData, digits: int = 2) -> Text:
    """How the metric is written: shares in percent, a user's own as it is."""
    if data.shares:
        return lambda value: units.percent(value, digits)
    return lambda value: f"{value:.{digits + 2}g}"


def accuracy_against_cost(data: RunData) -> Element | None:
    """Every evaluation, the Pareto front, the budget and the baseline; None where nothing was evaluated."""
    if not data.points:
        return None
    baseline, best = data.finalist("baseline"), data.finalist("best")
    marks = [_mark(finalist, data) for finalist in (baseline, best)]
    costs = [point.cost for point in data.points] + [mark[0] for mark in marks if mark]
    if data.budget.limit is not None:
        costs.append(data.budget.limit)
    values = sorted([point.accuracy for point in data.points] + [mark[1] for mark in marks if mark])
    frame = Frame(70, 58, WIDTH - 24, 424)
    low, high, x_ticks = nice_range(min(costs), max(costs), 6)
    x = Scale(low, high, frame.left, frame.right)
    bottom, top, y_ticks = nice_range(_floor(values), values[-1], 6)
    y = Scale(bottom, top, frame.bottom, frame.top)
    chart = _chart(WIDTH, 476, f"{data.metric_name} against {METRIC_TITLES.get(data.budget.metric, 'cost')}")
    axes = draw_axes(
        frame,
        x,
        y,
        x_ticks=x_ticks,
        y_ticks=y_ticks,
        x_text=cost_text(data.budget.metric),
        y_text=_tick_text(data, y_ticks),
        x_title=METRIC_TITLES.get(data.budget.metric, data.budget.metric),
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
    _label_reference(chart, "baseline", marks[0], x, y)
    _label_best(chart, marks[1], x, y)
    _legend(chart, data, frame.left, 14)
    return chart


def accuracy_over_episodes(data: RunData, seed: int, width: float = WIDTH, *, rewards: bool = False) -> Element | None:
    """One seed: each evaluation of the agent with its best so far, beside random's best so far.

    Args:
        data: the run.
        seed: which of its seeds.
        width: of the picture in pixels.
        rewards: draw the rewards of the agent instead of the accuracy.
    """
    series = {row.algorithm: _values(data, row.name, rewards) for row in data.searches if row.seed == seed}
    agent = data.config.search.algorithm
    drawn = {name: points for name, points in series.items() if points and name in (agent, "random")}
    if not drawn:
        return None
    frame = Frame(70, 58, width - (74 if width > 500 else 64), 250)
    most = max([data.config.search.evaluations, *(number + 1 for points in drawn.values() for number, _, _ in points)])
    x = Scale(0, most, frame.left, frame.right)
    values = sorted(value for points in drawn.values() for _, value, _ in points)
    bottom, top, y_ticks = nice_range(_floor(values), values[-1], 4)
    y = Scale(bottom, top, frame.bottom, frame.top)
    name = "reward" if rewards else f"search {data.metric_name}"
    chart = _chart(width, 300, f"{name} over the episodes of seed {seed}")
    if data.warm_up:
        edge = x(data.warm_up)
        append(
            chart,
            tag(
                "rect",
                class_="shade",
                x=frame.left,
                y=frame.top,
                width=edge - frame.left,
                height=frame.bottom - frame.top,
            ),
        )
        text = "warm-up: random actions" if edge - frame.left > 150 else "warm-up"
        append(chart, tag("text", text, class_="tick", x=frame.left + 6, y=frame.top + 14))
    y_text: Text = (lambda value: f"{value:.3g}") if rewards else _tick_text(data, y_ticks)
    _, _, ticks = nice_range(0, most, 6 if width > 500 else 4)
    append(
        chart,
        draw_axes(
            frame,
            x,
            y,
            x_ticks=[tick for tick in ticks if tick <= most],
            y_ticks=y_ticks,
            x_text=lambda value: f"{value:.0f}",
            y_text=y_text,
            x_title=f"episode (seed {seed})",
            y_title=name,
        ),
    )
    shown: Text = (lambda value: f"{value:.4g}") if rewards else value_text(data)
    ends: list[tuple[float, str, str]] = []
    for algorithm, points in drawn.items():
        kind = _kind(algorithm, data)
        for number, value, feasible in points[:MOST_DOTS]:
            title = f"{algorithm}, episode {number}: {shown(value)}" + ("" if feasible else ", over the budget")
            append(chart, _shape(kind, x(number + 0.5), y(value), 2.6, title, hollow=not feasible))
        best = _running_best(points)
        if best:
            line = [(x(number + 0.5), y(value)) for number, value in best]
            append(chart, steps(line, x(points[-1][0] + 1), f"best {kind}"))
            ends.append((line[-1][1], algorithm, kind))
    for height, algorithm, kind in _spread(sorted(ends), 14):
        append(chart, tag("text", algorithm, class_=f"label {kind}", x=frame.right + 6, y=height + 4))
    append(chart, tag("text", "line: best feasible so far", class_="tick", x=frame.right, y=24, text_anchor="end"))
    return chart


def kept_by_group(data: RunData) -> Element | None:
    """What the best policy keeps of each channel group, in the order of the network."""
    if not data.layers:
        return None
    longest = max(len(group.name) for group in data.layers)
    left = min(300.0, 24 + 6.6 * longest)
    right = WIDTH - 130
    widest = max(group.width for group in data.layers)
    chart = _chart(WIDTH, 30 + ROW * len(data.layers) + 8, "channels kept by group")
    append(chart, tag("text", "channel group", class_="axis-title", x=left - 10, y=14, text_anchor="end"))
    append(chart, tag("text", "kept of all channels", class_="axis-title", x=left, y=14))
    x = Scale(0, widest, left, right)
    for index, group in enumerate(data.layers):
        top = 26 + index * ROW
        share = f"{group.kept} of {group.width}, {100 * group.kept / group.width:.0f} %"
        name = group.name if len(group.name) <= 42 else "…" + group.name[-41:]
        row = tag("g", tag("title", f"{group.name}: keeps {share}"))
        append(row, tag("text", name, class_="tick", x=left - 10, y=top + 11, text_anchor="end"))
        append(row, tag("rect", class_="width", x=left, y=top, width=x(group.width) - left, height=ROW - 5, rx=2))
        append(row, tag("rect", class_="kept", x=left, y=top, width=x(group.kept) - left, height=ROW - 5, rx=2))
        append(row, tag("text", share, class_="tick", x=x(group.width) + 8, y=top + 11))
        append(chart, row)
    return chart


def _chart(width: float, height: float, title: str) -> Element:
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
    cost = finalist.cost(data.budget.metric)
    return None if cost is None else (cost, finalist.search_accuracy)


def _floor(ordered: Sequence[float]) -> float:
    """Where an axis of accuracies starts: at the least one, or above a thin tail that would press all else together."""
    least, tenth, most = ordered[0], ordered[len(ordered) // 10], ordered[-1]
    return least if most - tenth > 0.6 * (most - least) else tenth


def _tick_text(data: RunData, ticks: Sequence[float]) -> Text:
    if not data.shares:
        return lambda value: f"{value:.4g}"
    digits = 0 if ticks[1] - ticks[0] >= 0.0099 else 1
    return lambda value: units.percent(value, digits)


def _drawn(points: Sequence[Point]) -> Sequence[Point]:
    """All points, or every n-th of very many."""
    return points[:: -(-len(points) // MOST_DOTS)]


def _dot(data: RunData, point: Point, px: float, py: float) -> Element:
    algorithm = next((row.algorithm for row in data.searches if row.name == point.search), point.search)
    title = (
        f"{point.search}, number {point.number}\n{data.metric_name} {value_text(data)(point.accuracy)}, "
        f"{cost_text(data.budget.metric)(point.cost)} {METRIC_TITLES.get(data.budget.metric, '')}"
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


def _budget_line(chart: Element, data: RunData, x: Scale, frame: Frame) -> None:
    if data.budget.limit is None:
        return
    position = x(data.budget.limit)
    append(chart, polyline([(position, frame.top - 6), (position, frame.bottom)], "budget"))
    text = f"budget {cost_text(data.budget.metric)(data.budget.limit)}"
    append(chart, tag("text", text, class_="label reference", x=position + 6, y=frame.top + 2))


def _label_reference(chart: Element, name: str, mark: tuple[float, float] | None, x: Scale, y: Scale) -> None:
    if mark is None:
        return
    px, py = x(mark[0]), y(mark[1])
    append(chart, _shape("reference", px, py, 5, name))
    anchor = "end" if px > WIDTH - 120 else "start"
    append(
        chart,
        tag(
            "text",
            name,
            class_="label reference",
            x=px + (-10 if anchor == "end" else 10),
            y=py + 18,
            text_anchor=anchor,
        ),
    )


def _label_best(chart: Element, mark: tuple[float, float] | None, x: Scale, y: Scale) -> None:
    if mark is None:
        return
    px, py = x(mark[0]), y(mark[1])
    append(chart, tag("circle", cx=px, cy=py, r=8, class_="ring"))
    append(chart, tag("text", "best", class_="label reference", x=px - 13, y=py - 5, text_anchor="end"))


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
