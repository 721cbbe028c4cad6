"""The frame of a chart: a linear scale, its ticks, grid lines and titles."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from xml.etree.ElementTree import Element

from automl.report.markup import tag


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values low..high to pixels start..end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value, clamped to the scale's range."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Frame:
    """A plotting area in pixels."""

    left: float
    top: float
    right: float
    bottom: float


def nice_range(low: float, high: float, ticks: int = 5) -> tuple[float, float, list[float]]:
    """A range of round numbers that holds low..high, and its ticks (1, 2 or 5 times a power of ten apart)."""
    if not high > low:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / ticks
    power = 10.0 ** floor(log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    values = [index * step for index in range(first, last + 1)]
    return values[0], values[-1], values


def draw_axes(
    frame: Frame,
    x: Scale,
    y: Scale,
    *,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_texts: Sequence[str],
    y_texts: Sequence[str],
    x_title: str,
    y_title: str | None,
) -> Element:
    """Horizontal grid lines, tick labels and titles; the data is what should catch the eye."""
    group = tag("g")
    for value, text in zip(y_ticks, y_texts, strict=True):
        height = y(value)
        group.append(tag("line", class_="grid", x1=frame.left, x2=frame.right, y1=height, y2=height))
        group.append(tag("text", text, class_="tick", x=frame.left - 8, y=height + 4, text_anchor="end"))
    for value, text in zip(x_ticks, x_texts, strict=True):
        group.append(tag("text", text, class_="tick", x=x(value), y=frame.bottom + 18, text_anchor="middle"))
    middle = (frame.left + frame.right) / 2
    group.append(tag("text", x_title, class_="axis-title", x=middle, y=frame.bottom + 38, text_anchor="middle"))
    if y_title is not None:
        group.append(tag("text", y_title, class_="axis-title", x=frame.left - 46, y=frame.top - 24))
    return group


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Element:
    """A line through pixels."""
    return tag("path", d="M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in points), class_=class_)


def steps(points: Sequence[tuple[float, float]], end: float, class_: str) -> Element:
    """A staircase: each value holds until the next point, the last one to `end`."""
    corners: list[tuple[float, float]] = []
    for px, py in points:
        if corners:
            corners.append((px, corners[-1][1]))
        corners.append((px, py))
    corners.append((end, corners[-1][1]))
    return polyline(corners, class_)
