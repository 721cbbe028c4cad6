"""Compressed networks as files: all of it comes back, in the bytes that are counted, and what is damaged is refused."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from automl.compression import CompressionOptions, Compressor, QuantisationOptions
from automl.compression.saving import from_bytes, to_bytes
from automl.compression.treatments import Compressed
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.number_formats import SCHEMES
from search_spaces.policy import CompressionPolicy, LayerPolicy, beside_pruning

POLICY = {
    "0": LayerPolicy(sparsity=0.5, weight_bits=4, weight_scheme="asymmetric"),
    "3": LayerPolicy(weight_bits=8, activation_bits=8),
}


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    x = torch.rand(16, 3, 8, 8)
    options = CompressionOptions(reconstruct=False, quantisation=QuantisationOptions(weight_range="mse"))
    return Compressor(PrunableNetwork(module, x[:2]), x, options)


def loaded(content: bytes, compressor: Compressor, layers: Mapping[str, LayerPolicy]) -> Compressed:
    policy = CompressionPolicy(layers)
    return from_bytes(content, compressor.network, compressor.kept(policy), beside_pruning(policy), "model.safetensors")


def check_alike(found: Compressed, expected: Compressed) -> None:
    state = expected.module.state_dict()
    assert found.graph == expected.graph
    assert found.module.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.module.state_dict().items())
    assert found.masks.keys() == expected.masks.keys()
    assert all(torch.equal(mask, expected.masks[name]) for name, mask in found.masks.items())
    assert found.weights.keys() == expected.weights.keys()
    for name, weight in found.weights.items():
        other = expected.weights[name]
        assert (weight.format, weight.method) == (other.format, other.method)
        assert torch.equal(weight.codes, other.codes)
        assert torch.equal(weight.values, other.values)
        assert weight.side.keys() == other.side.keys()
        assert all(torch.equal(numbers, other.side[each]) for each, numbers in weight.side.items())
        assert (weight.mask is None) == (other.mask is None)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group:7"])
@pytest.mark.parametrize("sparsity", [None, 0.02, 0.7])
def test_codes_and_masks_come_back(
    scheme: str, granularity: str, sparsity: float | None, compressor: Compressor
) -> None:
    """Also of few zeros, which are stored without an index."""
    bits = min(max(SCHEMES[scheme].least_bits, 3), SCHEMES[scheme].most_bits)
    given = LayerPolicy(
        keep=0.75, sparsity=sparsity, weight_bits=bits, weight_scheme=scheme, weight_granularity=granularity
    )
    expected = compressor.compress(CompressionPolicy({"0": given}))
    check_alike(loaded(to_bytes(expected), compressor, {"0": given}), expected)


def test_the_parameters_take_the_bytes_that_are_counted(compressor: Compressor) -> None:
    found = compressor.compress(CompressionPolicy(POLICY))
    stored = safetensors.torch.load(to_bytes(found))
    assert sum(stored[name].nbytes for name, _ in found.module.named_parameters()) == found.graph.weight_bytes
    assert stored["0.weight"].dtype == stored["3.weight"].dtype == torch.uint8
    assert "0.weight.mask" not in stored


def test_zeros_without_an_index_have_a_mask_beside_them(compressor: Compressor) -> None:
    policy = {"3": LayerPolicy(sparsity=0.02, weight_bits=2)}
    found = compressor.compress(CompressionPolicy(policy))
    assert found.graph.layer("3").stored.form == "dense"
    assert int((found.weights["3"].values == 0).sum()) > int((~found.masks["3"]).sum())  # others are zero by chance
    stored = safetensors.torch.load(to_bytes(found))
    assert len(stored["3.weight.mask"]) == 8 * 36 * 4 // 8
    check_alike(loaded(to_bytes(found), compressor, policy), found)


def test_what_was_changed_behind_its_codes_is_not_saved(compressor: Compressor) -> None:
    found = compressor.compress(CompressionPolicy(POLICY))
    found.module.get_parameter("3.weight").data += 1e-3
    with pytest.raises(InputError, match="layer '3' has other weights than its codes"):
        to_bytes(found)
    with pytest.raises(InputError, match="to zero first"):
        to_bytes(grown(compressor.compress(CompressionPolicy({"0": LayerPolicy(sparsity=0.5)}))))


def grown(compressed: Compressed) -> Compressed:
    compressed.module.get_parameter("0.weight").data += 1.0
    return compressed


def edited(change: Callable[[dict[str, Tensor]], object]) -> Callable[[bytes], bytes]:
    def damage(content: bytes) -> bytes:
        tensors = safetensors.torch.load(content)
        change(tensors)
        return safetensors.torch.save(tensors)

    return damage


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "is damaged"),
    "cut": (lambda content: content[:-1], "is damaged"),
    "noise": (lambda content: bytes(range(256)), "is damaged"),
    "lacks a weight": (edited(lambda tensors: tensors.pop("0.weight")), "'0.weight': .* got none"),
    "lacks a bias": (edited(lambda tensors: tensors.pop("0.bias")), "lacks '0.bias'"),
    "one more": (edited(lambda tensors: tensors.update(x=torch.zeros(1))), "unknown 'x'"),
    "floats": (
        edited(lambda tensors: tensors.update({"3.weight": torch.zeros(4, 288)})),
        r"'3.weight': .* got torch.float32 \[4, 288\]",
    ),
    "short": (
        edited(lambda tensors: tensors.update({"3.weight": tensors["3.weight"][:-1]})),
        "'3.weight': .* take 1168 bytes, got 1167",
    ),
    "an index of too many": (
        edited(lambda tensors: tensors.update({"0.weight": torch.full_like(tensors["0.weight"], 255)})),
        "'0.weight': .* are damaged",
    ),
    "doubles": (edited(lambda tensors: tensors.update({"0.bias": tensors["0.bias"].double()})), "float64"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_bad_input(damage: str, compressor: Compressor) -> None:
    change, message = DAMAGES[damage]
    content = to_bytes(compressor.compress(CompressionPolicy(POLICY)))
    with pytest.raises(InputError, match=f"^model.safetensors .*{message}") as caught:
        loaded(change(content), compressor, POLICY)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        (None, "got none"),
        (np.zeros(3), "takes 144 bytes, got 3"),
        (np.zeros(144), "leaves 0 weights, the policy 1129"),
    ],
)
def test_a_damaged_mask_is_bad_input(bits: np.ndarray | None, message: str, compressor: Compressor) -> None:
    policy = {"3": LayerPolicy(sparsity=0.02, weight_bits=2)}
    tensors = safetensors.torch.load(to_bytes(compressor.compress(CompressionPolicy(policy))))
    del tensors["3.weight.mask"]
    if bits is not None:
        tensors["3.weight.mask"] = torch.from_numpy(bits.astype(np.uint8))
    with pytest.raises(InputError, match=message):
        loaded(safetensors.torch.save(tensors), compressor, policy)


def test_a_range_that_is_not_known_is_bad_input(compressor: Compressor) -> None:
    content = to_bytes(compressor.compress(CompressionPolicy(POLICY)))
    size = int.from_bytes(content[:8], "little")
    assert json.loads(content[8 : 8 + size])["__metadata__"] == {"0": "mse", "3": "mse"}
    with pytest.raises(InputError, match="'msx'"):
        loaded(content.replace(b'"mse"', b'"msx"'), compressor, POLICY)


def test_another_policy_s_file_is_bad_input(compressor: Compressor) -> None:
    content = to_bytes(compressor.compress(CompressionPolicy(POLICY)))
    with pytest.raises(InputError, match="belongs to another architecture"):
        loaded(content, compressor, {**POLICY, "3": replace(POLICY["3"], weight_bits=4)})
    with pytest.raises(InputError, match="belongs to another architecture"):
        loaded(content, compressor, {"3": POLICY["3"]})
