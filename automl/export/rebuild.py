"""A network from what describes it (`architecture.json`) and its weights: no code is read from the export.

build_model(name, args) -> PrunableNetwork -> prune(units) -> the layers' other treatments -> model.safetensors
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from automl.compression.saving import from_bytes
from automl.compression.treatments import Compressed
from automl.export.manifest import ARCHITECTURE, WEIGHTS, Document, Size, open_regular, read_json_file
from automl.models import build_model
from automl.plugins import EXTERNAL, is_reference
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.policy import layer_from_json

# Arguments that would fetch or read weights, which the export brings itself, or ask a library for another model.
NEEDLESS_ARGS = frozenset(
    {"name", "model_name", "weights", "weights_backbone", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}
    | {"checkpoint_path", "cache_dir"}
)
Width = Annotated[int, Field(gt=0)]


class Architecture(Document):
    """What rebuilds a network: the model's reference and the units that each pruned channel group keeps.

    Attributes:
        model: registry name, "torchvision:NAME", "timm:NAME" or the user's own "package.module:attribute".
        args: arguments of the model.
        classes: number of classes.
        input_shape: of one image of the data set (C, H, W).
        resolution: height and width that images are brought to before they go in; None leaves them as they are.
        units: channel group -> indices of the units that stay, rising; groups not named stay whole.
        layers: layer -> what was done to it beside pruning, as in a policy.
    """

    file_name = ARCHITECTURE

    model: str
    args: dict[str, Any] = Field(default_factory=dict)
    classes: Width
    input_shape: Annotated[list[Width], Field(min_length=3, max_length=3)]
    resolution: Size | None = None
    units: dict[str, list[Annotated[int, Field(ge=0)]]] = Field(default_factory=dict)
    layers: dict[str, dict[str, Any]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Rebuilt:
    """A rebuilt network, in eval mode, with the uncompressed one it was cut from."""

    compressed: Compressed
    network: PrunableNetwork
    architecture: Architecture


def is_code(reference: str) -> bool:
    """Whether a model, data or metric reference is code of the user's, "package.module:attribute"."""
    return is_reference(reference) and reference.partition(":")[0] not in EXTERNAL


def allow(reference: str, what: str, allow_code: bool) -> None:
    """Refuse to run a user's code that a file names, unless the user said so."""
    if is_code(reference) and not allow_code:
        raise InputError(
            f"{what} is {reference!r}, code that would be imported and run; pass --allow-code if you trust it"
        )


def rebuild(directory: str | Path, *, allow_code: bool = False) -> nn.Module:
    """The exported network as a plain module in eval mode.

    Args:
        directory: holds `architecture.json` and `model.safetensors`.
        allow_code: whether a model that is "package.module:attribute" may be imported.

    Raises:
        InputError: a file is missing or damaged, the architecture cannot be built, or the weights are not its own.
    """
    return rebuild_network(Path(directory), allow_code=allow_code).compressed.module


def rebuild_network(directory: Path, *, allow_code: bool = False) -> Rebuilt:
    """See `rebuild`; also gives the network it was cut from."""
    architecture = Architecture.from_json(read_json_file(directory, ARCHITECTURE))
    allow(architecture.model, "the exported model", allow_code)
    channels, height, width = architecture.input_shape
    args = architecture.args
    if architecture.model.partition(":")[0] in EXTERNAL:
        args = {name: value for name, value in args.items() if name not in NEEDLESS_ARGS}
    model = build_model(architecture.model, args, classes=architecture.classes, input_shape=(channels, height, width))
    size, image = architecture.resolution, torch.zeros(1, channels, height, width)
    network = PrunableNetwork(model.eval(), image, resolutions=() if size is None else (size,))
    known = {group.name: group.width for group in network.graph.groups}
    for name, kept in architecture.units.items():
        _check_units(name, kept, known)
    layers = {name: layer_from_json(name, entry) for name, entry in architecture.layers.items()}
    units = {name: np.array(kept) for name, kept in architecture.units.items()}
    with open_regular(directory, WEIGHTS) as file:
        content = file.read()
    compressed = from_bytes(content, network.at(size), units, layers, WEIGHTS)
    return Rebuilt(compressed, network, architecture)


def _check_units(name: str, kept: list[int], known: dict[str, int]) -> None:
    if name not in known:
        raise InputError(f"{ARCHITECTURE} prunes the channel group {name!r}, which the model does not have")
    if not kept or kept[-1] >= known[name] or any(a >= b for a, b in pairwise(kept)):
        raise InputError(
            f"{ARCHITECTURE} keeps units {kept[:5]}... of {name!r}; give rising indices below {known[name]}"
        )
