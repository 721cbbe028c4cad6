"""The embedded data sets, loaders for the standard ones, and how a user brings one.

A user's own data set is "package.module:attribute": a callable that returns a `DataBundle` (its keyword arguments are
those of the config), or a `DataBundle`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from automl.data.bundle import AugmentsItems, DataBundle
from automl.data.cifar import cifar10, cifar100
from automl.data.digits import digits
from automl.data.glyphs import glyphs
from automl.data.image_folder import image_folder
from automl.data.mnist import fashion_mnist, mnist
from automl.data.text import logbook
from automl.plugins import call_builder, call_plugin, is_reference, resolve
from search_spaces.errors import InputError, did_you_mean

_DATA: dict[str, Callable[..., DataBundle]] = {
    builder.__name__: builder
    for builder in (digits, glyphs, logbook, cifar10, cifar100, mnist, fashion_mnist, image_folder)
}


def load_data(name: str, args: Mapping[str, Any] = {}) -> DataBundle:
    """A data set by name, or a user's own by "package.module:attribute".

    Raises:
        InputError: there is no such data set or argument, or its files are missing or damaged.
    """
    if not is_reference(name):
        if name not in _DATA:
            raise InputError(f"unknown data set {name!r}{did_you_mean(name, _DATA)}")
        return call_builder(_DATA[name], args, f"data set {name!r}")
    found = resolve(name)
    if not isinstance(found, DataBundle) and callable(found):
        found = call_plugin(found, args, f"data set {name!r}")
    if not isinstance(found, DataBundle):
        raise InputError(f"a data set is an automl.data.DataBundle, {name!r} gave a {type(found).__name__}")
    return found


def data_names() -> list[tuple[str, str]]:
    """(name, one-line description) of every data set that Trimtab knows by name."""
    return [(name, (builder.__doc__ or "").strip().splitlines()[0]) for name, builder in _DATA.items()]


__all__ = ["AugmentsItems", "DataBundle", "data_names", "load_data"]
