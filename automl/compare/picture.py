"""The best value so far against what was spent: evaluations on the left, seconds on the right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import isfinite
from pathlib import Path
from xml.etree.ElementTree import Element

from automl.compare.comparison import Comparison, Contest, Standing
from automl.compare.statistics import Effort, Quartiles, best_so_far
from automl.report import units, write_chart
from automl.report.axes import Frame, Scale, draw_axes, nice_range, polyline, steps
from automl.report.data import RunData
from automl.report.figures import WIDTH, chart_of, value_floor, value_text, value_ticks
from automl.report.markup import append, tag

HUES = 6
"""Colours for algorithms that have none of their own; after them lines are dashed."""
OWN_COLOURS = ("random", "uniform")
TITLES: dict[Effort, str] = {
    "evaluations": "evaluations, by images forwarded",
    "seconds": "seconds of evaluation and search",
}
LEFT, GAP, RIGHT = 58.0, 34.0, 18.0
HEAD, PANEL, FOOT = 52.0, 250.0, 52.0
LEGEND_ROW = 20.0
SAMPLES = 200
LONGEST_NAME = 60


@dataclass(frozen=True, slots=True)
class _Curve:
    """An algorithm's best so far over its seeds, against one effort."""

    standing: Standing
    spread: list[tuple[float, Quartiles]]

    @property
    def end(self) -> float:
        return self.spread[-1][0]

    @property
    def level(self) -> float:
        """The median in the end."""
        return self.spread[-1][1].median

    def at(self, effort: float) -> Quartiles | None:
        reached = [quartiles for place, quartiles in self.spread if place <= effort]
        return reached[-1] if reached else None


def best_against_effort(comparison: Comparison) -> Element:
    """Two panels for each budget: the median over seeds as a line, the quartiles as a band around it."""
    data = comparison.runs[0].data
    standings = {each.name: each for contest in comparison.contests for each in contest.standings}
    kinds = _kinds(standings)
    legend, height = _legend(standings, kinds)
    row = HEAD + PANEL + FOOT
    chart = chart_of(WIDTH, height + row * len(comparison.contests), f"best search {data.metric_name} against effort")
    append(chart, legend)
    for index, contest in enumerate(comparison.contests):
        append(chart, _row(contest, data, kinds, height + index * row))
    return chart


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write the chart as an SVG file that stands alone."""
    return write_chart(best_against_effort(comparison), path)


def _row(contest: Contest, data: RunData, kinds: Mapping[str, str], top: float) -> Element:
    """Both panels of a budget, with one vertical axis."""
    group = tag("g", tag("text", contest.budget, class_="label reference", x=LEFT, y=top + 12))
    width = (WIDTH - LEFT - GAP - RIGHT) / 2
    efforts: tuple[Effort, ...] = ("evaluations", "seconds")
    curves = {
        effort: [_Curve(each, best_so_far(each.searches, effort)) for each in contest.standings] for effort in efforts
    }
    y, y_ticks = _values_axis(curves["evaluations"], top)
    for index, (effort, drawn) in enumerate(curves.items()):
        left = LEFT + index * (width + GAP)
        frame = Frame(left, top + HEAD, left + width, top + HEAD + PANEL)
        longest = max(curve.end for curve in drawn)
        ticks = [tick for tick in nice_range(0.0, longest, 5)[2] if tick <= longest * 1.001]
        x = Scale(0.0, longest or 1.0, frame.left, frame.right)
        axes = draw_axes(
            frame,
            x,
            y,
            x_ticks=ticks,
            y_ticks=y_ticks,
            x_texts=units.ticks(ticks),
            y_texts=["" for _ in y_ticks] if index else value_ticks(data, y_ticks),
            x_title=TITLES[effort],
            y_title=None,
        )
        append(group, axes)
        below = [curve for curve in drawn if curve.standing.seedless and y.low > curve.level]
        notes = [f"{curve.standing.name}, {_text(curve.level, data)}" for curve in below]
        if notes:
            note = f"below the axis: {'; '.join(notes)}"
            append(group, tag("text", note, class_="tick", x=frame.left + 6, y=frame.bottom - 6))
        for curve in reversed(drawn):  # the best on top
            append(group, _drawn(curve, data, kinds[curve.standing.name], x, y))
    title = f"best feasible search {data.metric_name}: median and quartiles over seeds"
    append(group, tag("text", title, class_="axis-title", x=LEFT, y=top + 34))
    return group


def _values_axis(curves: Sequence[_Curve], top: float) -> tuple[Scale, list[float]]:
    """The vertical scale and its ticks: what is far below the better half of the medians lies on its edge."""
    longest = max(curve.end for curve in curves)
    rising = [curve for curve in curves if not curve.standing.seedless] or curves
    sampled = [curve.at(longest * index / SAMPLES) for curve in rising for index in range(1, SAMPLES + 1)]
    values = sorted(each.median for each in sampled if each is not None and isfinite(each.median))
    values = values or [0.0]
    uppers = [curve.spread[-1][1].upper for curve in curves]
    most = max(value for value in (*uppers, values[-1]) if isfinite(value))
    floor = value_floor(values)
    levels = [curve.level for curve in curves if curve.standing.seedless and curve.level > 2 * floor - most]
    bottom, high, ticks = nice_range(min([floor, *levels]), most, 5)
    return Scale(bottom, high, top + HEAD + PANEL, top + HEAD), ticks


def _drawn(curve: _Curve, data: RunData, kind: str, x: Scale, y: Scale) -> Element | None:
    """A line with its band; a level across the panel for an algorithm that evaluates but one policy."""
    reached = [(place, quartiles) for place, quartiles in curve.spread if isfinite(quartiles.median)]
    if not reached:
        return None
    reached = [each for each in reached if each[1].median >= y.low] or reached[-1:]  # what lies below is not drawn
    group = tag("g", tag("title", _hint(curve.standing, data)))
    if curve.standing.seedless:
        height = y(curve.level)
        append(group, polyline([(x.start, height), (x.end, height)], f"best level {kind}"))
        return group if curve.level >= y.low else None
    end = x(curve.end)
    if len(curve.standing.searches) > 1:
        append(group, _band(reached, end, kind, x, y))
    append(group, steps([(x(place), y(quartiles.median)) for place, quartiles in reached], end, f"best {kind}"))
    return group


def _band(reached: Sequence[tuple[float, Quartiles]], end: float, kind: str, x: Scale, y: Scale) -> Element:
    upper = _stairs([(x(place), y(quartiles.upper)) for place, quartiles in reached], end)
    lower = _stairs([(x(place), _height(quartiles.lower, y)) for place, quartiles in reached], end)
    return polyline([*upper, *reversed(lower)], f"band {kind}")


def _height(value: float, y: Scale) -> float:
    return y(value) if isfinite(value) else y.start


def _stairs(points: Sequence[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    corners: list[tuple[float, float]] = []
    for px, py in points:
        if corners:
            corners.append((px, corners[-1][1]))
        corners.append((px, py))
    return [*corners, (end, corners[-1][1])]


def _hint(standing: Standing, data: RunData) -> str:
    best = standing.best
    figures = [_text(value, data) for value in (best.median, best.lower, best.upper)]
    if len(standing.searches) == 1:
        return f"{standing.name}: {figures[0]}"
    return f"{standing.name}: {figures[0]}, quartiles {figures[1]} to {figures[2]}, {len(standing.searches)} seeds"


def _text(value: float, data: RunData) -> str:
    return value_text(data)(value) if isfinite(value) else "none"


def _kinds(standings: Mapping[str, Standing]) -> dict[str, str]:
    """Colour and dash of each name, in the order of rank; the first of random search and the like have their own."""
    kinds: dict[str, str] = {}
    hues = count()
    for name, standing in standings.items():
        algorithm = standing.searches[0].algorithm
        own = algorithm in OWN_COLOURS and algorithm not in kinds.values()
        kinds[name] = algorithm if own else _hue(next(hues))
    return kinds


def _hue(index: int) -> str:
    cycle, hue = divmod(index, HUES)
    return f"hue-{hue + 1}" + (f" dashed-{min(cycle, 2)}" if cycle else "")


def _legend(standings: Mapping[str, Standing], kinds: Mapping[str, str]) -> tuple[Element, float]:
    """Lines and names in the order of rank, and the height that they take."""
    group = tag("g")
    place, line = LEFT, 0
    for name, kind in kinds.items():
        text = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        width = 46 + 6.9 * len(text)
        if place > LEFT and place + width > WIDTH:
            place, line = LEFT, line + 1
        height = 16 + LEGEND_ROW * line
        level = " level" if standings[name].seedless else ""
        append(group, polyline([(place, height - 4), (place + 20, height - 4)], f"best{level} {kind}"))
        append(group, tag("text", text, x=place + 26, y=height))
        place += width
    return group, 16 + LEGEND_ROW * (line + 1)
