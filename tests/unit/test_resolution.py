"""The resolution of the images as a part of policies, graphs, networks and their compression."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from automl.compression import CompressionOptions, Compressor, compress
from automl.config import load_config
from automl.configured import captured, initial_model
from automl.costs.pricing import accelerator_backend, point_prices
from automl.data import load_data
from automl.data.resized import resized
from automl.evaluation import PolicyEvaluator
from automl.metrics import accuracy
from automl.problem import Problem
from automl.report import write_report
from automl.searchers import make_searcher
from automl.tables import summary_table
from automl.testing.runs import make_run
from automl.training import evaluate
from backends.counting import CountingBackend
from backends.table_backend import TableBackend
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy, LayerPolicy
from search_spaces.resizing import resize
from search_spaces.resolution import resolutions
from search_spaces.space import SearchSpace


class Shuffled(nn.Module):
    """A trace of it holds sizes as constants: a shuffle by views, a pool as large as the map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1, groups=2)
        self.norm, self.head = nn.BatchNorm2d(16), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        n, c, h, w = x.shape
        x = F.relu(self.grouped(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)))
        return self.head(F.avg_pool2d(x, x.shape[2:]).flatten(1))


class Small(nn.Module):
    """A network that takes any size."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.two(F.relu(self.norm(self.one(x))))).mean((2, 3)))


SIZES = ((8, 8), (12, 12))
DATA = load_data("digits", {"size": 16})


@cache
def network(kind: type[nn.Module] = Small, at: tuple[tuple[int, int], ...] = SIZES) -> PrunableNetwork:
    torch.manual_seed(0)
    return PrunableNetwork(kind().eval(), torch.randn(1, 1, 16, 16), resolutions=at)


NETWORK = network()


def space(**options: object) -> SearchSpace:
    return build_space(NETWORK.graph, SpaceOptions(resolution=(0.5, 12), **options))  # type: ignore[arg-type]


def images(count: int) -> Tensor:
    return torch.stack([DATA.train[index][0] for index in range(count)])


# -- what is asked for -------------------------------------------------------------------------------------------------


def test_shares_and_pixels_name_the_same_sizes() -> None:
    assert resolutions((1.0, 0.75, 0.5), (3, 32, 64)) == ((16, 32), (24, 48))
    assert resolutions((24, 16, 32), (3, 32, 64)) == ((16, 32), (24, 48))
    assert resolutions((1, 1.0), (3, 32, 32)) == ()
    assert resolutions((0.01,), (3, 32, 32)) == ((1, 1),)


@pytest.mark.parametrize("asked", [0.0, -0.5, 1.5, 33])
def test_a_size_out_of_range_is_refused(asked: float) -> None:
    with pytest.raises(InputError, match=r"shares in \(0, 1\] or whole pixels from 2 to the data's 32, got"):
        resolutions((asked,), (3, 32, 32))


def test_only_images_have_a_resolution() -> None:
    with pytest.raises(InputError, match=r"of images \[C, H, W\], the network reads \[64\]"):
        resolutions((0.5,), (64,))


# -- policies ----------------------------------------------------------------------------------------------------------


def test_a_policy_is_written_with_its_resolution_and_older_ones_mean_the_same() -> None:
    layers = {"conv": LayerPolicy(keep=0.5)}
    whole, smaller = CompressionPolicy(layers, "m"), CompressionPolicy(layers, "m", (12, 16))
    assert CompressionPolicy.from_json(smaller.to_json()) == smaller
    assert json.loads(smaller.to_json())["schema_version"] == 3
    assert json.loads(whole.to_json()) == {"schema_version": 2, "model": "m", "layers": {"conv": {"keep": 0.5}}}
    digests = {policy.digest for policy in (whole, smaller, CompressionPolicy(layers, "m", (16, 12)))}
    assert len(digests) == 3
    assert whole.digest == "a1820b730538b562e9714fdf3158ed39c5fb28cb94d6e6f00c78073aba07dac7"


@pytest.mark.parametrize("size", ["[8]", "[8, 0]", "[8, 8.0]", "[8, true]", "8"])
def test_what_is_no_resolution_is_refused(size: str) -> None:
    with pytest.raises(InputError, match="height and"):
        CompressionPolicy.from_json(f'{{"schema_version": 3, "model": null, "layers": {{}}, "resolution": {size}}}')


# -- graphs and networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Small, Shuffled])
def test_a_graph_at_a_resolution_is_that_of_the_network_captured_there(kind: type[nn.Module]) -> None:
    known = network(kind)
    for size in SIZES:
        alone = PrunableNetwork(known.at(size).prune({}), torch.randn(1, 1, *size)).graph
        found = known.graph.apply(CompressionPolicy(resolution=size))
        assert (found.macs, found.params, found.input_shape) == (alone.macs, alone.params, (1, *size))
        assert [each.shape for each in found.operators] == [each.shape for each in alone.operators]
        assert found.digest == known.graph.digest
        assert found.policy().resolution == size
        assert known.graph.apply(found.policy()) == found
        assert found.at((16, 16)).resolution is None
    assert known.graph.macs > found.macs
    assert known.graph.params == found.params


@pytest.mark.parametrize("kind", [Small, Shuffled])
def test_a_network_at_a_resolution_computes_what_the_model_does(kind: type[nn.Module]) -> None:
    known = network(kind)
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(3, 1, 12, 12)
    with torch.no_grad():
        assert torch.allclose(known.at((12, 12)).prune({})(x), model(x), atol=1e-6)
    assert known.at(None) is known.at((16, 16)) is known
    assert known.at((8, 8)).at((12, 12)) is known.at((12, 12))


class Flattened(Small):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12 * 256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)).flatten(1))


class Positioned(Small):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 8, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x) + self.position).mean((2, 3)))


class Staged(Small):
    """It takes any size, but by other layers."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.head(F.relu(self.two(x) if x.shape[-1] > 8 else F.pad(x, (0, 0, 0, 0, 2, 2))).mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Flattened, "mat1 and mat2 shapes cannot be multiplied"),
        (Positioned, r"must match the size of tensor b \(16\)"),
        (Staged, "other channels of it can be pruned then"),
    ],
)
def test_a_network_made_for_one_size_is_refused_with_the_reason(kind: type[nn.Module], reason: str) -> None:
    with pytest.raises(InputError, match=f"does not take images of 8 x 8 pixels: .*{reason}"):
        network(kind, ((8, 8),))


def test_a_resolution_that_was_not_captured_is_refused() -> None:
    message = "known for images of 16 x 16, 8 x 8, 12 x 12 pixels, the policy has 10 x 10"
    for ask in (NETWORK.graph.apply, Compressor(NETWORK, None, CompressionOptions(reconstruct=False)).apply):
        with pytest.raises(InputError, match=message):
            ask(CompressionPolicy(resolution=(10, 10)))
    with pytest.raises(InputError, match="known for images of 16 x 16, 8 x 8, 12 x 12 pixels, the policy has 4 x 4"):
        build_space(NETWORK.graph, SpaceOptions(resolution=(0.25,)))


# -- spaces and prices -------------------------------------------------------------------------------------------------


def test_the_space_has_one_more_decision_of_the_whole_network() -> None:
    found = space(channels=False)
    (decision,) = found.decisions
    assert (decision.name, decision.choices) == ("resolution", (*SIZES, None))
    assert not found.channels_only
    assert found.cheapest() == CompressionPolicy(found.decode([0]).layers, NETWORK.graph.digest, (8, 8))
    assert found.decode([2]).resolution is None
    own = CompressionPolicy(resolution=(16, 16))
    assert found.encode(own).tolist() == found.encode(CompressionPolicy()).tolist() == [2]
    channels = build_space(NETWORK.graph, SpaceOptions())
    assert channels.contains(own)
    assert not channels.contains(CompressionPolicy(resolution=(8, 8)))


def every_point(found: SearchSpace, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    points = np.array([found.sample(generator) for _ in range(9)])
    points[:, 0] = np.arange(9) % 3
    return points


@pytest.mark.parametrize("accelerator", ["cpu_avx512", "bit_fusion"])
def test_points_are_priced_as_an_accelerator_prices_their_graphs(accelerator: str) -> None:
    found = space(weight_bits=(4, 8), activation_bits=(4, 8))
    backend, points = accelerator_backend(accelerator), every_point(found, np.random.default_rng(0))
    costs = point_prices(found, backend)(points)
    for index, point in enumerate(points):
        alone = accelerator_backend(accelerator).estimate(found.graph.apply(found.decode(point))).as_metrics()
        assert {metric: costs[metric][index] for metric in alone} == pytest.approx(alone, rel=1e-12)
    assert len(set(costs["modelled_latency_s"])) > 3


class PricedByTheirNames:
    """Seconds of an operator follow from its recipe."""

    def latencies(self, recipes: Sequence[Any]) -> dict[str, float]:
        return {recipe.recipe: float(len(recipe.recipe) + sum(recipe.recipe.encode()) % 997) for recipe in recipes}


@pytest.mark.parametrize("engine", ["tvm", "torch"])
def test_a_latency_table_is_asked_for_the_operators_at_each_resolution(engine: str) -> None:
    found = space()
    backend, points = (
        TableBackend(engine, found.graph, PricedByTheirNames()),
        every_point(found, np.random.default_rng(0)),
    )
    costs = point_prices(found, backend)(points)["latency_s"]
    for size, point in zip((*SIZES, (16, 16)), points[:3], strict=True):
        alone = (
            network(at=()).graph
            if size == (16, 16)
            else PrunableNetwork(NETWORK.at(size).prune({}), torch.randn(1, 1, *size)).graph
        )
        kept = found.graph.apply(found.decode(point)).kept
        assert costs[point[0]] == TableBackend(engine, alone, PricedByTheirNames()).price(kept)
        assert backend.estimate(found.graph.apply(found.decode(point))).latency_s == costs[point[0]]
    assert len(set(costs[:3])) == 3


@pytest.mark.parametrize("algorithm", ["random", "evolution", "greedy", "uniform"])
def test_searchers_decide_on_the_resolution(algorithm: str) -> None:
    found = space(channels=False, weight_bits=(4, 8))
    limit = 0.5 * found.graph.macs
    searcher = make_searcher(
        algorithm, space=found, constraint=Constraint("macs", limit), seed=0, evaluations=4, options={}
    )
    graphs = []
    for _ in range(4):
        policy = searcher.ask()
        assert found.contains(policy)
        graphs.append(found.graph.apply(policy))
        searcher.tell(policy, Evaluation(0.5, {"macs": float(graphs[-1].macs)}, 0.0, 0.0))
    assert graphs[-1].resolution == (8, 8)  # bits change no MACs
    assert graphs[-1].macs <= limit


# -- data, compression and evaluation ----------------------------------------------------------------------------------


def test_a_data_set_at_another_resolution() -> None:
    smaller = resized(DATA, (12, 12))
    assert resized(DATA, None) is resized(DATA, (16, 16)) is DATA
    assert smaller.input_shape == (1, 12, 12)
    assert smaller.digest != DATA.digest
    assert torch.equal(smaller.val[3][0], resize(DATA.val[3][0], (12, 12)))
    assert smaller.val[3][1] == DATA.val[3][1]
    batch = torch.stack([smaller.train[index][0] for index in range(4)])
    assert DATA.augment is not None
    assert smaller.augment is not None
    seen = smaller.augment(batch, torch.Generator().manual_seed(3))
    assert torch.equal(seen, resize(DATA.augment(batch, torch.Generator().manual_seed(3)), (12, 12)))


def test_images_that_are_read_one_by_one_are_resized_as_they_are_read() -> None:
    whole = replace(DATA, val=Subset(DATA.val, range(5)), augment=None)
    smaller = resized(whole, (8, 8))
    assert len(smaller.val) == 5  # type: ignore[arg-type]
    assert torch.equal(smaller.val[4][0], resized(DATA, (8, 8)).val[4][0])
    assert smaller.augment is not None
    assert smaller.augment(images(2), torch.Generator()).shape == (2, 1, 8, 8)


def test_compression_looks_at_images_of_the_policys_resolution() -> None:
    """It gives what it gives where the network was never known at another one."""
    options = CompressionOptions(calibration_images=40, recalibrate_images=30)
    layers = {"one": LayerPolicy(keep=0.5), "two": LayerPolicy(weight_bits=8, activation_bits=4)}
    torch.manual_seed(0)
    alone = PrunableNetwork(Small().eval(), torch.randn(1, 1, 8, 8))
    expected = Compressor(alone, resize(images(40), (8, 8)), options).compress(CompressionPolicy(layers))
    compressor = Compressor(NETWORK, images(40), options)
    found = compressor.compress(CompressionPolicy(layers, NETWORK.graph.digest, (8, 8)))
    whole = compressor.compress(CompressionPolicy(layers))
    states = [each.module.state_dict() for each in (found, expected, whole)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[2])
    assert found.graph.resolution == (8, 8)
    torch.manual_seed(0)
    module = compress(Small(), CompressionPolicy(layers, None, (8, 8)), torch.randn(1, 1, 16, 16), images(40), options)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(module(x), expected.module(x))


def test_a_policy_is_evaluated_at_its_resolution() -> None:
    compressor = Compressor(NETWORK, None, CompressionOptions(reconstruct=False))
    evaluator = PolicyEvaluator(compressor, DATA.val, [Constraint("macs", 1e9)], CountingBackend(), accuracy)
    whole = evaluator(CompressionPolicy())
    for size in SIZES:
        found = evaluator(CompressionPolicy(resolution=size))
        assert found.error is None
        assert found.accuracy == evaluate(NETWORK.at(size).prune({}), resized(DATA, size).val)
        assert found.cost["macs"] == NETWORK.at(size).graph.macs < whole.cost["macs"]
        assert found.divergence is not None
        assert found.divergence > (whole.divergence or 0.0)


def test_a_config_names_the_resolutions() -> None:
    """Of its space, or of the policies that it gives."""
    base = {"model": {"name": f"{__name__}:Small"}, "data": {"name": "digits", "args": {"size": 16}}}
    policy = CompressionPolicy(resolution=(8, 8)).to_json()
    given = {"algorithm": "given", "options": {"policies": [json.loads(policy)]}}
    for more in ({"space": {"resolution": [0.5]}, "budget": {"ratio": 0.5}}, {"search": given}):
        config = load_config({**base, **more})
        graph = captured(config, DATA, initial_model(config, DATA)).graph
        assert [sizes.resolution for sizes in graph.resolutions] == [(16, 16), (8, 8)]
    refused = load_config(
        {**base, "model": {"name": "lenet5"}, "space": {"resolution": [0.5]}, "budget": {"ratio": 0.5}}
    )
    with pytest.raises(InputError, match="does not take images of 8 x 8 pixels: the model cannot be run"):
        captured(refused, DATA, initial_model(refused, DATA))


def test_the_report_and_the_summary_name_it(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    write_report(directory.path)
    assert "bilinear" not in directory.report_file.read_text()
    found = directory.summary()
    found["best"]["resolution"] = [12, 16]
    directory.summary_file.write_text(json.dumps(found))
    write_report(directory.path)
    page = directory.report_file.read_text()
    assert page.count("12 x 16") == 1
    assert page.count(">as they are<") == 4
    assert "bilinear and antialiased" in page
    shown = summary_table(found)
    assert list(shown.columns[1].cells) == ["as they are", "12 x 16", *["as they are"] * 3]


class PricedByWork:
    """Seconds of an operator follow from its arithmetic."""

    def latencies(self, recipes: Sequence[Any]) -> dict[str, float]:
        return {recipe.recipe: 1e-6 + 1e-10 * recipe.work for recipe in recipes}


def test_a_latency_budget_may_be_in_reach_of_smaller_images_alone() -> None:
    base = {
        "model": {"name": f"{__name__}:Small"},
        "data": {"name": "digits", "args": {"size": 16}},
        "space": {"lower_bound": 0.75, "resolution": [0.5]},
        "budget": {"metric": "latency_s", "ratio": 0.5},
        "search": {"algorithm": "evolution"},
        "measure": {"backend": "torch"},
    }
    problem = Problem.outline(load_config(base), prices=PricedByWork())
    least = problem.space.floor([problem.constraint], point_prices(problem.space, problem.backend))
    assert problem.space.decode(least).resolution == (8, 8)
    with pytest.raises(InputError, match="the cheapest"):
        Problem.outline(load_config(base, ["space.resolution=[]"]), prices=PricedByWork())
