"""Channel groups against Torch-Pruning's, on networks where no channel index moves and it is right."""

import warnings

import pytest
import torch
from capture_nets import Concatenated, Flattened, PreActivationResidual, example
from torch import nn

from automl.models import build_model
from search_spaces.capture import capture_graph

torch_pruning = pytest.importorskip("torch_pruning", reason="torch-pruning is not installed")


def peers_groups(model: nn.Module, x: torch.Tensor) -> set[frozenset[str]]:
    """Sets of layers whose output channels Torch-Pruning cuts together."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)
        layers = {module: name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
        found = set()
        for module, name in layers.items():
            depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
            prune = (
                torch_pruning.prune_conv_out_channels
                if isinstance(module, nn.Conv2d)
                else (torch_pruning.prune_linear_out_channels)
            )
            if depthwise:
                continue
            together = {name}
            for dependency, _ in graph.get_pruning_group(module, prune, idxs=[0]):
                target, handler = dependency.target.module, dependency.handler
                if target in layers and "out_channels" in handler.__name__ and getattr(target, "groups", 1) == 1:
                    together.add(layers[target])
            found.add(frozenset(together))
    return found


@pytest.mark.parametrize("name", ["vgg16", "plain20", "mobilenet_v1", "mobilenet_v2", "squeezenet"])
def test_zoo(name: str) -> None:
    model = build_model(name, {}, classes=10, input_shape=(3, 32, 32))
    compare(model, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("net", [PreActivationResidual, Concatenated, Flattened], ids=lambda net: net.__name__)
def test_small_networks(net: type[nn.Module]) -> None:
    compare(net(), example(net()))


def compare(model: nn.Module, x: torch.Tensor) -> None:
    model = model.eval()
    graph = capture_graph(model, x)
    ours = {frozenset(group.producers) for group in graph.groups}
    ours |= {frozenset({refusal.name}) for refusal in graph.refusals}  # it knows no outputs that have to stay
    assert ours == peers_groups(model, x)
