"""The accelerators that are shipped, and those of users: descriptions read and checked."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from backends.accelerators.accelerator import Accelerator
from backends.accelerators.energy import Technology
from search_spaces.errors import InputError, did_you_mean
from search_spaces.sections import checked
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


def load(name: str | Path, technology: Technology | None = None) -> Accelerator[Any]:
    """An accelerator.

    Args:
        name: one that is shipped, or the path of a YAML file.
        technology: in place of the one that the description names.

    Raises:
        InputError: there is none, or its description breaks a rule.
    """
    path = _path(str(name), "accelerators", "accelerator")
    document = read_yaml(path, "accelerator")
    if not isinstance(document, dict) or not isinstance(document.get("class"), str):
        raise InputError(f"{path}: an accelerator is a mapping with a 'class', one of {', '.join(CLASSES)}")
    kind = _class(document["class"], path)
    description = checked(kind.Sections, document, str(path))
    if technology is None:
        technology = load_technology(description.technology, path.parent)
    try:
        return kind(description, technology)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def load_technology(name: str, beside: Path) -> Technology:
    """Energies of a process.

    Args:
        name: one that is shipped, or the path of a YAML file, relative to the folder `beside`.

    Raises:
        InputError: there is none, or it breaks a rule.
    """
    path = _path(name, "technologies", "technology", beside)
    return checked(Technology, read_yaml(path, "technology"), str(path))


def _class(name: str, place: Path) -> type[Accelerator[Any]]:
    own = ":" in name
    if not own and name not in CLASSES:
        raise InputError(f"{place}: there is no class of accelerators {name!r}{did_you_mean(name, CLASSES)}")
    module, _, attribute = (name if own else f"backends.accelerators.{CLASSES[name]}").partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # a user's module may fail in any way
        raise InputError(f"{place}: class {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Accelerator)):
        raise InputError(f"{place}: class {name!r} is no backends.accelerators.accelerator.Accelerator")
    return found


def _path(name: str, folder: str, what: str, beside: Path = Path()) -> Path:
    """A file by its name among those that are shipped, or by its path."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return beside / name
    path = _folder(folder) / f"{name}.yaml"
    if not path.is_file():
        known = sorted(each.stem for each in _folder(folder).glob("*.yaml"))
        raise InputError(f"there is no {what} {name!r}{did_you_mean(name, known)}; a path ends in .yaml")
    return path


def _folder(name: str) -> Path:
    found = _CHECKOUT / name
    return found if found.is_dir() else _INSTALLED / name
