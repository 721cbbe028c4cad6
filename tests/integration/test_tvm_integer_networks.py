"""Whole networks in 8-bit integers: every kernel exact on what it really meets, the whole near the fake-quantised."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from automl.compression import CompressionOptions, Compressor
from automl.compression.treatments import Compressed
from automl.export.integers import integer_network
from automl.models import build_model
from backends.integers import formats_of
from backends.torch_reference import reference_output
from backends.tvm import compile_module
from backends.tvm.code import machine_code
from backends.tvm.emit import emit
from backends.tvm.kernels.base import Kernel
from backends.tvm.lowering.grids import WithIntegers
from backends.tvm.lowering.plan import Call, plan
from backends.tvm.lowering.rest import lower_rest
from backends.tvm.lowering.rules import RULES
from backends.tvm.lowering.values import Buffer
from backends.tvm.network_recipes import NetworkRecipes
from backends.tvm.target import cpu_for
from search_spaces.capture import PrunableNetwork, capture_for_compiling
from search_spaces.policy import CompressionPolicy, LayerPolicy

SHAPE = (3, 16, 16)
EIGHT = LayerPolicy(weight_bits=8, activation_bits=8)
POLICIES = {
    "8 bits": EIGHT,
    "symmetric": replace(EIGHT, activation_scheme="symmetric", weight_granularity="tensor"),
    "4 bits": LayerPolicy(weight_bits=4, activation_bits=6),
    "ternary": LayerPolicy(weight_bits=2, weight_scheme="ternary", activation_bits=8),
}
SLOW = ("vgg11", "densenet40", "ofa_small", "ofa_mobilenet_v3")
VGG, DENSENET, OFA_SMALL, OFA = (pytest.param(name, marks=pytest.mark.slow) for name in SLOW)
NETWORKS = ("resnet20", "mobilenet_v2", VGG, DENSENET)


def trained_like(module: torch.nn.Module) -> torch.nn.Module:
    """Batch norms as training leaves them."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            count = layer.num_features
            layer.running_mean.copy_(torch.randn(count, generator=generator) * 0.2)
            layer.running_var.copy_(torch.rand(count, generator=generator) + 0.5)
            layer.weight.data.copy_(torch.rand(count, generator=generator) + 0.5)
            layer.bias.data.copy_(torch.randn(count, generator=generator) * 0.2)
    return module.eval()


def images(count: int) -> torch.Tensor:
    return torch.randn((count, *SHAPE), generator=torch.Generator().manual_seed(1))


@cache
def in_8_bits(name: str) -> Compressed:
    """The network with all layers in 8 bits; not to be changed."""
    return compress(name, EIGHT)


def compress(name: str, policy: dict[str, LayerPolicy] | LayerPolicy, keep: float | None = None) -> Compressed:
    network = PrunableNetwork(
        trained_like(build_model(name, {}, classes=10, input_shape=SHAPE)), torch.zeros(1, *SHAPE)
    )
    if isinstance(policy, LayerPolicy):
        policy = {layer.name: policy for layer in network.graph.layers if layer.kind != "conv_transpose"}
    if keep is not None:
        for group in network.graph.groups:
            policy = {**policy, group.name: replace(policy.get(group.name, LayerPolicy()), keep=keep)}
    options = CompressionOptions(reconstruct=False)
    return Compressor(network, images(64), options).compress(CompressionPolicy(policy))


def check_every_kernel(compressed: Compressed, x: torch.Tensor) -> set[str]:
    """Runs the network, all values given; each integer kernel's must be its reference's, to the last bit."""
    module, integers, _ = integer_network(compressed)
    graph, tensors = capture_for_compiling(module, x)
    constants = WithIntegers(tensors, integers.layers)
    cpu = cpu_for()
    planner, given, output = plan(graph, cpu, RULES, lower_rest, len(x), integers.formats)
    calls = [step for step in planner.steps if isinstance(step, Call) and isinstance(step.kernel, Kernel)]
    code, _ = emit(planner, given, output, constants, cpu, [call.result for call in calls])
    machine = relax.VirtualMachine(machine_code(code, cpu), tvm.cpu())
    found = machine["main"](tvm.runtime.tensor(x.numpy(), tvm.cpu()))
    values: dict[Buffer, Any] = {given: x.numpy()}
    values |= {call.result: found[index + 1].numpy() for index, call in enumerate(calls)}
    shapes = {step.result: step.source for step in planner.steps if not isinstance(step, Call)}

    def value(buffer: Buffer) -> Any:
        return values[buffer] if buffer in values else value(shapes[buffer]).reshape(buffer.shape)

    checked = set()
    for call in calls:
        operands = [value(operand) if isinstance(operand, Buffer) else operand(constants) for operand in call.operands]
        if "uint8" in (call.result.dtype, operands[0].dtype):
            assert isinstance(call.kernel, Kernel)
            operands = [
                np.ascontiguousarray(operand, dtype=dtype)
                for operand, (_, dtype) in zip(operands, call.kernel.operand_types(cpu), strict=True)
            ]
            np.testing.assert_array_equal(value(call.result), call.kernel.reference(operands), call.kernel.recipe)
            checked.add(call.kernel.kind)
    return checked


@pytest.mark.parametrize("name", NETWORKS)
def test_each_kernel_is_exact_on_what_it_meets(name: str) -> None:
    kinds = check_every_kernel(in_8_bits(name), images(1))
    assert {"conv2d_u8", "dense_u8"} <= kinds
    assert ("depthwise_u8" in kinds) == (name == "mobilenet_v2")


@pytest.mark.parametrize("policy", POLICIES)
def test_near_the_fake_quantised_network(policy: str) -> None:
    check_near(in_8_bits("resnet20") if policy == "8 bits" else compress("resnet20", POLICIES[policy]))


@pytest.mark.parametrize("name", ["mobilenet_v2", "vgg11", DENSENET, OFA_SMALL, OFA])
def test_other_networks(name: str) -> None:
    check_near(in_8_bits(name))


@pytest.mark.parametrize("name", ["resnet20", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def test_pruned_and_mixed(name: str) -> None:
    every: dict[str, LayerPolicy] = {}
    graph = PrunableNetwork(build_model(name, {}, classes=10, input_shape=SHAPE), torch.zeros(1, *SHAPE)).graph
    for index, layer in enumerate(graph.layers):
        every[layer.name] = LayerPolicy() if index % 3 == 1 else EIGHT
    compressed = compress(name, {layer: policy for layer, policy in every.items() if policy.treats}, keep=0.6)
    check_near(compressed)
    assert "quantise" in check_every_kernel(compressed, images(1))


def check_near(compressed: Compressed) -> None:
    """All that differs: a value is stored in its reader's grid before a sum, and a rounding falls the other way."""
    module, integers, left = integer_network(compressed)
    assert not left
    x = images(32)
    compiled = compile_module(module, x[:1], integers=integers)
    assert compiled.fallbacks == {}
    found = np.concatenate([compiled.run(x[i : i + 1].numpy()) for i in range(len(x))])
    fake = reference_output(compressed.module, x)
    error = np.abs(found - fake).max(axis=1) / np.abs(fake).max(axis=1)
    levels = min(layer.activation_bits for layer in compressed.graph.layers)
    assert np.median(error) < (0.05 if levels == 8 else 0.2)


@pytest.mark.parametrize("name", NETWORKS)
def test_priced_by_what_is_compiled(name: str) -> None:
    network = PrunableNetwork(build_model(name, {}, classes=10, input_shape=SHAPE), torch.zeros(1, *SHAPE))
    recipes, rng = NetworkRecipes(network.graph, cpu_for()), np.random.default_rng(0)
    for _ in range(2):
        layers = {layer.name: EIGHT for layer in network.graph.layers if rng.random() < 0.6}
        for group in network.graph.groups:
            layers[group.name] = replace(layers.get(group.name, LayerPolicy()), keep=float(rng.uniform(0.3, 1.0)))
        graph = network.graph.apply(CompressionPolicy(layers))
        compressed = Compressor(network, images(16), CompressionOptions(reconstruct=False)).compress(
            CompressionPolicy(layers)
        )
        module, integers, _ = integer_network(compressed)
        compiled = compile_module(module, images(1), integers=integers)
        priced = [kernel.recipe for kernel in recipes.recipes(graph.kept, formats_of(graph))]
        assert sorted(priced) == sorted(compiled.lowered.recipes)
