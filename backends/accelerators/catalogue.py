"""The accelerators that are shipped, and those of users: descriptions read and checked."""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from backends.accelerators.accelerator import Accelerator
from backends.accelerators.energy import Technology
from search_spaces.errors import InputError, did_you_mean
from search_spaces.sections import checked, shown
from search_spaces.yaml_text import read_yaml

CLASSES = {
    "roofline": "roofline:Roofline",
    "systolic": "systolic:SystolicArray",
    "row_stationary": "row_stationary:RowStationary",
    "bit_serial": "bit_serial:BitSerial",
    "bit_fusion": "bit_fusion:BitFusion",
    "sparse": "sparse:SparseArray",
    "tensor_train": "tensor_train:TensorTrainEngine",
    "low_bit": "low_bit:LowBitArray",
    "crossbar": "crossbar:Crossbar",
}
"""Class of hardware -> module here and what it holds, imported when a description asks for it."""

_CHECKOUT = Path(__file__).resolve().parents[2] / "configs"
_INSTALLED = Path(sys.prefix) / "share" / "trimtab" / "configs"


def names() -> list[str]:
    """Accelerators that are shipped."""
    return sorted(path.stem for path in _folder("accelerators").glob("*.yaml"))


def is_path(name: str) -> bool:
    """Whether an accelerator or technology is named by the path of its file, and not as one that is shipped."""
    return name.endswith((".yaml", ".yml")) or "/" in name


def load(source: str | Path | Mapping[str, Any], technology: Technology | None = None) -> Accelerator[Any]:
    """An accelerator.

    Args:
        source: one that is shipped, the path of a YAML file, or the mapping that one holds.
        technology: in place of the one that the description names.

    Raises:
        InputError: there is none, or its description breaks a rule.
    """
    if isinstance(source, Mapping):
        place, document = "accelerator", dict(source)
    else:
        path = _path(str(source), "accelerators", "accelerator")
        place, document = str(path), read_description(path)
    kind = _class(document.get("class"), place)
    description = checked(kind.Sections, document, place)
    try:
        return kind(description, technology or _technology(description.technology))
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def read_description(path: Path) -> dict[str, Any]:
    """What a file says of an accelerator, with its technology where that stands in a file of its own.

    Raises:
        InputError: it cannot be read, or is no mapping.
    """
    document = read_yaml(path, "accelerator")
    if not isinstance(document, dict):
        raise InputError(f"{path}: an accelerator is a mapping, got {shown(document)}")
    named = document.get("technology")
    if isinstance(named, str) and is_path(named):
        document["technology"] = read_yaml(path.parent / named, "technology")
    return document


def _technology(source: str | Technology) -> Technology:
    if isinstance(source, Technology):
        return source
    path = _path(source, "technologies", "technology")
    return checked(Technology, read_yaml(path, "technology"), str(path))


def _class(name: object, place: str) -> type[Accelerator[Any]]:
    if not isinstance(name, str):
        raise InputError(f"{place}: the key 'class' is one of {', '.join(CLASSES)}, got {shown(name)}")
    own = ":" in name
    if not own and name not in CLASSES:
        raise InputError(f"{place}: there is no class of accelerators {name!r}{did_you_mean(name, CLASSES)}")
    module, _, attribute = (name if own else f"backends.accelerators.{CLASSES[name]}").partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a user's module may fail in any way
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{place}: class {name!r} cannot be imported: {said}") from error
    if not (isinstance(found, type) and issubclass(found, Accelerator)):
        raise InputError(f"{place}: class {name!r} is no backends.accelerators.accelerator.Accelerator")
    return found


def _path(name: str, folder: str, what: str) -> Path:
    """A file by its name among those that are shipped, or by its path."""
    if is_path(name):
        return Path(name)
    path = _folder(folder) / f"{name}.yaml"
    if not path.is_file():
        known = sorted(each.stem for each in _folder(folder).glob("*.yaml"))
        raise InputError(f"there is no {what} {name!r}{did_you_mean(name, known)}; a path ends in .yaml")
    return path


def _folder(name: str) -> Path:
    found = _CHECKOUT / name
    return found if found.is_dir() else _INSTALLED / name
