"""Every network of the zoo, and well-known ones of torchvision and timm: pruned to random keep ratios, the output is
that of the network with those channels zeroed, and the arithmetic agrees with what torch counts."""

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from capture_nets import counted_macs, random_units, randomised, relative_error, zeroed
from torch import Tensor, nn

from automl.models import build_model, model_names
from search_spaces.capture import PrunableNetwork

TOLERANCE = 1e-4
QUICK = {"lenet300_100", "lenet5", "alexnet_cifar", "vgg11", "vgg16", "plain20", "resnet20", "mobilenet_v1"}
QUICK |= {"mobilenet_v2", "ofa_small", "squeezenet", "shufflenet_v2", "densenet40", "vit", "lstm", "gru", "char_lm"}


def check(model: nn.Module, x: Tensor, *, rounds: int = 2) -> PrunableNetwork:
    model = randomised(model)
    network = PrunableNetwork(model, x)
    graph = network.graph
    rng = np.random.default_rng(0)
    names = set(model.state_dict())
    with torch.no_grad():
        assert relative_error(network.prune({})(x), model(x)) < TOLERANCE
        for _ in range(rounds):
            kept = random_units(network, rng)
            policy = graph.policy([len(kept[group.name]) for group in graph.groups])
            pruned, twin = network.prune(kept), zeroed(network, model, kept)(x)
            assert relative_error(pruned(x), twin) < TOLERANCE
            assert relative_error(twin, model(x)) > 0.01
            smaller = graph.apply(policy)
            assert smaller.macs == counted_macs(pruned, x)
            assert smaller.params == sum(parameter.numel() for parameter in pruned.parameters())
            assert set(pruned.state_dict()) <= names
    return network


def image(size: int, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name, _ in model_names()
        if ":" not in name
    ],
)
def test_zoo(name: str) -> None:
    shape = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    network = check(build_model(name, {}, classes=10, input_shape=shape), image(shape[1], shape[0]))
    refused = [refusal.name for refusal in network.graph.refusals if "only one unit" not in refusal.reason]
    assert len(refused) == 1  # the classifier


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("resnet18", 12),
        pytest.param("mobilenet_v2", 25, marks=pytest.mark.slow),
        pytest.param("googlenet", 57, marks=pytest.mark.slow),
        ("shufflenet_v2_x1_0", 86),
        pytest.param("resnet50", 37, marks=pytest.mark.slow),
        pytest.param("vgg16", 15, marks=pytest.mark.slow),
        pytest.param("densenet121", 120, marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", 37, marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", 27, marks=pytest.mark.slow),
        pytest.param("regnet_y_400mf", 53, marks=pytest.mark.slow),
        pytest.param("inception_v3", 94, marks=pytest.mark.slow),
    ],
)
def test_torchvision(name: str, groups: int, vision: Callable[[str], ModuleType]) -> None:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = getattr(vision("torchvision.models"), name)(weights=None, **options)
    network = check(model, image(96 if name == "inception_v3" else 64))
    assert len(network.graph.groups) == groups


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("efficientnet_b0", 40),
        pytest.param("tf_efficientnet_b0", 40, marks=pytest.mark.slow),
        pytest.param("ghostnet_100", 31, marks=pytest.mark.slow),
        pytest.param("hrnet_w18_small", 45, marks=pytest.mark.slow),
        pytest.param("res2net50_26w_4s", 93, marks=pytest.mark.slow),
        pytest.param("mixnet_s", 72, marks=pytest.mark.slow),
    ],
)
def test_timm(name: str, groups: int, vision: Callable[[str], ModuleType]) -> None:
    network = check(vision("timm").create_model(name), image(64))
    assert len(network.graph.groups) == groups


@pytest.mark.parametrize(
    ("name", "options", "heads", "widths"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2}, 2, 2),
        ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40)}, 0, 4),
        pytest.param("vit_tiny_patch16_224", {"img_size": 64}, 12, 12, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", {}, 0, 18, marks=pytest.mark.slow),
    ],
)
def test_heads_and_widths(
    name: str, options: dict[str, object], heads: int, widths: int, vision: Callable[[str], ModuleType]
) -> None:
    """Heads and the hidden widths of MLPs are prunable; the residual stream is not, and says why."""
    size = int(str(options.get("img_size", 64)))
    network = check(vision("timm").create_model(name, **options), image(size), rounds=1)
    names = [group.name for group in network.graph.groups]
    assert sum(name.endswith("attn.qkv") for name in names) == heads
    assert sum(name.endswith("mlp.fc1") for name in names) == widths
    assert len(names) == heads + widths
    reasons = [refusal.reason for refusal in network.graph.refusals]
    assert all("layer norm" in reason or reason == "they are the network's output" for reason in reasons)
    if heads:
        group = next(group for group in network.graph.groups if group.name.endswith("attn.qkv"))
        assert group.width == 3
        fewer = network.prune({group.name: [0, 2]})
        attention = fewer.get_submodule(group.name.removesuffix(".qkv"))
        assert (attention.qkv.out_features, attention.proj.in_features) == (2 * 3 * 64, 2 * 64)  # type: ignore[union-attr]


@pytest.mark.slow
def test_transformer_of_windows(vision: Callable[[str], ModuleType]) -> None:
    """Heads where a map is one window; where there are more, their number multiplies the batch, and heads stay."""
    model = randomised(vision("torchvision.models").swin_t(weights=None))
    network = PrunableNetwork(model, image(64))
    blocks = [(stage, block) for stage, count in ((1, 2), (3, 2), (5, 6), (7, 2)) for block in range(count)]
    names = {f"features.{stage}.{block}.mlp.0" for stage, block in blocks}
    names |= {f"features.{stage}.{block}.attn.qkv" for stage, block in blocks if stage >= 5}
    assert {group.name for group in network.graph.groups} == names
    kept = random_units(network, np.random.default_rng(0))
    with torch.no_grad():
        assert relative_error(network.prune(kept)(image(64)), zeroed(network, model, kept)(image(64))) < TOLERANCE
