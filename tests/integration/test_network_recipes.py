"""What a policy's network is made of, by arithmetic alone, against what is compiled of the network really pruned."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from automl.compression import CompressionOptions, Compressor
from automl.models import build_model
from backends.table_backend import TableBackend, asked_of
from backends.torch_operators import TorchRecipes
from backends.torch_reference import reference_output
from backends.tvm import compile_module
from backends.tvm.compiled import lower_module
from backends.tvm.network_recipes import NetworkRecipes
from backends.tvm.target import cpu_for
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import PrunableNetwork
from search_spaces.channel_space import ChannelSpace

ZOO = ("lenet5", "resnet20", "mobilenet_v1", "squeezenet", "shufflenet_v2", "vit")
SLOW_ZOO = ("lenet300_100", "alexnet_cifar", "vgg11", "resnet56", "mobilenet_v2", "densenet40", "ofa_small")
SLOW_ZOO += ("ofa_mobilenet_v3", "ofa_resnet50")
VISION = ("efficientnet_b0", "mobilenet_v3_small", "googlenet", "densenet121", "resnext50_32x4d", "convnext_tiny")


def check(model, example, policies=2):
    """Random widths, the units that stay chosen at random: the recipes are those of the pruned network."""
    network = PrunableNetwork(model, example, prove=False)
    graph, cpu = network.graph, cpu_for()
    recipes, rng = NetworkRecipes(graph, cpu), np.random.default_rng(0)
    space = ChannelSpace.build(graph, round_to=1)
    assert kinds(recipes, graph.kept) == sorted(lower_module(model, example, cpu).recipes)
    for _ in range(policies):
        kept = space.sample(rng)
        chosen = {
            group.name: np.sort(rng.choice(group.width, units, replace=False))
            for group, units in zip(graph.groups, kept, strict=True)
        }
        assert kinds(recipes, kept) == sorted(lower_module(network.prune(chosen), example, cpu).recipes)


def kinds(recipes, kept):
    return sorted(kernel.recipe for kernel in recipes.recipes(kept))


@pytest.mark.parametrize("name", ZOO)
def test_recipes_are_those_of_the_pruned_network(name):
    shape = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    check(build_model(name, {}, classes=10, input_shape=shape), torch.randn(1, *shape))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_ZOO)
def test_recipes_of_the_whole_zoo(name):
    shape = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    check(build_model(name, {}, classes=10, input_shape=shape), torch.randn(1, *shape))


@pytest.mark.slow
@pytest.mark.parametrize("name", VISION)
def test_recipes_of_other_peoples_networks(name, vision):
    options = {"init_weights": False} if name == "googlenet" else {}
    model = getattr(vision("torchvision.models"), name)(**options)
    model.aux1 = model.aux2 = None
    check(model.eval(), torch.randn(1, 3, 96, 96), policies=1)


class Unpriced:
    def latencies(self, recipes):
        raise AssertionError("nothing is to be priced")


@pytest.mark.parametrize("name", ["ofa_small", "resnet20"])
@pytest.mark.parametrize("engine", ["tvm", "onnxruntime"])
def test_recipes_without_blocks_and_rims_of_kernels(name, engine):
    """At another resolution, too."""
    args = {"shortcut": "B"} if name == "resnet20" else {}
    model, example = build_model(name, args, classes=10, input_shape=(1, 16, 16)), torch.randn(1, 1, 16, 16)
    network = PrunableNetwork(model, example, prove=False, resolutions=[(12, 12)])
    options = {"kernel": [1] if name == "resnet20" else [3], "depth": 0, "resolution": [12]}
    space = build_space(network.graph, SpaceOptions(keep=[0.5, 0.75], **options))
    compressor = Compressor(network, None, CompressionOptions(reconstruct=False))
    backend, generator = TableBackend(engine, network.graph, Unpriced()), np.random.default_rng(0)
    for point in (space.least, *(space.sample(generator) for _ in range(3))):
        policy = space.decode(point)
        graph = network.graph.apply(policy)
        assert graph.removed
        found = sorted(recipe.recipe for recipe in backend.recipes(*asked_of(graph)))
        pruned, smaller = compressor.apply(policy), torch.randn(1, *graph.input_shape)
        if engine == "tvm":
            assert found == sorted(lower_module(pruned, smaller, cpu_for()).recipes)
        else:
            again = PrunableNetwork(pruned, smaller, prove=False).graph
            assert found == sorted(recipe.recipe for recipe in TorchRecipes(again).recipes(again.kept))


def test_known_policies_are_priced_from_memory():
    model = build_model("resnet20", {}, classes=10, input_shape=(3, 32, 32))
    graph = PrunableNetwork(model, torch.randn(1, 3, 32, 32), prove=False).graph
    recipes = NetworkRecipes(graph, cpu_for())
    first = recipes.parts(graph.kept)
    fewer = [units // 2 for units in graph.kept]
    assert recipes.parts(fewer) is not first
    again = recipes.parts(graph.kept)
    assert all(one is other for one, other in zip(first, again, strict=True))


class Mixed(nn.Module):
    """What zoos lack: one-dimensional and grouped convolutions, layer norms, attention, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.grouped = nn.Conv2d(24, 36, 3, padding=1, groups=3)
        self.norm = nn.LayerNorm(36)
        self.qkv = nn.Linear(36, 108)
        self.out = nn.Linear(36, 24)
        self.line = nn.Conv1d(24, 20, 3, padding=1)
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = F.hardswish(self.grouped(F.gelu(self.stem(x))))
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        n, t, _ = tokens.shape
        q, k, v = self.qkv(tokens).reshape(n, t, 3, 3, 12).permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, 36)
        return self.head(self.line(self.out(tokens + seen).transpose(1, 2)).mean(2))


@pytest.mark.parametrize("batch", [1, 3])
def test_views_and_tokens_of_any_batch(batch):
    torch.manual_seed(0)
    model = Mixed().eval()
    x = torch.randn(batch, 3, 6, 5)
    compiled = compile_module(model, x)
    assert compiled.fallbacks == {}
    expected = reference_output(model, x)
    assert np.abs(compiled.run(x.numpy()) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_heads_and_widths_are_planned_as_they_are_compiled():
    torch.manual_seed(0)
    check(Mixed().eval(), torch.randn(1, 3, 6, 5))


@pytest.mark.parametrize("patch", [4])
def test_a_vision_transformer_has_no_fallback(patch, vision):
    torch.manual_seed(0)
    model = vision("torchvision.models").VisionTransformer(16, patch, 2, 4, 48, 96).eval()
    nn.init.normal_(model.heads.head.weight)
    for x in (torch.randn(1, 3, 16, 16), torch.randn(2, 3, 16, 16)):
        compiled = compile_module(copy.deepcopy(model), x)
        expected = reference_output(model, x)
        assert compiled.fallbacks == {}
        assert np.abs(compiled.run(x.numpy()) - expected).max() <= 1e-5 * np.abs(expected).max()
