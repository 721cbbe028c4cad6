"""Code for another architecture: made here, run by an emulator of that processor."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from aarch64 import TRIPLE, Emulator, build_emulator
from torch import nn
from tvm import relax

from automl.export.integers import integer_network
from automl.export.tvm_export import save_library
from automl.models import build_model
from backends.measuring import relative_error
from backends.torch_reference import reference_output
from backends.tvm import compile_module
from backends.tvm.code import machine_code
from backends.tvm.kernels.base import Kernel, Span, Window
from backends.tvm.kernels.integer.convolution import IntegerConv2d
from backends.tvm.kernels.integer.dense import IntegerDense
from backends.tvm.kernels.integer.depthwise import IntegerDepthwise
from backends.tvm.kernels.integer.epilogue import IntegerEpilogue
from backends.tvm.kernels.integer.kernel import IntegerKernel
from backends.tvm.linking import linker
from backends.tvm.target import Cpu, cpu_for
from search_spaces.errors import InputError, TrimtabError

if cpu_for().architecture == "aarch64":
    pytest.skip("this machine is what the others are cross-compiled for", allow_module_level=True)

WAYS = {"smull": ("cortex-a72", "cortex-a72"), "udot": ("cortex-a76", "cortex-a76"), "usdot": ("neoverse-v2", "max")}
"""LLVM's and qemu's names of a processor for each way of adding up products of bytes."""
NUMBERS = IntegerEpilogue(output="float32")


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    return build_emulator(tmp_path_factory.mktemp("aarch64"))


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def trained_like(module: nn.Module) -> nn.Module:
    """Batch norms as training leaves them: nothing at its initial value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for tensor, low in ((layer.running_mean, -0.5), (layer.running_var, 0.5), (layer.weight, 0.5)):
                    tensor.copy_(torch.rand(layer.num_features, generator=generator) + low)
    return module.eval()


def check_network(
    emulator: Emulator, folder: Path, module: nn.Module, shape: tuple[int, ...], mcpu: str, threads: int = 1
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    compiled = compile_module(module, x, mcpu=mcpu, triple=TRIPLE, threads=threads)
    assert compiled.fallbacks == {}
    compiled.export(folder / "model.so")
    output = emulator.run(folder / "model.so", [("main", [x.numpy()])], cpu=mcpu, threads=threads)[0]
    expected = reference_output(module, x)
    assert np.abs(output - expected).max() <= 1e-5 * np.abs(expected).max()


def zoo(name: str, shape: tuple[int, ...]) -> nn.Module:
    return trained_like(build_model(name, {}, classes=10, input_shape=shape))


def on_device(emulator: Emulator, folder: Path, kernels: Sequence[Kernel], cpu: Cpu, calls: list, qemu: str) -> list:  # type: ignore[type-arg]
    """What kernels give for their operands, each in the virtual machine as in a network."""
    builder = relax.BlockBuilder()
    for index, kernel in enumerate(kernels):
        function = builder.add_func(kernel.build(cpu), f"kernel_{index}")
        parameters = [
            relax.Var(f"operand_{position}", relax.TensorType(*given))
            for position, given in enumerate(kernel.operand_types(cpu))
        ]
        with builder.function(f"call_{index}", parameters):
            with builder.dataflow():
                given = relax.TensorType(kernel.output_shape, kernel.output_dtype)
                result = builder.emit_output(relax.call_tir(function, parameters, given))
            builder.emit_func_output(result)
    machine_code(builder.get(), cpu).export_library(str(folder / "kernels.so"), fcompile=linker(cpu))
    named = [(f"call_{index}", operands) for index, operands in enumerate(calls)]
    return emulator.run(folder / "kernels.so", named, cpu=qemu, threads=cpu.threads)


def check_integer(emulator: Emulator, folder: Path, kernels: Sequence[Kernel], way: str) -> None:
    """Random codes, then the largest products, bit for bit."""
    mcpu, qemu = WAYS[way]
    cpu = cpu_for(mcpu, triple=TRIPLE)
    assert cpu.dot == way
    calls = [kernel.example_operands(cpu, np.random.default_rng(0)) for kernel in kernels]
    for kernel, operands in list(zip(kernels, calls, strict=True)):
        if isinstance(kernel, IntegerKernel):
            source, weight, *others = operands
            kernels = [*kernels, kernel]
            calls = [*calls, [np.full_like(source, 255), np.where(weight != 0, np.int8(-128), weight), *others]]
    found = on_device(emulator, folder, kernels, cpu, calls, qemu)
    for kernel, operands, result in zip(kernels, calls, found, strict=True):
        np.testing.assert_array_equal(result, kernel.reference(operands), kernel.recipe)


def test_library_is_for_the_other_architecture(tmp_path):
    module, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), torch.randn(1, 3, 8, 8)
    try:
        linker(cpu_for(triple=TRIPLE))
    except InputError as error:
        pytest.skip(str(error))
    details = save_library(module, x, tmp_path / "model.so", threads=1, mcpu="cortex-a72", triple=TRIPLE)
    assert details["target"] == "llvm, cortex-a72, aarch64-linux-gnu"
    content = (tmp_path / "model.so").read_bytes()
    assert content[:4] == b"\x7fELF"
    assert int.from_bytes(content[18:20], "little") == 183  # EM_AARCH64


def test_what_cannot_run_here_is_refused():
    compiled = compile_module(nn.Linear(3, 2), torch.zeros(1, 3), mcpu="cortex-a72", triple=TRIPLE)
    with pytest.raises(InputError, match=r"cannot run code for cortex-a72, aarch64-linux-gnu; export the network$"):
        compiled.run(np.zeros((1, 3), dtype=np.float32))


def test_a_compiler_for_this_machine_does_not_link(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CXX", "g++")
    compiled = compile_module(nn.Linear(3, 2), torch.zeros(1, 3), triple=TRIPLE)
    with pytest.raises(
        TrimtabError, match=r"^g\+\+ cannot link for aarch64-linux-gnu: \S.*; name another in TRIMTAB_CXX$"
    ):
        compiled.export(tmp_path / "model.so")
    assert not (tmp_path / "model.so").exists()


def test_network_gives_torchs_outputs(emulator, tmp_path):
    check_network(emulator, tmp_path, zoo("resnet20", (1, 8, 8)), (2, 1, 8, 8), "cortex-a72")


def test_threads(emulator, tmp_path):
    module = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 3)).eval()
    check_network(emulator, tmp_path, module, (1, 16, 24, 24), "cortex-a53", threads=3)


class Sums(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(torch.relu(x), dim=1)


def test_operator_of_tvms_own_is_not_tuned_but_named(emulator, tmp_path, monkeypatch):
    monkeypatch.setattr("backends.tvm.tuning.TuningProcess", None)
    x = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    compiled = compile_module(Sums(), x, mcpu="cortex-a72", triple=TRIPLE)
    assert compiled.fallbacks == {"cumsum": 1}
    compiled.export(tmp_path / "model.so")
    output = emulator.run(tmp_path / "model.so", [("main", [x.numpy()])])[0]
    np.testing.assert_allclose(output, Sums()(x).numpy(), rtol=1e-5)


def test_integer_kernels_are_exact(emulator, tmp_path, way):
    same = Window((3, 3), padding=(1, 1, 1, 1))
    fields = {"source": (1, 3, 7, 9, 4), "span": Span(3, 4, 0), "blocks": 5, "size": (7, 9), "lanes": 4, "window": same}
    convolution = IntegerConv2d(**fields)  # type: ignore[arg-type]
    kernels = [
        convolution,
        replace(convolution, epilogue=NUMBERS),
        replace(convolution, size=(4, 5), window=Window((3, 3), (2, 2), (1, 1, 1, 1)), epilogue=NUMBERS),
        IntegerDepthwise((1, 2, 9, 13, 4), (9, 13), same, NUMBERS),
        IntegerDense(2, 72, 35, 4, NUMBERS),
    ]
    check_integer(emulator, tmp_path, kernels, way)


@pytest.mark.slow
@pytest.mark.parametrize("mcpu", ["cortex-a72", "cortex-a76"])
@pytest.mark.parametrize("module", ["test_tvm_kernels", "test_tvm_transformer_kernels"])
def test_every_float_kernel_computes_what_torch_does(emulator, tmp_path, module, mcpu):
    cpu = cpu_for(mcpu, triple=TRIPLE)
    tests = import_module(f"unit.{module}")
    kernels = tests.kernels(cpu if module == "test_tvm_kernels" else cpu.lanes)
    calls = [kernel.example_operands(cpu, np.random.default_rng(0)) for kernel in kernels]
    found = on_device(emulator, tmp_path, kernels, cpu, calls, mcpu)
    errors = {
        kernel.recipe: relative_error(result, kernel.reference(operands))
        for kernel, operands, result in zip(kernels, calls, found, strict=True)
    }
    assert {recipe: error for recipe, error in errors.items() if not error < 2e-6} == {}


@pytest.mark.slow
def test_every_integer_kernel_is_exact(emulator, tmp_path, way):
    kernels = import_module("unit.test_tvm_integer_kernels").kernels(cpu_for(triple=TRIPLE))
    check_integer(emulator, tmp_path, kernels, way)


@pytest.mark.slow
@pytest.mark.parametrize("mcpu", ["cortex-a72", "cortex-a76"])
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "shufflenet_v2", "vit", "vgg11"])
def test_networks_give_torchs_outputs(emulator, tmp_path, name, mcpu):
    check_network(emulator, tmp_path, zoo(name, (3, 32, 32)), (1, 3, 32, 32), mcpu)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_8_bit_networks_give_what_they_give_here(emulator, tmp_path, name, way):
    tests = import_module("integration.test_tvm_integer_networks")
    module, integers, _ = integer_network(tests.in_8_bits(name))
    x, (mcpu, qemu) = tests.images(1), WAYS[way]
    here = compile_module(module, x, integers=integers).run(x.numpy())
    compiled = compile_module(module, x, mcpu=mcpu, triple=TRIPLE, integers=integers)
    assert compiled.fallbacks == {}
    compiled.export(tmp_path / "model.so")
    np.testing.assert_array_equal(emulator.run(tmp_path / "model.so", [("main", [x.numpy()])], cpu=qemu)[0], here)
