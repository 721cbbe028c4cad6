"""A supernet as a file: weights, order of channels, transforms of kernels, and the space that it was trained for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from automl.compression.elastic import Elastic
from automl.supernet.network import Supernet, elastic_space, transform_sizes
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.space import SearchSpace
from search_spaces.versions import require_version

FILE = "supernet.safetensors"
FORMAT = "trimtab supernet"
VERSION = 1

_WEIGHT, _ORDER, _TRANSFORM = "weights:", "order:", "transforms:"


def to_bytes(supernet: Supernet) -> bytes:
    """The supernet as a safetensors file, which `load_supernet` reads."""
    elastic = supernet.elastic
    tensors: dict[str, Tensor] = {f"{_WEIGHT}{name}": value for name, value in supernet.weights.items()}
    tensors |= {f"{_ORDER}{name}": torch.from_numpy(units) for name, units in elastic.order.items()}
    tensors |= {f"{_TRANSFORM}{name}": value for name, value in elastic.transforms.items()}
    trained = [[each.dimension, each.targets, each.choices] for each in supernet.space.decisions]
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "model": supernet.graph.digest,
        "space": json.dumps(trained),
        "history": json.dumps(supernet.history),
    }
    content: bytes = save({name: value.contiguous() for name, value in tensors.items()}, metadata)
    return content


def checkpoint_file(path: Path) -> Path:
    """The file that a config's checkpoint means: itself, or the one in the directory of `trimtab supernet`."""
    return path / FILE if path.is_dir() else path


def load_supernet(path: Path, network: PrunableNetwork, space: SearchSpace) -> Supernet:
    """The supernet of a file.

    Args:
        path: of the file.
        network: as captured; its weights do not matter.
        space: what is decided. It may leave out what the supernet was trained for, and decide on bits, zeros and ranks
            beside it.

    Raises:
        InputError: the file is missing or damaged, or is a supernet of another network or space.
    """
    metadata, tensors = _read(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"supernet {path} is no supernet but another safetensors file; `trimtab supernet` writes one")
    said = metadata.get("version", "")
    require_version(f"supernet {path}", int(said) if said.isdecimal() else said, [VERSION], "train it anew")
    if metadata.get("model") != network.graph.digest:
        raise InputError(
            f"supernet {path} is of another network (digest {str(metadata.get('model'))[:12]}, the config's has "
            f"{network.graph.digest[:12]}); give the config the model, its arguments and the data that it was trained "
            "with"
        )
    _check_space(path, metadata, space)
    weights, order, transforms = (_part(tensors, prefix) for prefix in (_WEIGHT, _ORDER, _TRANSFORM))
    whole = network.prune({}).state_dict()
    _check_shapes(path, weights, {name: tuple(value.shape) for name, value in whole.items()})
    _check_shapes(path, order, {group.name: (group.width,) for group in network.graph.groups})
    _check_shapes(path, transforms, {name: (size, size) for name, size in transform_sizes(space).items()})
    for group in network.graph.groups:
        if sorted(order[group.name].tolist()) != list(range(group.width)):
            raise InputError(f"supernet {path} is damaged: the order of {group.name!r} is none of its units")
    elastic = Elastic({name: units.long().numpy() for name, units in order.items()}, transforms)
    supernet = Supernet(network.holding(weights), space, elastic)
    supernet.history = _history(metadata)
    return supernet.eval()


def _history(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """Records of the training; nothing depends on them, so damaged ones are none."""
    try:
        found = json.loads(metadata.get("history", "[]"))
    except ValueError:
        return []
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _read(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise InputError(f"supernet {path} is not there; `trimtab supernet` trains one")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"supernet {path} cannot be read, it is damaged or no safetensors file ({reason})") from error


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _check_shapes(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in wanted.items():
        if name not in found or tuple(found[name].shape) != shape:
            got = f"it is {list(found[name].shape)}" if name in found else "it is missing"
            raise InputError(f"supernet {path} is damaged: {name!r} is to be {list(shape)}, {got}")


def _check_space(path: Path, metadata: Mapping[str, str], space: SearchSpace) -> None:
    """InputError where a decision has choices that the supernet was not trained for."""
    try:
        trained: dict[Any, list[Any]] = {
            (dimension, tuple(targets)): choices for dimension, targets, choices in json.loads(metadata["space"])
        }
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise InputError(f"supernet {path} is damaged: it does not say which space it was trained for") from error
    for decision in elastic_space(space).decisions:
        known = trained.get((decision.dimension, decision.targets), [])
        foreign = [choice for choice in json.loads(json.dumps(decision.choices)) if choice not in known]
        if foreign:
            has = f"only {', '.join(map(str, known))}" if known else "nothing of it"
            raise InputError(
                f"supernet {path} is of another space: {decision.name} may be {foreign[0]} here, the supernet was "
                f"trained for {has}; leave that out of the config's space, or train a supernet for it"
            )
