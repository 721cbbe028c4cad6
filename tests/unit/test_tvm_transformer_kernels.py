"""Kernels of transformers and of ConvNeXt against torch: normalisation, softmax, attention, sequences of tokens."""

import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from tvm import tirx

from backends.tvm.kernels.attention import Attention
from backends.tvm.kernels.base import Kernel, pack_blocks, unpack_blocks
from backends.tvm.kernels.loops import Cover
from backends.tvm.kernels.normalisation import GroupNorm, LayerNorm, Softmax
from backends.tvm.kernels.tokens import ConcatColumns
from backends.tvm.target import Cpu, cpu_for

CPUS = [None, "haswell", "x86-64"]  # this machine, AVX2, and 128-bit vectors
RUBBISH = 1e6


@pytest.fixture(params=CPUS, ids=lambda mcpu: mcpu or "native")
def cpu(request) -> Cpu:
    return cpu_for(request.param)


def run(kernel: Kernel, cpu: Cpu, *operands: np.ndarray) -> np.ndarray:
    function = tvm.compile(kernel.build(cpu).with_attr("global_symbol", "main"), target=cpu.target)["main"]
    output = tvm.runtime.tensor(np.full(kernel.output_shape, np.nan, dtype=np.float32))
    function(*map(tvm.runtime.tensor, operands), output)
    return output.numpy()


def packed(channels: torch.Tensor, lanes: int, fill: float = RUBBISH) -> np.ndarray:
    """[N, C, H, W] in channel blocks, with rubbish behind the last channel."""
    return pack_blocks(F.pad(channels, (0, 0, 0, 0, 0, -channels.shape[1] % lanes), value=fill), lanes)


def factors(values: torch.Tensor, lanes: int) -> np.ndarray:
    """[C] as [blocks, lanes], zeros behind."""
    return F.pad(values, (0, -len(values) % lanes)).numpy().reshape(-1, lanes)


def real(buffer: np.ndarray, channels: int) -> torch.Tensor:
    """The real channels, [N, C, H, W]; whatever lies behind them must be finite."""
    assert np.isfinite(buffer).all()
    return torch.from_numpy(unpack_blocks(buffer)[:, :channels])


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours - expected).abs().max() / expected.abs().max())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- normalisation


@pytest.mark.parametrize(("channels", "rows", "columns"), [(96, 7, 9), (37, 1, 197), (5, 2, 1), (16, 1, 8)])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_layer_norm(cpu, channels, rows, columns, mean):
    x = normal(2, channels, rows, columns) + mean
    gamma, beta = normal(channels, seed=1), normal(channels, seed=2)
    source = packed(x, cpu.lanes)
    kernel = LayerNorm(source.shape, channels, 1e-6)
    ours = real(run(kernel, cpu, source, factors(gamma, cpu.lanes), factors(beta, cpu.lanes)), channels)
    expected = F.layer_norm(x.permute(0, 2, 3, 1).double(), (channels,), gamma.double(), beta.double(), 1e-6)
    assert relative(ours, expected.permute(0, 3, 1, 2)) < 1e-5


@pytest.mark.parametrize(("channels", "groups"), [(48, 4), (30, 5), (30, 1), (30, 30)])
def test_group_norm(cpu, channels, groups):
    x = normal(2, channels, 6, 7) + 100.0
    gamma, beta = normal(channels, seed=1), normal(channels, seed=2)
    source = packed(x, cpu.lanes)
    kernel = GroupNorm(source.shape, channels, groups)
    ours = real(run(kernel, cpu, source, factors(gamma, cpu.lanes), factors(beta, cpu.lanes)), channels)
    assert relative(ours, F.group_norm(x.double(), groups, gamma.double(), beta.double())) < 1e-5


def test_instance_norm_is_a_group_for_each_channel():
    cpu = cpu_for()
    x = normal(1, 20, 5, 8)
    source = packed(x, cpu.lanes)
    ones, zeros = torch.ones(20), torch.zeros(20)
    kernel = GroupNorm(source.shape, 20, groups=20)
    ours = real(run(kernel, cpu, source, factors(ones, cpu.lanes), factors(zeros, cpu.lanes)), 20)
    assert relative(ours, F.instance_norm(x)) < 1e-5


@pytest.mark.parametrize("channels", [32, 45, 1])
def test_softmax(cpu, channels):
    x = 20 * normal(2, channels, 3, 5)
    source = packed(x, cpu.lanes)
    output = run(Softmax(source.shape, channels), cpu, source)
    assert relative(real(output, channels), x.softmax(1)) < 1e-6
    assert (unpack_blocks(output)[:, channels:] == 0).all()


# ---- attention


def heads_of(tokens: torch.Tensor, cpu: Cpu) -> np.ndarray:
    """[N, heads, T, head_dim] as a buffer in which every head begins a block; rubbish behind its channels."""
    batch, heads, count, dim = tokens.shape
    behind = -dim % cpu.lanes
    channels = F.pad(tokens, (0, behind), value=RUBBISH).transpose(2, 3)
    return pack_blocks(channels.reshape(batch, heads * (dim + behind), 1, count), cpu.lanes)


def attended(output: np.ndarray, heads: int, dim: int) -> torch.Tensor:
    """The real channels of what comes out, [N, heads, T, head_dim]."""
    assert np.isfinite(output).all()
    channels = torch.from_numpy(unpack_blocks(output))
    return channels.reshape(output.shape[0], heads, -1, output.shape[3])[:, :, :dim].transpose(2, 3)


@pytest.mark.parametrize(
    ("queries", "keys", "heads", "dim"),
    [
        (197, 197, 3, 64),
        (50, 50, 2, 64),
        (64, 64, 1, 32),
        (65, 65, 2, 24),
        (1, 50, 2, 16),
        (7, 31, 1, 40),
        (33, 1, 3, 8),
    ],
)
def test_attention(cpu, queries, keys, heads, dim):
    q, k, v = normal(2, heads, queries, dim), normal(2, heads, keys, dim, seed=1), normal(2, heads, keys, dim, seed=2)
    buffers = [heads_of(part, cpu) for part in (q, k, v)]
    kernel = Attention(*(buffer.shape for buffer in buffers), heads, dim)
    ours = attended(run(kernel, cpu, *buffers), heads, dim)
    assert relative(ours, F.scaled_dot_product_attention(q, k, v)) < 1e-5


def test_attention_of_one_joint_projection():
    cpu = cpu_for()
    q, k, v = normal(3, 1, 2, 50, 16 * 3)
    joint = np.concatenate([heads_of(part, cpu) for part in (q, k, v)], axis=1)
    each = joint.shape[1] // 3
    kernel = Attention(joint.shape, joint.shape, joint.shape, 2, 48, first=(0, each, 2 * each), scale=0.5)
    ours = attended(run(kernel, cpu, joint, joint, joint), 2, 48)
    assert relative(ours, F.scaled_dot_product_attention(q, k, v, scale=0.5)) < 1e-5


def test_attention_to_one_key_among_many(cpu):
    """Scores of several hundred: their exponentials overflow unless the largest is subtracted."""
    q, k, v = 40 * normal(1, 1, 20, 32), normal(1, 1, 40, 32, seed=1), normal(1, 1, 40, 32, seed=2)
    buffers = [heads_of(part, cpu) for part in (q, k, v)]
    kernel = Attention(*(buffer.shape for buffer in buffers), 1, 32)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert relative(attended(run(kernel, cpu, *buffers), 1, 32), expected) < 1e-4


# ---- tokens


def test_class_token_before_the_patches_of_a_batch(cpu):
    token, patches = normal(1, 20, 1, 1), normal(3, 20, 7, 9, seed=1)
    map_ = packed(patches, cpu.lanes)
    sequence = map_.reshape(*map_.shape[:2], 1, 63, cpu.lanes)
    first = packed(token, cpu.lanes)
    ours = real(run(ConcatColumns((first.shape, sequence.shape)), cpu, first, sequence), 20)
    assert torch.equal(ours, torch.cat([token.expand(3, -1, -1, -1), patches.reshape(3, 20, 1, 63)], dim=3))


# ---- all of them


def kernels(lanes: int) -> list[Kernel]:
    """One of each, with work enough for two threads, and last tiles that overlap those before."""
    odd = (2, 8, 5, 221, lanes)
    tokens = (1, 12, 1, 101, lanes)
    return [
        LayerNorm(odd, 8 * lanes - 3),
        GroupNorm(odd, 8 * lanes - 4, 4),
        Softmax(odd, 8 * lanes - 1),
        Attention(tokens, tokens, tokens, 2, 2 * lanes - 1, (0, 4, 8)),
        ConcatColumns((odd, (1, *odd[1:]))),
    ]


def worst(kernel: Kernel, cpu: Cpu) -> float:
    """Largest difference to the kernel's own reference, rubbish lanes included, over the largest of its numbers."""
    operands = kernel.example_operands(cpu, np.random.default_rng(0))
    expected = kernel.reference(operands)
    assert expected.shape == kernel.output_shape
    return float(np.abs(run(kernel, cpu, *operands) - expected).max() / np.abs(expected).max())


def test_references_hold_in_every_lane(cpu):
    errors = {kernel.recipe: worst(kernel, cpu) for kernel in kernels(cpu.lanes)}
    assert {recipe: error for recipe, error in errors.items() if not error < 2e-6} == {}


def test_two_threads_compute_the_same():
    # TVM starts its threads once a process, so they need one of their own
    code = """
import tests.unit.test_tvm_transformer_kernels as tested
from backends.tvm.target import cpu_for
cpu = cpu_for(threads=2)
for kernel in tested.kernels(cpu.lanes):
    assert "parallel" in kernel.build(cpu).script(), kernel.recipe
    assert tested.worst(kernel, cpu) < 2e-6, kernel.recipe
"""
    environment = {**os.environ, "TVM_NUM_THREADS": "2"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_recipes_tell_kernels_apart_and_survive_a_pipe():
    every = kernels(16)
    every += [replace(every[0], eps=1e-6), replace(every[1], groups=2), replace(every[3], scale=1.0)]
    assert len({kernel.recipe for kernel in every}) == len(every)
    assert [pickle.loads(pickle.dumps(kernel)) for kernel in every] == every
    assert every[0].recipe == "layer_norm(source=(2,8,5,221,16),channels=125)"


def test_work_of_attention_is_that_of_its_products():
    shape = (2, 12, 1, 197, 16)
    assert Attention(shape, shape, shape, 3, 64).work == 2 * (2 * 3 * 197 * 197 * 64)


@pytest.mark.parametrize(("extent", "most"), [(197, 28), (50, 28), (16, 16), (7, 8), (1, 8), (9, 8), (29, 28)])
def test_every_position_is_covered_and_owned_once(extent, most):
    cover = Cover.of(extent, most)
    assert cover.width <= most
    owned = []
    for tile in range(cover.count):
        start = int(cover.start(tirx.const(tile, "int32")))
        assert 0 <= start <= extent - cover.width
        owned += [p for p in range(start, start + cover.width) if cover.owns(tile, p)]
    assert owned == list(range(extent))
