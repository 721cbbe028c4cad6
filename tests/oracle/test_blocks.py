"""Networks without residual blocks against the whole model with the same branches multiplied by zero."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from capture_nets import randomised
from torch import Tensor, nn
from torch.nn import functional as F

from automl.compression.blocks import block_importance, without_blocks
from automl.compression.importance.base import ImportanceInputs
from automl.models import build_model
from search_spaces.blocks import residual_blocks
from search_spaces.capture import PrunableNetwork
from search_spaces.policy import CompressionPolicy, LayerPolicy


def zeroed(model: nn.Module, modules: Sequence[str], x: Tensor) -> Tensor:
    """Output of the model where these modules, the last of their branches, answer with zeros."""
    handles = [model.get_submodule(name).register_forward_hook(lambda *args: 0.0 * args[-1]) for name in modules]
    try:
        with torch.no_grad():
            return model(x)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("name", "args", "last", "chosen"),
    [
        ("resnet20", {}, "bn2", slice(None)),
        ("resnet20", {"shortcut": "B"}, "bn2", slice(1, 4)),
        ("resnet56", {}, "bn2", slice(0, 25, 3)),
        ("mobilenet_v2", {"width": 0.25}, "project", slice(0, 12, 2)),
    ],
)
def test_removed_equals_zeroed(name: str, args: dict[str, object], last: str, chosen: slice) -> None:
    model = randomised(build_model(name, args, classes=4, input_shape=(3, 8, 8)))
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = PrunableNetwork(model, x, prove=False)
    blocks = residual_blocks(network.graph)[chosen]
    smaller = without_blocks(network.prune({}), blocks)
    with torch.no_grad():
        got, expected, whole = smaller(x), zeroed(model, [f"{block.name}.{last}" for block in blocks], x), model(x)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, whole, rtol=1e-2)


def test_halves_of_transformer_blocks() -> None:
    model = randomised(build_model("vit", {}, classes=4, input_shape=(3, 8, 8)))
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = PrunableNetwork(model, x, prove=False)
    blocks = residual_blocks(network.graph)
    assert [block.name for block in blocks] == [
        name for index in range(4) for name in (f"blocks.{index}.attention", f"blocks.{index}.fc1")
    ]
    chosen = blocks[1:6:2] + blocks[6:7]
    with torch.no_grad():
        expected = zeroed(model, [block.layers[-1] for block in chosen], x)
        smaller = without_blocks(network.prune({}), chosen)
        torch.testing.assert_close(smaller(x), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(expected, model(x), rtol=1e-2)
    counted = network.graph.apply(CompressionPolicy({block.name: LayerPolicy(remove=True) for block in chosen}))
    assert counted.params == sum(parameter.numel() for parameter in smaller.parameters())
    assert counted.macs == PrunableNetwork(smaller, x, prove=False).graph.macs


def test_removed_from_a_pruned_network_equals_zeroed_there() -> None:
    model = randomised(build_model("resnet20", {}, classes=4, input_shape=(3, 8, 8)))
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = PrunableNetwork(model, x, prove=False)
    pruned = network.prune({group.name: np.arange(0, group.width, 3) for group in network.graph.groups})
    blocks = residual_blocks(network.graph)[1:5]
    with torch.no_grad():
        expected = zeroed(pruned, [f"{block.name}.bn2" for block in blocks], x)
        torch.testing.assert_close(without_blocks(pruned, blocks)(x), expected, rtol=1e-4, atol=1e-5)


def test_importance_of_a_block_is_the_loss_with_its_branch_zeroed() -> None:
    model = randomised(build_model("resnet20", {}, classes=4, input_shape=(3, 8, 8)))
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(70, 3, 8, 8, generator=generator), torch.randint(4, (70,), generator=generator)
    network = PrunableNetwork(model, images[:2], prove=False)
    rises = block_importance(ImportanceInputs(network, network.prune({}), images, labels))
    assert list(rises) == [block.name for block in residual_blocks(network.graph)]
    whole = F.cross_entropy(zeroed(model, [], images), labels)
    for name, rise in rises.items():
        expected = F.cross_entropy(zeroed(model, [f"{name}.bn2"], images), labels) - whole
        assert rise == pytest.approx(float(expected), rel=1e-3, abs=1e-5)
    assert len(set(rises.values())) == len(rises)
