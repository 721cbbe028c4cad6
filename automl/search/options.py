"""A searcher's options: a frozen dataclass each, filled from what a config gives."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from search_spaces.errors import InputError, did_you_mean

Options = TypeVar("Options")


def parse_options(kind: type[Options], searcher: str, given: Mapping[str, Any]) -> Options:
    """An options dataclass (its fields int, float or bool, with defaults) with the given values in place.

    Raises:
        InputError: an unknown option, or a value that is not a number (a whole one where the default is).
    """
    defaults: dict[str, Any] = {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in defaults:
            raise InputError(f"searcher {searcher!r} has no option {name!r}{did_you_mean(str(name), defaults)}")
        expected = type(defaults[name])
        fits = type(value) is expected or (expected is float and type(value) is int)
        if not fits:
            raise InputError(f"option {name!r} of searcher {searcher!r} is of type {expected.__name__}, got {value!r}")
        values[name] = expected(value)
    make: Callable[..., Options] = kind
    return make(**values)
