"""A searcher's options: a frozen dataclass each, filled from what a config gives."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from search_spaces.errors import InputError, did_you_mean

Options = TypeVar("Options")


def parse_options(base: Options, searcher: str, given: Mapping[str, Any]) -> Options:
    """The options dataclass `base` with the given values in place.

    Its fields are int, float, bool, str, or numbers in a tuple, which a config gives as a list.

    Raises:
        InputError: an unknown option, or a value that is not of the type of its default; a whole number does for a
            float.
    """
    known = {field.name: getattr(base, field.name) for field in fields(base)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"searcher {searcher!r} has no option {name!r}{did_you_mean(str(name), known)}")
        expected = type(known[name])
        if expected is tuple:
            values[name] = _numbers(searcher, name, value)
            continue
        if not (type(value) is expected or (expected is float and type(value) is int)):
            raise InputError(f"option {name!r} of searcher {searcher!r} is of type {expected.__name__}, got {value!r}")
        values[name] = expected(value)
    return replace(base, **values)  # type: ignore[type-var]


def _numbers(searcher: str, name: str, value: Any) -> tuple[float, ...]:
    if not (isinstance(value, list | tuple) and all(type(each) in (int, float) for each in value)):
        raise InputError(f"option {name!r} of searcher {searcher!r} is a list of numbers, got {value!r}")
    return tuple(float(each) for each in value)
