"""The embedded zoo of networks, and how a user brings one.

A user's own is "package.module:attribute": an `nn.Module`, or a callable that returns one. It gets the arguments of
the config, and `classes` and `input_shape` where its signature names them.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from automl.models import (
    alexnet,
    densenet,
    lenet,
    mobilenet,
    once_for_all,
    recurrent,
    resnet,
    shufflenet,
    squeezenet,
    vgg,
    vit,
)
from automl.models.external import build_external
from automl.plugins import EXTERNAL, call_builder, call_plugin, is_reference, resolve
from search_spaces.errors import InputError, did_you_mean

_MODELS: dict[str, Callable[..., nn.Module]] = {
    builder.__name__: builder
    for builder in (
        lenet.lenet300_100,
        lenet.lenet5,
        alexnet.alexnet_cifar,
        vgg.vgg11,
        vgg.vgg16,
        resnet.plain20,
        resnet.resnet20,
        resnet.resnet32,
        resnet.resnet44,
        resnet.resnet56,
        resnet.resnet110,
        mobilenet.mobilenet_v1,
        mobilenet.mobilenet_v2,
        once_for_all.ofa_mobilenet_v3,
        once_for_all.ofa_small,
        once_for_all.ofa_resnet50,
        once_for_all.ofa_resnet_small,
        squeezenet.squeezenet,
        shufflenet.shufflenet_v2,
        densenet.densenet40,
        vit.vit,
        recurrent.lstm,
        recurrent.gru,
        recurrent.char_lm,
    )
}


def build_model(
    name: str,
    args: Mapping[str, Any] = {},
    *,
    classes: int,
    input_shape: tuple[int, int, int],
    seed: int = 0,
) -> nn.Module:
    """A network with freshly initialised weights, in eval mode; torch's own random state is left as it was.

    Args:
        name: of the zoo, "torchvision:NAME", "timm:NAME" or "package.module:attribute".
        args: the builder's own arguments.
        classes: number of classes.
        input_shape: (channels, height, width).
        seed: of the weights.

    Raises:
        InputError: there is no such model or argument, or it does not fit the input.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _build(name, args, classes, input_shape)
    return model.eval()


def _build(name: str, args: Mapping[str, Any], classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    what = f"model {name!r}"
    if not is_reference(name):
        if name not in _MODELS:
            raise InputError(f"unknown model {name!r}{did_you_mean(name, _MODELS)}")
        return call_builder(_MODELS[name], args, what, classes=classes, input_shape=input_shape)
    library, _, entry = name.partition(":")
    if library in EXTERNAL:
        return build_external(library, entry, args, classes=classes, channels=input_shape[0])
    found = resolve(name)
    if isinstance(found, nn.Module):
        if args:
            raise InputError(f"{what} is a module already and takes no arguments, got {sorted(args)}")
        found = copy.deepcopy(found)
    elif callable(found):
        found = call_plugin(found, args, what, classes=classes, input_shape=input_shape)
    if not isinstance(found, nn.Module):
        raise InputError(f"a model is a torch.nn.Module or a callable that returns one, {name!r} gave {found!r:.80}")
    return found


def model_names() -> list[tuple[str, str]]:
    """(name, one-line description) of every model that Trimtab knows by name."""
    return [(name, (builder.__doc__ or "").strip().splitlines()[0]) for name, builder in _MODELS.items()]


__all__ = ["build_model", "model_names"]
