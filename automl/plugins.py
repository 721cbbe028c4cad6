"""What a user brings as "package.module:attribute", and calling registered builders with the arguments of a config."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError, validate_call

from search_spaces.errors import InputError, TrimtabError, did_you_mean

T = TypeVar("T")

EXTERNAL = ("torchvision", "timm")
"""Libraries whose models are named alike, without being a user's modules."""


def is_reference(name: str) -> bool:
    """Whether a name is of the form "package.module:attribute"."""
    return ":" in name


def resolve(reference: str) -> Any:
    """The object that "package.module:attribute" names; the current directory is importable.

    The module is code and runs with the rights of whoever started Trimtab: only ever name modules you trust.

    Raises:
        InputError: the reference is malformed, the module cannot be imported, or it has no such attribute.
    """
    module_name, _, attribute = reference.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise InputError(f"a reference is written 'package.module:attribute', got {reference!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # last: a user's file must not shadow an installed package
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a module may fail in any way while it is imported
        raise InputError(
            f"cannot import {module_name!r} of {reference!r} ({one_line(error)}); "
            f"it must be installed or stand in {here}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in vars(found) if not name.startswith("_")] if hasattr(found, "__dict__") else []
            raise InputError(f"{module_name!r} has no attribute {part!r}{did_you_mean(part, names)}")
        found = getattr(found, part)
    return found


def call_builder(function: Callable[..., T], args: Mapping[str, Any], what: str, **given: Any) -> T:
    """Call a registered builder with a user's arguments, checked against its annotations, and our own (`given`).

    Raises:
        InputError: an unknown argument, or a value of the wrong type or out of range.
    """
    known = [name for name in inspect.signature(function).parameters if name not in given]
    for name in args:
        if name not in known:
            hint = did_you_mean(str(name), known) or f"; {what} takes no arguments"
            raise InputError(f"unknown argument {name!r} of {what}{hint}")
    checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))(function)
    try:
        return checked(**args, **given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"].startswith("missing"):
            raise InputError(f"{what} needs the argument {place!r}") from error
        raise InputError(f"argument {place!r} of {what}: {first['msg']}, got {first['input']!r}") from error


def call_plugin(function: Callable[..., Any], args: Mapping[str, Any], what: str, **offered: Any) -> Any:
    """Call what a user brought with their arguments, and with those of `offered` that its signature names.

    Raises:
        InputError: it raised something; the message is passed on.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
        takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
        names = {parameter.name for parameter in parameters}
        wanted = {name: value for name, value in offered.items() if takes_any or name in names}
        return function(**{**wanted, **args})
    except TrimtabError:
        raise
    except Exception as error:  # a user's code may fail in any way; the cause stays attached
        raise InputError(f"{what} failed: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Class and first line of an exception's message, for an error that must fit on one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
