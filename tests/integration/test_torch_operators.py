"""Recipes of fused operators for torch and ONNX Runtime, and the engines that time them."""

import pickle
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from automl.models import build_model
from backends import onnxruntime_operators
from backends.onnxruntime_operators import OnnxRuntimeEngine
from backends.operator_timing import OperatorTimer
from backends.recipes import OperatorFailure
from backends.torch_engines import TorchEngine
from backends.torch_operators import TorchOperator, TorchRecipes
from search_spaces.capture import PrunableNetwork
from search_spaces.channel_space import ChannelSpace
from search_spaces.graph import ModelGraph


class Odd(nn.Module):
    """What the zoo does not have: transposed and grouped convolution, tokens, attention, results of several."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 12, 3, stride=2, padding=1, output_padding=1)
        self.grouped = nn.Conv2d(12, 24, 3, dilation=2, groups=3)
        self.norm = nn.LayerNorm(24)
        self.qkv = nn.Linear(24, 72)
        self.token = nn.Parameter(torch.zeros(1, 1, 24))
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.grouped(torch.sigmoid(self.up(F.silu(self.stem(x))))))
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        q, k, v = self.qkv(self.norm(tokens)).reshape(x.shape[0], -1, 3, 2, 12).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], -1, 24)
        return self.fc((tokens + mixed).mean(1))


@lru_cache
def graph_of(name: str) -> ModelGraph:
    size = 16 if name == "odd" else 32
    model = Odd() if name == "odd" else build_model(name, {}, classes=10, input_shape=(3, size, size))
    return PrunableNetwork(model.eval(), torch.zeros(1, 3, size, size), prove=False).graph


def kept(graph: ModelGraph) -> list[tuple[int, ...]]:
    """The whole network, random units, and one unit of each group."""
    some = ChannelSpace.build(graph, round_to=1).sample(np.random.default_rng(0)) if graph.groups else graph.kept
    return [graph.kept, some, (1,) * len(graph.groups)]


def unique(name: str) -> dict[str, TorchOperator]:
    graph = graph_of(name)
    recipes = TorchRecipes(graph)
    return {recipe.recipe: recipe for units in kept(graph) for recipe in recipes.recipes(units)}


NETWORKS = ["resnet20", "shufflenet_v2", "squeezenet", "mobilenet_v2", "odd"]


@pytest.mark.parametrize("name", NETWORKS)
def test_recipes_compute_what_the_network_does(name: str) -> None:
    """All multiply-adds of convolution and linear layers are there, and every operator gives the shape it says."""
    graph = graph_of(name)
    recipes = TorchRecipes(graph)
    for units in kept(graph):
        layered = [
            recipe for recipe in recipes.recipes(units) if any("weight=" in str(recipe.recipe) for _ in recipe.steps)
        ]
        macs = sum(
            recipe.work for recipe in layered if recipe.kind in ("conv", "depthwise", "linear", "conv_transpose")
        )
        assert macs == graph.with_kept(units).macs
    generator = torch.Generator().manual_seed(0)
    for recipe in unique(name).values():
        with torch.inference_mode():
            output = recipe.module(generator)(*recipe.example_inputs(generator))
        assert tuple(output.shape) == recipe.output
        assert torch.isfinite(output).all()


def test_recipes_are_found_again_and_tell_operators_apart() -> None:
    graph = graph_of("resnet20")
    whole = TorchRecipes(graph).recipes(graph.kept)
    again = TorchRecipes(graph.with_kept([1] * len(graph.groups))).recipes(graph.kept)
    assert [recipe.recipe for recipe in again] == [recipe.recipe for recipe in whole]
    assert pickle.loads(pickle.dumps(whole)) == whole
    texts = {recipe.recipe for recipe in whole}
    assert len(texts) < len(whole)  # blocks of a stage are alike
    assert len(set(whole)) == len(texts)
    narrower = TorchRecipes(graph).recipes([width - 1 for width in graph.kept])
    assert not texts & {recipe.recipe for recipe in narrower if recipe.kind == "conv"}


def test_a_recipe_is_readable() -> None:
    first = TorchRecipes(graph_of("resnet20")).recipes(graph_of("resnet20").kept)[0]
    assert first.recipe == (
        "conv(float32[1,3,32,32] | [16,3,3,3],[16],[16],[16],[16] | "
        "conv2d.default(input=x0,weight=c0,bias=None,stride=[1,1],padding=[1,1],dilation=[1,1],groups=1); "
        "batch_norm.default(input=s0,weight=c1,bias=c2,running_mean=c3,running_var=c4,training=False,momentum=0.1,"
        "eps=1e-05,cudnn_enabled=True); relu.default(self=s1))"
    )
    assert first.work == 32 * 32 * 16 * 27
    assert first.traffic == 4 * (3 * 32 * 32 + 16 * 27 + 4 * 16 + 16 * 32 * 32)


def test_a_module_does_what_its_recipe_says() -> None:
    recipe = TorchRecipes(graph_of("resnet20")).recipes(graph_of("resnet20").kept)[0]
    module = recipe.module(torch.Generator().manual_seed(1))
    c0, c1, c2, c3, c4 = (module.get_buffer(f"c{index}") for index in range(5))
    (x,) = recipe.example_inputs(torch.Generator().manual_seed(2))
    expected = F.relu(
        (F.conv2d(x, c0, padding=1) - c3.view(-1, 1, 1)) / (c4 + 1e-5).sqrt().view(-1, 1, 1) * c1.view(-1, 1, 1)
        + c2.view(-1, 1, 1)
    )
    torch.testing.assert_close(module(x), expected)
    assert c4.min() > 0


def test_pricing_an_operator_seen_before_makes_nothing_new() -> None:
    recipes = TorchRecipes(graph_of("resnet20"))
    units = graph_of("resnet20").kept
    assert all(one is other for one, other in zip(recipes.parts(units), recipes.parts(units), strict=True))
    assert [kernel for part in recipes.parts(units) for kernel in part.kernels] == recipes.recipes(units)


@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_computes_what_torch_does(name: str) -> None:
    engine = OnnxRuntimeEngine(threads=1)
    recipes = list(unique(name).values())
    np.random.default_rng(0).shuffle(recipes)
    for recipe in recipes[:25]:
        prepared = engine.prepare(recipe)
        assert prepared.error < 1e-5, recipe.recipe
        assert 1 <= prepared.calls <= 16
        prepared.call()


def test_what_is_timed_has_no_change_of_layout_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []
    copied = onnxruntime_operators._copied
    monkeypatch.setattr(onnxruntime_operators, "_copied", lambda *args: timed.append(copied(*args)) or timed[-1])
    graph = graph_of("resnet20")
    middle = TorchRecipes(graph).recipes(graph.kept)[2]  # a convolution with batch norm, a sum and an activation
    assert len(middle.inputs) == 2
    prepared = OnnxRuntimeEngine(threads=1).prepare(middle)
    assert [node.op_type for node in timed[0].graph.node] == ["Conv"] * prepared.calls
    assert len(timed[0].graph.input) == 2 * prepared.calls
    assert len(timed[0].graph.output) == prepared.calls > 1


@pytest.mark.parametrize("engine", [OnnxRuntimeEngine, TorchEngine])
def test_the_same_operator_has_the_same_structure(engine: type[OnnxRuntimeEngine] | type[TorchEngine]) -> None:
    graph = graph_of("resnet20")
    first, second = list(unique("resnet20").values())[:2]
    made = engine(threads=1)
    assert made.prepare(first).structure == engine(threads=1).prepare(first).structure
    assert made.prepare(first).structure != made.prepare(second).structure
    assert graph.groups


def test_wrong_numbers_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    export = onnxruntime_operators._export

    def wrong(module: onnxruntime_operators._Surrounded, inputs: list[Tensor], path: object) -> None:
        module.operator.get_buffer("c0")[0] += 0.1
        export(module, inputs, path)  # type: ignore[arg-type]

    monkeypatch.setattr(onnxruntime_operators, "_export", wrong)
    recipe = next(iter(unique("resnet20").values()))
    assert OnnxRuntimeEngine(threads=1).prepare(recipe).error > 1e-3


@pytest.mark.parametrize(
    "engine", ["backends.onnxruntime_operators:OnnxRuntimeEngine", "backends.torch_engines:TorchEngine"]
)
def test_operators_are_timed_in_a_process_of_their_own(
    engine: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    recipes = list(unique("resnet20").values())
    with OperatorTimer(engine) as timer:
        for recipe in recipes[:3]:
            timing = timer.measure(recipe)
            assert 0 < timing.p10_s <= timing.latency_s <= timing.p90_s < 1
            assert timing.error < 1e-5
        broken = TorchOperator("nothing", recipes[0].inputs, (), (), (1,), 0.0)
        with pytest.raises(OperatorFailure):
            timer.measure(broken)
        assert timer.measure(recipes[3]).latency_s > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device that torch can use")
def test_operators_on_cuda_compute_what_the_cpu_does() -> None:
    engine = TorchEngine(threads=1, device="cuda")
    for recipe in list(unique("mobilenet_v2").values())[:25]:
        assert engine.prepare(recipe).error < 1e-4, recipe.recipe
