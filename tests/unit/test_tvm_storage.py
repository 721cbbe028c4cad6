"""How values are stored where some layers compute in 8-bit integers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from backends.integers import Formats, LayerIntegers, why_float
from backends.tvm.lowering.grids import Grid
from backends.tvm.lowering.plan import Structure
from backends.tvm.lowering.storage import FLOAT, Storage
from search_spaces.capture import capture_for_compiling
from search_spaces.errors import TrimtabError
from search_spaces.layers import Extent, LayerSpec
from search_spaces.number_formats import NumberFormat

WEIGHT, ACTIVATION = NumberFormat(8), NumberFormat(8, "asymmetric", "tensor")


class Chain(nn.Module):
    """Three convolutions; `between` stands before the last two."""

    def __init__(self, between: Callable[[Any], Any]) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = self.between(self.first(x))
        return self.second(value) + self.third(value)  # type: ignore[no-any-return]


def storage(model: nn.Module, **formats: tuple[NumberFormat | None, NumberFormat | None]) -> tuple[Storage, Structure]:
    graph, _ = capture_for_compiling(model, torch.zeros(1, 4, 8, 8))
    structure = Structure.of(graph)
    return structure.storage.storage(formats), structure


def stored(found: Storage, structure: Structure, layer: str) -> str | None:
    """The grid of the value that the operator of a layer, with all that is fused behind it, gives."""
    fused = next(one for one in structure.fused if one.head.layer == layer)
    return found.grids.get(fused.output.name)


ALL = dict.fromkeys(("first", "second", "third"), (WEIGHT, ACTIVATION))


def test_a_value_that_layers_read_is_stored_in_a_readers_grid() -> None:
    found, structure = storage(Chain(F.relu), **ALL)
    assert found.integer == {"first", "second", "third"}
    assert stored(found, structure, "first") in ("second", "third")
    assert found.unsigned == {"second", "third"}  # the image may be below zero


def test_of_several_grids_the_finest() -> None:
    coarse = (WEIGHT, NumberFormat(4, "asymmetric", "tensor"))
    found, structure = storage(Chain(F.relu), **{**ALL, "second": coarse})
    assert stored(found, structure, "first") == "third"


def test_what_a_float_layer_reads_stays_float() -> None:
    found, structure = storage(Chain(F.relu), first=ALL["first"], second=ALL["second"])
    assert stored(found, structure, "first") is None
    assert found.unsigned == {"second"}


def test_codes_pass_through_a_pool_but_not_through_a_sigmoid() -> None:
    pooled, structure = storage(Chain(lambda x: F.max_pool2d(F.relu(x), 2)), **ALL)
    assert stored(pooled, structure, "first") in ("second", "third")
    assert pooled.unsigned == {"second", "third"}
    averaged, structure = storage(Chain(lambda x: F.avg_pool2d(x, 2)), **ALL)
    assert stored(averaged, structure, "first") is None
    pool = next(one for one in structure.fused if one.head.kind == "avg_pool")
    assert averaged.grids[pool.output.name] in ("second", "third")  # quantised once, for both


class Block(Chain):
    """A residual sum between the first layer and the last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = F.relu(self.first(x))
        return self.third(F.relu(self.second(value) + value))  # type: ignore[no-any-return]


def test_a_residual_is_read_in_whatever_grid_it_is() -> None:
    found, structure = storage(Block(F.relu), **ALL)
    assert stored(found, structure, "first") == "second"
    assert stored(found, structure, "second") == "third"
    assert stored(found, structure, "third") is None  # the network's output


def test_a_residual_is_not_read_in_a_coarse_grid() -> None:
    found, structure = storage(Block(F.relu), **{**ALL, "second": (WEIGHT, NumberFormat(7, "asymmetric", "tensor"))})
    assert stored(found, structure, "first") is None  # float32 for the sum, quantised for the second layer alone
    assert found.integer == {"first", "second", "third"}
    assert stored(found, structure, "second") == "third"


def test_symmetric_codes_of_what_is_never_negative_begin_at_zero() -> None:
    symmetric = (WEIGHT, NumberFormat(8, "symmetric", "tensor"))
    found, _ = storage(Chain(F.relu), **dict.fromkeys(ALL, symmetric))
    assert dict(found.shifts) == {"second": 128, "third": 128}


def test_without_integers_nothing_is_decided() -> None:
    float_weights: Formats = {"first": (None, ACTIVATION)}
    found, _ = storage(Chain(F.relu), **float_weights)
    assert found == FLOAT


def spec(**changes: Any) -> LayerSpec:
    fields: dict[str, Any] = {
        "name": "layer", "kind": "conv", "in_channels": 8, "out_channels": 8, "kernel": (3, 3), "stride": (1, 1),
        "padding": (1, 1), "dilation": (1, 1), "groups": 1, "input_size": (8, 8), "output_size": (8, 8),
        "positions": 64, "bias": True, "in_extent": Extent(8), "out_extent": Extent(8),
    }  # fmt: skip
    return LayerSpec(**{**fields, **changes})


@pytest.mark.parametrize(
    ("weight", "activation", "reason"),
    [
        (None, ACTIVATION, "not both"),
        (WEIGHT, None, "not both"),
        (NumberFormat(9), ACTIVATION, "9 bits"),
        (WEIGHT, NumberFormat(16, "fp16", "tensor"), "16 bits"),
        (NumberFormat(4, "codebook"), ACTIVATION, "codebook"),
        (NumberFormat(8, "asymmetric"), ACTIVATION, "asymmetric"),
        (NumberFormat(8, granularity="group:16"), ACTIVATION, "group:16"),
        (WEIGHT, NumberFormat(4, "power_of_two", "tensor"), "power_of_two"),
    ],
)
def test_why_a_layer_stays_float(weight: NumberFormat | None, activation: NumberFormat | None, reason: str) -> None:
    assert reason in (why_float(spec(), weight, activation) or "")


def test_kinds_of_layers() -> None:
    assert why_float(spec(), WEIGHT, ACTIVATION) is None
    assert why_float(spec(groups=8), WEIGHT, ACTIVATION) is None
    assert "groups" in (why_float(spec(groups=2), WEIGHT, ACTIVATION) or "")
    assert why_float(spec(kind="linear", kernel=(), positions=1), WEIGHT, ACTIVATION) is None
    assert "no integer kernel" in (why_float(spec(kind="linear", kernel=(), positions=9), WEIGHT, ACTIVATION) or "")
    assert "no integer kernel" in (why_float(spec(kernel=(3,)), WEIGHT, ACTIVATION) or "")


class Numbers:
    """Tensors that know one layer."""

    def __init__(self, zero_point: int) -> None:
        self.zero_point = zero_point

    def integers(self, layer: str) -> LayerIntegers:
        weight = np.ones((1, 1, 1, 1), dtype=np.int8)
        return LayerIntegers(weight, np.ones(1, dtype=np.float32), 0.5, self.zero_point, 1, 255)


def test_a_grids_numbers() -> None:
    shifted = Grid("layer", 128, True)
    assert shifted.zero(Numbers(128)) == 0  # type: ignore[arg-type]
    np.testing.assert_array_equal(shifted.quantising(Numbers(128)), [2.0, 0.0, 0.0, 127.0])  # type: ignore[arg-type]
    plain = Grid("layer", 0, False)
    np.testing.assert_array_equal(plain.quantising(Numbers(7)), [2.0, 7.0, 1.0, 255.0])  # type: ignore[arg-type]
    np.testing.assert_array_equal(plain.dequantising(Numbers(7)), [0.5, -3.5])  # type: ignore[arg-type]
    limits = plain.numbers(Numbers(7)).limits(0.0, 6.0)  # type: ignore[arg-type]
    np.testing.assert_array_equal(limits, [7.0, 19.0])


def test_an_unexpected_code_of_zero_is_refused() -> None:
    with pytest.raises(TrimtabError, match=r"layer 'layer' reads nothing below zero, and the code of zero is 3"):
        Grid("layer", 0, True).numbers(Numbers(3))  # type: ignore[arg-type]
