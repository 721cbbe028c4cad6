"""Networks of torchvision and timm, where they are installed."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

from automl.plugins import call_plugin, one_line
from search_spaces.errors import InputError, did_you_mean

# These return a tuple in training mode unless their auxiliary classifiers are left out, and warn unless told how to
# initialise.
_TORCHVISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}


def build_external(library: str, entry: str, args: Mapping[str, Any], *, classes: int, channels: int) -> nn.Module:
    """Model `entry` of "torchvision" or "timm" with random weights (unless `args` ask for others).

    Raises:
        InputError: the library is not installed, has no such model, or the model refuses the arguments.
    """
    what = f"model '{library}:{entry}'"
    model: nn.Module
    if library == "torchvision":
        if channels != 3:
            raise InputError(
                f"{what} takes 3 input channels, the data has {channels}; choose another model or data set"
            )
        models = _installed("torchvision.models", what)
        known = models.list_models(module=models)
        if entry not in known:
            raise InputError(f"unknown {what}{_close(entry, known)}")
        defaults = {"weights": None, "num_classes": classes, **_TORCHVISION_DEFAULTS.get(entry, {})}
        model = call_plugin(models.get_model, {"name": entry, **defaults, **args}, what)
        return model
    timm = _installed("timm", what)
    if not timm.is_model(entry):
        raise InputError(f"unknown {what}{_close(entry, timm.list_models())}")
    defaults = {"pretrained": False, "num_classes": classes, "in_chans": channels}
    model = call_plugin(timm.create_model, {"model_name": entry, **defaults, **args}, what)
    return model


def _installed(module: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"{what} needs {module.partition('.')[0]}: pip install trimtab[vision]") from error
    except Exception as error:  # a build for another torch fails in many ways while it is imported
        raise InputError(
            f"{what} needs a {module.partition('.')[0]} built for torch {torch.__version__}, the one installed fails "
            f"({one_line(error)}): pip install trimtab[vision]"
        ) from error


def _close(entry: str, known: list[str]) -> str:
    hint = did_you_mean(entry, known)
    return hint if "did you mean" in hint else ""  # else it would list a thousand names
