"""Pooling: over windows, over the whole feature map."""

from dataclasses import replace

from backends.fusion import FusedOperator
from backends.tvm.kernels.base import Window
from backends.tvm.kernels.pooling import AveragePool, GlobalAverage, MaxPool
from backends.tvm.lowering.plan import Planner, Rule
from backends.tvm.lowering.rows import in_a_row
from backends.tvm.lowering.values import MAP, Packed, Value, reshaped
from search_spaces.operators import Argument


def lower_max_pool(planner: Planner, fused: FusedOperator) -> Value | None:
    """Maximum over windows; ceil_mode shows in the output's size."""
    source, window = _source(planner, fused), _window(fused)
    if source is None or window is None:
        return None
    dtype = source.buffer.dtype
    kernel = MaxPool(source.buffer_shape, planner.shape(fused.head)[2:], window, dtype=dtype)  # type: ignore[arg-type]
    return replace(planner.packed_by(kernel, source.channels, source.buffer), grid=source.grid)


def lower_average_pool(planner: Planner, fused: FusedOperator) -> Value | None:
    """Average over windows."""
    source, window = _source(planner, fused), _window(fused)
    if source is None or window is None or fused.head.argument("divisor_override") is not None:
        return None
    border = fused.head.argument("count_include_pad") is not False
    kernel = AveragePool(source.buffer_shape, planner.shape(fused.head)[2:], window, border)  # type: ignore[arg-type]
    return planner.packed_by(kernel, source.channels, source.buffer)


def lower_adaptive_average(planner: Planner, fused: FusedOperator) -> Value | None:
    """Adaptive average pooling to a size that divides the input's."""
    source = _source(planner, fused)
    if source is None:
        return None
    rows, columns = planner.shape(fused.head)[2:]
    if source.height % rows or source.width % columns:
        return None
    if (rows, columns) == (source.height, source.width):
        return source
    steps = source.height // rows, source.width // columns
    kernel = AveragePool(source.buffer_shape, (rows, columns), Window(steps, steps))
    return planner.packed_by(kernel, source.channels, source.buffer)


def lower_global_average(planner: Planner, fused: FusedOperator) -> Value | None:
    """The average of each channel, its rows and columns kept as dimensions or not."""
    source = _source(planner, fused) or _line(planner, fused)
    if source is None:
        return None
    pooled = planner.packed_by(GlobalAverage(source.buffer_shape), source.channels, source.buffer)
    return reshaped(pooled, planner.shape(fused.head))


def _source(planner: Planner, fused: FusedOperator) -> Packed | None:
    source = planner.feature_map(planner.source(fused))
    return None if source is None or len(planner.shape(fused.head)) < 2 else planner.stored(source)


def _line(planner: Planner, fused: FusedOperator) -> Packed | None:
    """A value [N, C, L] as a map of one row."""
    value = planner.packed(planner.source(fused))
    value = None if value is None or len(value.dims) != 3 else in_a_row(planner, value, 2)
    if value is None or value.channel_dimension() != 1:
        return None
    return planner.stored(value).with_dims(MAP, value.channels.flat)


def _window(fused: FusedOperator) -> Window | None:
    kernel = _pair(fused.head.argument("kernel_size"))
    if kernel is None:
        return None
    stride = _pair(fused.head.argument("stride")) or kernel
    rows, columns = _pair(fused.head.argument("padding")) or (0, 0)
    dilation = _pair(fused.head.argument("dilation")) or (1, 1)
    return Window(kernel, stride, (rows, columns, rows, columns), dilation)


def _pair(argument: Argument) -> tuple[int, int] | None:
    """A window's argument, which may be one number for both."""
    values = argument if isinstance(argument, tuple) else (argument,)
    numbers = [value for value in values if isinstance(value, int)]
    if len(numbers) != len(values) or len(numbers) not in (1, 2):
        return None
    return numbers[0], numbers[-1]


RULES: dict[str, Rule] = {
    "max_pool": lower_max_pool,
    "avg_pool": lower_average_pool,
    "adaptive_avg_pool2d": lower_adaptive_average,
    "global_avg_pool": lower_global_average,
}
