"""The config of a sweep: that of a run, and a section that says what is different from run to run.

`sweep` maps axes to their values. An axis is either a key of the config ("budget.ratio") with a list of values, or any
name with named values, each a mapping of keys to what they are set to. There is a run, a *cell*, for every combination.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import yaml

from automl.config import Config, copied, read_document, set_key
from automl.errors import InputError
from search_spaces.sections import checked, shown

MOST_CELLS = 1000
LONGEST_NAME = 160
"""Of a cell, in characters: it is the name of a directory."""


@dataclass(frozen=True)
class Value:
    """One value of an axis.

    Attributes:
        label: that stands in the names of cells.
        keys: what it sets, by key of the config.
    """

    label: str
    keys: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: of its directory.
        values: the label of its value on each axis.
        config: of the run.
    """

    name: str
    values: Mapping[str, str]
    config: Config


@dataclass(frozen=True)
class Sweep:
    """A grid of runs.

    Attributes:
        document: what was asked for, as plain data.
        cells: the runs, the last axis changing fastest.
    """

    document: Mapping[str, Any]
    cells: Sequence[Cell]

    def to_yaml(self) -> str:
        """What was asked for; each cell has its resolved config."""
        text: str = yaml.safe_dump(dict(self.document), sort_keys=False, allow_unicode=True)
        return text


def is_sweep(document: Mapping[str, Any]) -> bool:
    """Whether a document is the config of a sweep."""
    return "sweep" in document


def load_sweep(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Sweep:
    """Read and check the config of a sweep, that of every cell included.

    Args:
        source, overrides: as of `automl.config.load_config`; `sweep.KEY=VALUES` replaces an axis.

    Raises:
        InputError: in one line, which axis or cell breaks which rule with which value.
    """
    document, place, base = read_document(source, overrides)
    if not is_sweep(document):
        raise InputError(f"{place}: the config of a sweep has a section 'sweep', which maps axes to their values")
    axes = _axes(document["sweep"], place)
    count = prod(len(values) for values in axes.values())
    if count > MOST_CELLS:
        sizes = " x ".join(str(len(values)) for values in axes.values())
        raise InputError(f"{place}: a sweep has at most {MOST_CELLS} cells, got {sizes} = {count}; make several of it")
    common = {key: value for key, value in document.items() if key != "sweep"}
    cells = [_cell(common, dict(zip(axes, values, strict=True)), place, base) for values in product(*axes.values())]
    _check_distinct(cells, place)
    return Sweep(document, cells)


def _axes(section: Any, place: str) -> dict[str, list[Value]]:
    if not isinstance(section, dict) or not section:
        raise InputError(f"{place}: 'sweep' maps at least one axis to its values, got {shown(section)}")
    axes = {str(axis): _values(str(axis), values, f"{place}: sweep.{axis}") for axis, values in section.items()}
    setting: dict[str, str] = {}
    for axis, found in axes.items():
        for key in {leaf for value in found for leaf in _leaves(value.keys)}:
            if setting.setdefault(key, axis) != axis:
                raise InputError(f"{place}: the axes {setting[key]!r} and {axis!r} both set {key!r}; leave it to one")
    return axes


def _values(axis: str, values: Any, place: str) -> list[Value]:
    """The values of an axis."""
    if not isinstance(values, list | dict):
        raise InputError(
            f"{place} is a list of values, or a mapping of names to the keys that each sets, got {shown(values)}"
        )
    if not values:
        raise InputError(f"{place} has no values; give it at least one, or leave it out")
    if isinstance(values, dict):
        return [_named(str(name), keys, place) for name, keys in values.items()]
    found = [Value(_label(axis, value, place), {axis: value}) for value in values]
    labels = [value.label for value in found]
    if repeated := next((label for label in labels if labels.count(label) > 1), None):
        raise InputError(f"{place} has two values called {repeated!r}; leave one out, or name them in a mapping")
    return found


def _named(name: str, keys: Any, place: str) -> Value:
    if not re.fullmatch(r"\w[\w.+=-]*", name):
        raise InputError(f"{place}: a name consists of letters, digits and any of _.+=-, got {name!r}")
    if not isinstance(keys, dict) or not keys:
        raise InputError(f"{place}.{name} maps keys of the config to their values, got {shown(keys)}")
    return Value(name, {str(key): value for key, value in keys.items()})


def _label(key: str, value: Any, place: str) -> str:
    """A value in the names of cells, short and readable: "ddpg", "ratio0.3", "seed0"."""
    last = key.rpartition(".")[2]
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, dict | list) for each in value)):
        raise InputError(f"{place}: {shown(value)} has no name; name such values in a mapping, each with {key!r} in it")
    if isinstance(value, bool):
        label = last if value else f"no_{last}"
    elif isinstance(value, str):
        label = value
    elif isinstance(value, list):
        called = last.removesuffix("s") if len(value) == 1 else last
        label = called + "_".join(map(str, value))
    else:
        label = f"{last}_none" if value is None else f"{last}{value}"
    return re.sub(r"[^\w.+=-]+", "_", label).lstrip(".-") or "_"


def _leaves(keys: Mapping[str, Any]) -> list[str]:
    """The keys that are set, those of sections in full."""
    found = []
    for key, value in keys.items():
        found += [f"{key}.{inner}" for inner in value] if isinstance(value, dict) and "." not in key else [key]
    return found


def _cell(common: Mapping[str, Any], values: Mapping[str, Value], place: str, base: Path) -> Cell:
    name = "-".join(value.label for value in values.values())
    if len(name) > LONGEST_NAME:
        raise InputError(f"{place}: the name of a cell is at most {LONGEST_NAME} long, got {name!r}; name values short")
    where = f"{place}, cell {name!r}"
    document = copied(common)
    before = _algorithm(document)
    for value in values.values():
        for key, given in value.keys.items():
            _set(document, key, copied(given), where)
    asked = {leaf for value in values.values() for leaf in _leaves(value.keys)}
    if _algorithm(document) != before and not any(leaf.startswith("search.options") for leaf in asked):
        document.get("search", {}).pop("options", None)  # those of another algorithm
    config = checked(Config, document, where).rebased(base)
    return Cell(name, {axis: value.label for axis, value in values.items()}, config)


def _set(document: dict[str, Any], key: str, value: Any, place: str) -> None:
    """Set a key; a section takes the keys that are given, but a budget is replaced whole."""
    section = document.get(key)
    if isinstance(value, dict) and isinstance(section, dict) and key != "budget":
        section.update(value)
    else:
        set_key(document, key.split("."), value, place)


def _algorithm(document: Mapping[str, Any]) -> Any:
    search = document.get("search")
    return search.get("algorithm") if isinstance(search, dict) else None


def _check_distinct(cells: Sequence[Cell], place: str) -> None:
    """InputError where two cells have the same name, or would do the same."""
    names: dict[str, Cell] = {}
    configs: dict[str, Cell] = {}
    for cell in cells:
        if cell.name.lower() in names:  # some file systems do not tell cases apart
            raise InputError(f"{place}: two cells are called {cell.name!r}; name the values of an axis in a mapping")
        names[cell.name.lower()] = cell
        same = configs.setdefault(cell.config.to_yaml(), cell)
        if same is not cell:
            raise InputError(
                f"{place}: the cells {same.name!r} and {cell.name!r} are the same run; an axis changes nothing there"
            )
