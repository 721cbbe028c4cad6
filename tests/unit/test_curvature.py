"""Losses by the Hessian: the estimated trace against the exact one, and what a space's choices lose by it."""

import numpy as np
import pytest
import torch
from torch import nn

from automl.compression import CompressionOptions, Compressor
from automl.compression.curvature import curvature_losses, mean_traces
from automl.compression.importance.taylor import cross_entropy
from automl.compression.quantisation import quantise
from automl.searchers import make_searcher
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.number_formats import NumberFormat
from search_spaces.objective import Constraint


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)
    ).eval()


IMAGES = torch.randn(24, 2, 6, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(24) % 3


def exact_mean_trace(module: nn.Module, weight: nn.Parameter) -> float:
    loss = cross_entropy(module(IMAGES), LABELS).mean()
    (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
    rows = [torch.autograd.grad(each, weight, retain_graph=True)[0].flatten() for each in gradient.flatten()]
    return float(torch.stack(rows).diagonal().mean())


def test_the_estimated_trace_is_the_hessians() -> None:
    module = network()
    weights = {name: parameter for name, parameter in module.named_parameters() if name.endswith("weight")}
    found = mean_traces(module, weights, IMAGES, LABELS, draws=400)
    for name, parameter in weights.items():
        assert found[name] == pytest.approx(exact_mean_trace(module, parameter), rel=0.15)
        assert parameter.grad is None
    assert mean_traces(module, weights, IMAGES, LABELS) == mean_traces(module, weights, IMAGES, LABELS)


def test_a_choice_loses_the_trace_times_the_squared_distance() -> None:
    prunable = PrunableNetwork(network(), IMAGES[:1])
    options = CompressionOptions(reconstruct=False)
    compressor = Compressor(prunable, IMAGES, options, LABELS)
    space = build_space(
        prunable.graph,
        SpaceOptions(weight_bits=(2, 4, None), sparsity=(0.5,), rank=(0.25,), ends=True, round_to=1),
    )
    losses = curvature_losses(compressor, space, IMAGES, LABELS)
    assert [len(loss) for loss in losses] == space.counts.tolist()
    whole = prunable.prune({})
    weights = {layer.name: whole.get_parameter(f"{layer.name}.weight") for layer in prunable.graph.layers}
    found = mean_traces(whole, weights, IMAGES, LABELS)
    typical = float(np.median(np.abs(list(found.values()))))
    traces = {name: max(trace, 0.01 * typical) for name, trace in found.items()}
    expected = {"weight_bits": {}, "sparsity": {}, "rank": {}}  # type: dict[str, dict[str, float]]
    for name, weight in weights.items():
        data = weight.detach()
        rounded = quantise(data, NumberFormat(bits=2)).values
        expected["weight_bits"][name] = traces[name] * float((rounded - data).square().sum())
        smallest = data.flatten().abs().sort().values[: data.numel() // 2]
        expected["sparsity"][name] = traces[name] * float(smallest.square().sum())
    for decision, loss in zip(space.decisions, losses, strict=True):
        assert loss[-1] == 0.0
        assert (np.diff(loss) < 0.0).all()
        (target,) = decision.targets
        if decision.dimension in ("weight_bits", "sparsity"):
            assert loss[0] == pytest.approx(expected[decision.dimension][target], rel=1e-4)
        elif decision.dimension == "channels":
            rows = weights[target].detach().square().flatten(1).sum(1)
            kept = compressor.kept(space.decode(np.where(space.greatest > 0, 0, 0)))[target]
            gone = sorted(set(range(len(rows))) - set(kept))
            assert loss[0] == pytest.approx(traces[target] * float(rows[gone].sum()), rel=1e-5)
        else:  # Eckart and Young: what a truncated decomposition leaves out are the least singular values
            data = weights[target].detach().flatten(1)
            factorisation, rank = decision.choices[0]
            assert factorisation == "svd"
            left_out = torch.linalg.svdvals(data)[rank if isinstance(rank, int) else rank[0] :]
            assert loss[0] == pytest.approx(traces[target] * float(left_out.square().sum()), rel=1e-3)


def test_the_exact_searcher_takes_the_losses_and_measures_none() -> None:
    graph = PrunableNetwork(network(), IMAGES[:1]).graph
    space = build_space(graph, SpaceOptions(channels=False, weight_bits=(2, 4, 8), ends=True))
    limit = Constraint("weight_bytes", 0.2 * graph.weight_bytes)
    arguments = {"space": space, "constraint": limit, "seed": 0, "evaluations": 20}
    losses = [np.array([2.0, 1.0, 0.0])] * len(space.decisions)
    searcher = make_searcher("exact", **arguments, options={"sensitivity": "hessian"}, prior=losses)  # type: ignore[arg-type]
    assert space.contains(searcher.ask())
    assert searcher.share == 1.0
    with pytest.raises(InputError, match="these are of another space"):
        make_searcher("exact", **arguments, prior=losses[1:])  # type: ignore[arg-type]
    wide = build_space(graph, SpaceOptions(weight_bits=(2, 4), activation_bits=(4, 8), ends=True))
    with pytest.raises(InputError, match=r"says nothing of '0.activation_bits'"):
        make_searcher("exact", **{**arguments, "space": wide}, options={"sensitivity": "hessian"})  # type: ignore[arg-type]
