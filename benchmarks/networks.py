"""The networks that benchmarks compare engines on, and what their latency over ONNX Runtime's may be."""

import importlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from automl.models import build_model
from search_spaces.capture import PrunableNetwork

_TORCHVISION = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Network:
    """A network with random weights.

    Attributes:
        model: its name in `build_model`.
        size: rows and columns of its input, three channels deep.
        limit: of its latency over ONNX Runtime's.
    """

    model: str
    size: int
    limit: float

    def build(self) -> tuple[nn.Module, torch.Tensor]:
        """The network in evaluation mode and an input; its batch norms have statistics as if it had been trained."""
        if ":" in self.model:
            _import_vision()
        shape = (3, self.size, self.size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's, about how some networks are initialised
            module = build_model(self.model, classes=10 if self.size < 64 else 1000, input_shape=shape)
        generator = torch.Generator().manual_seed(0)
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_var is not None:
                assert part.running_mean is not None
                part.running_mean.normal_(0, 0.1, generator=generator)
                part.running_var.uniform_(0.5, 1.5, generator=generator)
        return module, torch.randn(1, *shape, generator=generator)


NETWORKS = {
    "resnet20": Network("resnet20", 32, 0.9),
    "resnet56": Network("resnet56", 32, 0.9),
    "mobilenet_v2": Network("mobilenet_v2", 32, 0.9),
    "vgg16": Network("vgg16", 32, 1.0),
    "mobilenet_v1": Network("mobilenet_v1", 224, 1.0),
    "resnet18": Network("torchvision:resnet18", 224, 1.0),
    "resnet50": Network("torchvision:resnet50", 224, 1.2),
    "googlenet": Network("torchvision:googlenet", 224, 1.2),
    "densenet121": Network("torchvision:densenet121", 224, 1.2),
    "shufflenet_v2": Network("torchvision:shufflenet_v2_x1_0", 224, 1.2),
    "squeezenet": Network("torchvision:squeezenet1_1", 224, 1.2),
    "efficientnet_b0": Network("torchvision:efficientnet_b0", 224, 1.2),
    "convnext_tiny": Network("torchvision:convnext_tiny", 224, 1.2),
    "vit_tiny": Network("timm:vit_tiny_patch16_224", 224, 1.2),
}


def pruned(network: PrunableNetwork, kept: tuple[int, ...]) -> nn.Module:
    """The network where group i keeps its first kept[i] units."""
    groups = network.graph.groups
    return network.prune({group.name: np.arange(count) for group, count in zip(groups, kept, strict=True)})


def variants(module: nn.Module, example: torch.Tensor) -> Iterator[tuple[str, nn.Module]]:
    """The network; then, where it has channel groups, pruned to random channel counts, which no vector divides."""
    yield "dense", module
    network = PrunableNetwork(module, example, prove=False)
    if kept := odd_counts(network):
        yield "pruned", pruned(network, kept)


def odd_counts(network: PrunableNetwork) -> tuple[int, ...]:
    """Random numbers of units, 30 to 95 % of each group."""
    rng = np.random.default_rng(0)
    return tuple(max(1, round(rng.uniform(0.3, 0.95) * group.width)) for group in network.graph.groups)


def _import_vision() -> None:
    """Imports torchvision, even one built for a GPU beside a torch for the CPU: networks need none of its operators."""
    for _ in range(30):
        try:
            importlib.import_module("torchvision.models")
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            _TORCHVISION.define(f"{missing[1]}(Tensor x) -> Tensor")  # type: ignore[no-untyped-call]
        else:
            return
