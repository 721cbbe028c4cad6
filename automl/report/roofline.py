"""Layers on the roofline of an accelerator (Williams et al., CACM 2009), dense and compressed."""

from collections.abc import Mapping, Sequence
from math import ceil, floor, inf, log10
from xml.etree.ElementTree import Element

from automl.costs.accelerator import OFF_CHIP, AcceleratorUsage, LayerUsage
from automl.report import units
from automl.report.axes import Frame, Scale, draw_axes, polyline
from automl.report.figures import WIDTH, chart_of
from automl.report.markup import append, tag

KINDS = ("reference", "agent")
"""Colours of the networks, in order."""


def roofline(networks: Mapping[str, AcceleratorUsage]) -> Element | None:
    """Every layer by the multiply-accumulates that it makes for a byte from off the chip, and a second.

    A layer on the slope waits for memory, one on the roof for arithmetic; one below both for something in between.

    Args:
        networks: on one accelerator, by title; at most two.

    Returns:
        The chart; None where nothing moves off the chip.
    """
    points = {
        title: [(layer, *place) for layer in usage.layers if (place := _place(layer)) is not None]
        for title, usage in networks.items()
    }
    every = [point for found in points.values() for point in found]
    if not every:
        return None
    roofs = sorted({layer.peak_macs_per_s for layer, _, _ in every})
    bandwidth = next(iter(networks.values())).bandwidth
    frame = Frame(86, 66, WIDTH - 24, 432)
    x_low, x_high = _decades([x for _, x, _ in every])
    y_low, y_high = _decades([y for _, _, y in every] + roofs)
    x, y = _Log(x_low, x_high, frame.left, frame.right), _Log(y_low, y_high, frame.bottom, frame.top)
    chart = chart_of(WIDTH, 484, "layers on the roofline")
    x_ticks, y_ticks = (list(range(*bounds)) for bounds in ((x_low, x_high + 1), (y_low, y_high + 1)))
    append(
        chart,
        draw_axes(
            frame,
            x.scale,
            y.scale,
            x_ticks=x_ticks,
            y_ticks=y_ticks,
            x_texts=[units.plain(10.0**tick) for tick in x_ticks],
            y_texts=[units.count(10.0**tick) for tick in y_ticks],
            x_title="multiply-accumulates for each byte off the chip",
            y_title="multiply-accumulates a second",
        ),
    )
    for roof in roofs:
        append(chart, _roof(roof, bandwidth, x, y))
    for (title, placed), kind in zip(points.items(), KINDS, strict=False):
        for layer, intensity, rate in placed:
            append(chart, _dot(f"{layer.name}, {title}", layer, x(intensity), y(rate), kind))
    _legend(chart, list(points), frame)
    return chart


class _Log:
    """A scale of powers of ten."""

    def __init__(self, low: int, high: int, start: float, end: float) -> None:
        self.scale = Scale(low, high, start, end)

    def __call__(self, value: float) -> float:
        return self.scale(log10(value))


def _place(layer: LayerUsage) -> tuple[float, float] | None:
    """Multiply-accumulates a byte, and a second."""
    moved = layer.bytes.get(OFF_CHIP, 0.0)
    if not (moved > 0 and layer.latency_s > 0 and layer.macs > 0):
        return None
    return layer.macs / moved, layer.macs / layer.latency_s


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    return low, max(high, low + 1)


def _roof(peak: float, bandwidth: float | None, x: _Log, y: _Log) -> Element:
    """Arithmetic at its peak, and left of the ridge memory at its bandwidth."""
    low, high = 10.0**x.scale.low, 10.0**x.scale.high
    ridge = 0.0 if bandwidth is None else peak / bandwidth
    corners = [(high, peak), (max(low, min(high, ridge)), peak if ridge <= high else high * (bandwidth or inf))]
    if ridge > low and bandwidth is not None:
        start = max(low, 10.0**y.scale.low / bandwidth)
        corners.append((start, start * bandwidth))
    group = tag("g", tag("title", f"{units.count(peak)}MAC/s at most"))
    append(group, polyline([(x(at), y(rate)) for at, rate in corners], "front"))
    label = f"{units.count(peak)}MAC/s"
    append(group, tag("text", label, class_="tick", x=x.scale.end, y=y(corners[0][1]) - 6, text_anchor="end"))
    return group


def _dot(name: str, layer: LayerUsage, px: float, py: float, kind: str) -> Element:
    text = (
        f"{name}\n{units.count(layer.macs)} MACs, {layer.weight_bits}/{layer.activation_bits} bits, "
        f"{units.seconds(layer.latency_s)}, {units.percent(layer.utilisation, 0)} of the arithmetic, "
        f"limited by {layer.limit}"
    )
    return tag("circle", tag("title", text), cx=px, cy=py, r=4.0, class_=f"dot {kind}")


def _legend(chart: Element, titles: Sequence[str], frame: Frame) -> None:
    place = frame.left
    for title, kind in zip(titles, KINDS, strict=False):
        append(chart, tag("circle", cx=place + 5, cy=14, r=4, class_=f"dot {kind}"))
        append(chart, tag("text", title, class_="label", x=place + 16, y=18))
        place += 40 + 7 * len(title)
