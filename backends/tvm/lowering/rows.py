"""Rows and columns of a map in one row, and back: another shape of the same buffer."""

from dataclasses import replace

from backends.tvm.lowering.plan import Planner
from backends.tvm.lowering.values import Packed


def in_a_row(planner: Planner, value: Packed, place: int) -> Packed | None:
    """The value with the rows and columns that a dimension runs over in one row; None where it runs over something
    else, too."""
    over = value.over(place)
    if over in ((), ("w",)) and value.height == 1:
        return value
    if over not in (("h", "w"), ("h",)) or (over == ("h",) and value.width != 1):
        return None
    return _reshaped(planner, value, place, 1, value.height * value.width)


def laid_out_like(planner: Planner, value: Packed, like: Packed) -> Packed | None:
    """The value with its rows and columns where another value of the same shape has them; None where that moves data.

    The channels are left as they are.
    """
    if value.shape != like.shape or len(value.dims) != len(like.dims) or value.batch != like.batch:
        return None
    for place in range(len(value.dims)):
        mine, other = value.over(place), like.over(place)
        if mine == other:
            continue
        if {mine, other} - {("w",), ("h",), ("h", "w")} or value.height * value.width != like.height * like.width:
            return None
        value = _reshaped(planner, value, place, like.height, like.width)
    same = (value.height, value.width) == (like.height, like.width)
    return value if same and all(value.over(place) == like.over(place) for place in range(len(like.dims))) else None


def _reshaped(planner: Planner, value: Packed, place: int, height: int, width: int) -> Packed:
    buffer = planner.reshape(value.buffer, (value.batch, value.blocks, height, width, value.lanes))
    dims = tuple(("h", "w") if other == place else dim for other, dim in enumerate(value.dims))
    return replace(value, buffer=buffer, height=height, width=width, dims=dims)
