"""YAML that a user gives, as plain data: bounded in size, keys unique, nothing of it executed."""

import re
from pathlib import Path
from typing import Any

import yaml

from search_spaces.errors import InputError

MAX_BYTES = 1_000_000
MAX_VALUES = 20_000
MAX_DEPTH = 40


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, and reads 1e-3 as a number (YAML 1.1 wants 1.0e-3)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                raise yaml.MarkedYAMLError(None, None, "a key is a plain word", key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path, what: str = "config") -> Any:
    """The content of a YAML file; InputError where it cannot be read, or is too large for a config or the like."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{what} file {str(path)!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{what} file {str(path)!r} cannot be read: {error}") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: a {what} has at most {MAX_BYTES:,} bytes; this file has more")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: a {what} is UTF-8 text; this file is not") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, place: str) -> Any:
    """The value of YAML text; `place` names it in an error.

    Raises:
        InputError: not YAML, a key given twice, or too large when aliases are written out.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise InputError(f"{place}: not valid YAML: {error.problem or error.context}{where}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{place}: not valid YAML: {' '.join(str(error).split())[:200]}") from None
    except (ValueError, RecursionError, OverflowError, TypeError) as error:
        raise InputError(f"{place}: not valid YAML: {' '.join(str(error).split())[:200]}") from None
    _check_extent(value, place)
    return value


def _check_extent(value: Any, place: str) -> None:
    """Aliases can make a short text denote billions of values, or one that contains itself."""
    left = MAX_VALUES
    stack = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise InputError(
                f"{place}: a config holds at most {MAX_VALUES:,} values, {MAX_DEPTH} deep, aliases written out"
            )
        if isinstance(item, dict):
            stack.extend((inner, depth + 1) for inner in item.values())
        elif isinstance(item, list):
            stack.extend((inner, depth + 1) for inner in item)
