"""Counts of recurrent networks and transformers against closed forms and published figures; torch counts no LSTM."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from automl.models import build_model
from search_spaces.capture import PrunableNetwork
from search_spaces.graph import ModelGraph

GATES = {"lstm": 4, "gru": 3}


def graph_of(model: torch.nn.Module, shape: tuple[int, ...]) -> ModelGraph:
    return PrunableNetwork(model, torch.zeros(1, *shape), prove=False).graph


def cell(gates: int, reads: int, hidden: int) -> tuple[int, int]:
    """(weights, parameters) of one direction of one layer: every gate reads the row and the state, with two biases
    (torch's documentation of nn.LSTM and nn.GRU)."""
    weights = gates * hidden * (reads + hidden)
    return weights, weights + 2 * gates * hidden


@pytest.mark.parametrize("hidden", [40, 7])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_rows(name: str, layers: int, bidirectional: bool, hidden: int) -> None:
    """A network of 40 hidden units, and what arithmetic says of the one that keeps so many of them."""
    shape, classes = (3, 9, 8), 5
    args: dict[str, Any] = {"hidden": 40, "layers": layers, "bidirectional": bidirectional}
    graph = graph_of(build_model(name, args, classes=classes, input_shape=shape), shape)
    assert [group.width for group in graph.groups] == [40]
    graph = graph.with_kept([hidden])
    directions = 2 if bidirectional else 1
    weights = params = 0
    for layer in range(layers):
        more = cell(GATES[name], 24 if layer == 0 else directions * hidden, hidden)
        weights, params = weights + directions * more[0], params + directions * more[1]
    classifier = directions * hidden * classes
    assert graph.macs == 9 * weights + classifier
    assert graph.params == params + classifier + classes


def test_char_lm() -> None:
    graph = graph_of(build_model("char_lm", {}, classes=30, input_shape=(1, 32, 30)), (1, 32, 30))
    (first, all_first), (second, all_second) = cell(4, 32, 128), cell(4, 128, 128)
    assert graph.macs == 32 * (30 * 32 + first + second) + 128 * 30
    assert graph.params == 30 * 32 + all_first + all_second + 128 * 30 + 30


@pytest.mark.parametrize(("heads", "hidden"), [(6, 192), (2, 50)])
def test_vit(heads: int, hidden: int) -> None:
    """Per token and block 4 d^2 weights of attention (with all heads) and 2 d h of the MLP."""
    width, tokens, patch = 96, 64, 3 * 4 * 4
    graph = graph_of(build_model("vit", {}, classes=10, input_shape=(3, 32, 32)), (3, 32, 32))
    graph = graph.with_kept([heads if group.name.endswith("qkv") else hidden for group in graph.groups])
    attention, mlp = 4 * width * 16 * heads, 2 * width * hidden
    assert graph.macs == tokens * (patch * width + 4 * (attention + mlp)) + width * 10
    biases = 3 * 16 * heads + width + hidden + width
    norms, positions = (2 * 4 + 1) * 2 * width, tokens * width
    assert graph.params == (
        patch * width + width + positions + 4 * (attention + mlp + biases) + norms + width * 10 + 10
    )


@pytest.mark.parametrize(
    ("name", "params", "gmacs"),
    [
        # Touvron et al. 2021 ("DeiT"), table 5: 5 M parameters; its 1.3 G count attention's two products, too
        ("vit_tiny_patch16_224", 5_717_416, 1.075),
        # Liu et al. 2022 ("A ConvNet for the 2020s"), table 1: 29 M parameters, 4.5 G
        pytest.param("convnext_tiny", 28_589_128, 4.456, marks=pytest.mark.slow),
    ],
)
def test_published(name: str, params: int, gmacs: float, vision: Callable[[str], ModuleType]) -> None:
    graph = graph_of(vision("timm").create_model(name), (3, 224, 224))
    assert graph.params == params
    assert round(graph.macs / 1e9, 3) == pytest.approx(gmacs, abs=1e-3)
