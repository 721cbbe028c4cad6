"""The conformance kit of low-rank methods: one subclass, and a new factorisation is tested.

class TestMine(FactorisationConformance):
    method = "mine"
"""

from abc import ABC
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from automl.compression.low_rank import METHODS, LowRankMethod, factorise, layer_spec, rank_by_energy, rank_by_ratio
from automl.compression.low_rank.layer import Layer
from automl.testing.checks import global_state, refused, require
from search_spaces.capture import PrunableNetwork
from search_spaces.factorisations import FACTORISATIONS, Rank, factors
from search_spaces.layers import LayerSpec
from search_spaces.policy import CompressionPolicy, LayerPolicy

TOLERANCE = 1e-5
"""Of the largest output, in single precision."""


class FactorisationConformance(ABC):
    """What every factorisation promises, on those layers of the kit that it fits.

    Attributes:
        method: its name in `search_spaces.factorisations.FACTORISATIONS` and `automl.compression.low_rank.METHODS`.
        tolerance: by which the squared error may rise with the rank, as a share of the weights' squares; above 0 for
            what is not the optimum.
    """

    method: str
    tolerance = 1e-10

    def layers(self) -> Iterator[tuple[str, Layer, Tensor]]:
        """(what it is, a layer, its input) of those that the method fits."""
        fitting = [each for each in _layers() if not FACTORISATIONS[self.method].unfit(layer_spec(each[1]))]
        require(bool(fitting), f"{self.method!r} fits none of the kit's layers")
        yield from fitting

    def test_it_is_registered_on_both_sides(self) -> None:
        """The arithmetic and the tensor half have the same name."""
        require(self.method in FACTORISATIONS, f"{self.method!r} is not in FACTORISATIONS")
        require(isinstance(METHODS.get(self.method), LowRankMethod), f"{self.method!r} is not in METHODS")

    def test_full_rank_reproduces_the_layer(self) -> None:
        """Nothing is lost but rounding, whatever the stride, padding and dilation."""
        for what, layer, x in self.layers():
            full = FACTORISATIONS[self.method].full(layer_spec(layer))
            expected = layer(x).detach()
            error = float((factorise(layer, self.method, full, must_save=False)(x).detach() - expected).abs().max())
            require(error <= TOLERANCE * expected.abs().max(), f"{what} at full rank {full} is off by {error}")

    def test_the_parts_are_those_that_were_counted(self) -> None:
        """Shapes, parameters and MACs of the built modules, counted by torch, against the arithmetic."""
        for what, layer, x in self.layers():
            for rank in self._ranks(layer):
                built = factorise(layer, self.method, rank, must_save=False)
                counted = factors(_spec_on(layer, x), self.method, rank, must_save=False)
                require(len(built) == len(counted), f"{what}: {len(built)} parts, counted {len(counted)}")
                y = x
                for index, (part, spec) in enumerate(zip(built, counted, strict=True)):
                    require(spec.name == f"layer.{index}", f"{what}: part {index} is named {spec.name!r}")
                    y = _check_part(f"{what}, part {index} at rank {rank}", part, spec, y)

    def test_a_policy_counts_what_is_built(self) -> None:
        """`graph.apply(policy)` against the graph of the network with the parts in it."""
        for what, layer, x in self.layers():
            (rank, *_) = self._ranks(layer)
            policy = CompressionPolicy({"0": LayerPolicy(rank=rank, factorisation=self.method)})
            network = PrunableNetwork(nn.Sequential(layer, nn.ReLU()), x, prove=False)
            said, built = network.graph.apply(policy), network.prune({})
            built.set_submodule("0", factorise(built.get_submodule("0"), self.method, rank))
            found = PrunableNetwork(built, x, prove=False).graph
            for count in ("macs", "params", "weight_bytes"):
                values = getattr(said, count), getattr(found, count)
                require(values[0] == values[1], f"{what} at rank {rank}: {count} {values[0]} said, {values[1]} built")
            sides = [
                [(each.name, each.weight_shape, each.output_size) for each in graph.layers] for graph in (said, found)
            ]
            require(sides[0] == sides[1], f"{what}: layers {sides[0]} said, {sides[1]} built")

    def test_it_exports_like_any_other(self) -> None:
        """By `torch.export`, with the same outputs."""
        for what, layer, x in self.layers():
            built = factorise(layer, self.method, self._ranks(layer)[0])
            exported = torch.export.export(built, (x,)).module()
            require(torch.allclose(exported(x), built(x), atol=1e-6), f"{what} computes something else when exported")

    def test_a_lower_rank_never_has_a_smaller_error(self) -> None:
        """Of the weights, read off the answers to unit inputs; it ends at nothing."""
        for layer, x in _receptive_fields():
            if FACTORISATIONS[self.method].unfit(layer_spec(layer)):
                continue
            layer = layer.double()
            whole = layer(x).detach()
            errors = [
                float((factorise(layer, self.method, rank, must_save=False)(x).detach() - whole).square().sum())
                for rank in self._all_ranks(layer)
            ]
            slack = self.tolerance * float(whole.square().sum())
            require(
                all(high <= low + slack for low, high in pairwise(errors)),
                f"the squared error rises with the rank: {errors}",
            )
            require(errors[-1] <= slack, f"an error {errors[-1]} is left at full rank")

    def test_zero_weights_stay_zero(self) -> None:
        """A dead layer is one, too."""
        for what, layer, x in self.layers():
            with torch.no_grad():
                layer.weight.zero_()
            require(torch.equal(factorise(layer, self.method, self._ranks(layer)[0])(x), layer(x)), f"{what} of zeros")

    def test_the_module_and_the_process_stay_as_they_were(self) -> None:
        """Weights, mode, gradients' flags and the global generators; the result has tensors of its own."""
        for what, layer, _ in self.layers():
            layer.requires_grad_(False).train()
            state = {name: value.clone() for name, value in layer.state_dict().items()}
            before = global_state()
            built = factorise(layer, self.method, self._ranks(layer)[0])
            require(global_state() == before, "a global generator or the number of threads was changed")
            require(layer.training and all(part.training for part in built.modules()), f"{what}: the mode was changed")
            require(not any(each.requires_grad for each in built.parameters()), f"{what}: frozen weights are trained")
            with torch.no_grad():
                for parameter in built.parameters():
                    parameter.zero_()
            require(
                all(torch.equal(value, state[name]) for name, value in layer.state_dict().items()),
                f"{what} was changed",
            )

    def test_it_gives_the_same_every_time(self) -> None:
        """To the bit."""
        for what, layer, _ in self.layers():
            rank = self._ranks(layer)[0]
            first, second = (factorise(layer, self.method, rank).state_dict() for _ in range(2))
            require(all(torch.equal(first[name], second[name]) for name in first), f"{what} differs the second time")

    def test_types_are_kept(self) -> None:
        """Weights in another precision give parts in it."""
        for what, layer, _ in self.layers():
            for dtype in (torch.float64, torch.bfloat16):
                built = factorise(layer.to(dtype), self.method, self._ranks(layer)[0])
                require(all(each.dtype == dtype for each in built.parameters()), f"{what}: {dtype} was not kept")

    def test_ranks_by_energy_and_by_ratio(self) -> None:
        """All energy at some rank, more energy never at a lower one; no more weights than the ratio."""
        for what, layer, _ in self.layers():
            spec, full = layer_spec(layer), FACTORISATIONS[self.method].full(layer_spec(layer))
            ladder = [rank_by_energy(layer.weight, self.method, energy) for energy in (0.3, 0.6, 0.9, 1.0)]
            require(
                all(_above(high, low) for low, high in zip(ladder, [*ladder[1:], full], strict=True)),
                f"{what}: ranks {ladder} for more and more energy, of {full}",
            )
            for ratio in (0.4, 0.7):
                rank = rank_by_ratio(spec, self.method, ratio)
                weights = sum(part.weights for part in factors(spec, self.method, rank))
                require(weights <= ratio * spec.weights, f"{what}: rank {rank} for {ratio} has {weights} weights")

    def test_bad_ranks_are_refused_in_one_line(self) -> None:
        """Nothing of the layer is changed."""
        for what, layer, _ in self.layers():
            state = {name: value.clone() for name, value in layer.state_dict().items()}
            full, rank = FACTORISATIONS[self.method].full(layer_spec(layer)), self._ranks(layer)[0]
            bad: list[tuple[str, Any]] = [
                ("above the layer's", tuple(each + 1 for each in full)),
                ("that saves nothing", full),
                ("of zero", tuple(0 for _ in full)),
                ("that is missing", ()),
                ("with one too many", (*rank, 1)),
                ("that is no whole number", tuple(float(each) for each in rank)),
            ]
            for why, given in bad:
                refused(factorise, layer, self.method, given, what=f"{what}, rank {why}: {given}")
            refused(factorise, layer, self.method + "x", rank, what=f"{what}, unknown method")
            for share in (0.0, -0.5, 1.5, float("nan")):
                refused(rank_by_energy, layer.weight, self.method, share, what=f"{what}, energy {share}")
                refused(rank_by_ratio, layer_spec(layer), self.method, share, what=f"{what}, ratio {share}")
            require(
                all(torch.equal(value, state[name]) for name, value in layer.state_dict().items()),
                f"{what} was changed",
            )

    def test_weights_that_are_not_finite_are_refused_in_one_line(self) -> None:
        """One of them is enough."""
        for what, layer, _ in self.layers():
            for value in (float("nan"), float("inf")):
                with torch.no_grad():
                    layer.weight.view(-1)[3] = value
                refused(factorise, layer, self.method, self._ranks(layer)[0], what=f"{what}, weights with {value}")
                refused(rank_by_energy, layer.weight, self.method, 0.5, what=f"{what}, weights with {value}")

    def _ranks(self, layer: Layer) -> list[Rank]:
        """One that saves, and the full one."""
        spec = layer_spec(layer)
        return [rank_by_ratio(spec, self.method, 0.6), FACTORISATIONS[self.method].full(spec)]

    def _all_ranks(self, layer: Layer) -> list[Rank]:
        """From the lowest to the full, in proportion."""
        found, spec = FACTORISATIONS[self.method], layer_spec(layer)
        full = found.full(spec)
        steps = range(1, max(full) + 1)
        return [found.usable(spec, tuple(max(1, step * each // max(full)) for each in full)) for step in steps]


def _layers() -> Iterator[tuple[str, Layer, Tensor]]:
    """(what it is, a layer in evaluation mode, an input)."""
    generator = torch.Generator().manual_seed(0)
    layers: list[tuple[str, Layer, tuple[int, ...]]] = [
        ("a linear layer", nn.Linear(24, 20), (3, 24)),
        ("a linear layer on tokens", nn.Linear(16, 40, bias=False), (2, 5, 16)),
        ("a 1 x 1 convolution", nn.Conv2d(16, 24, 1), (2, 16, 5, 4)),
        ("a convolution with a stride", nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 9, 9)),
        ("an oblong one", nn.Conv2d(6, 10, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(2, 1)), (2, 6, 11, 8)),
        ("one with padding 'same'", nn.Conv2d(8, 8, (3, 5), padding="same", bias=False), (1, 8, 6, 7)),
        ("one that pads by reflection", nn.Conv2d(8, 10, 3, padding=1, padding_mode="reflect"), (2, 8, 6, 6)),
        ("one over time", nn.Conv1d(12, 16, 5, stride=2, padding=2), (2, 12, 11)),
    ]
    for what, layer, shape in layers:
        yield what, _drawn(layer, generator), torch.randn(shape, generator=generator)


def _receptive_fields() -> Iterator[tuple[Layer, Tensor]]:
    """Layers, and inputs whose answers are all of their weights."""
    generator = torch.Generator().manual_seed(1)
    linear, conv = nn.Linear(10, 14, bias=False), nn.Conv2d(6, 9, (3, 2), bias=False)
    yield _drawn(linear, generator), torch.eye(10, dtype=torch.float64)
    yield _drawn(conv, generator), torch.eye(36, dtype=torch.float64).reshape(36, 6, 3, 2)


def _drawn(layer: Layer, generator: torch.Generator) -> Layer:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.empty_like(parameter).normal_(std=0.1, generator=generator))
    layer.eval()
    return layer


def _spec_on(layer: Layer, x: Tensor) -> LayerSpec:
    """A layer as it is called on that input."""
    y = layer(x)
    spec = layer_spec(layer)
    sizes = (tuple(x.shape[2:]), tuple(y.shape[2:])) if spec.kind == "conv" else ((), ())
    return replace(spec, input_size=sizes[0], output_size=sizes[1], positions=y.numel() // (len(y) * spec.out_channels))


def _check_part(what: str, part: nn.Module, spec: LayerSpec, x: Tensor) -> Tensor:
    """Its output; what torch counts of it stands in its spec."""
    with FlopCounterMode(display=False) as counter:
        y: Tensor = part(x)
    (weight, *_), params = part.parameters(), sum(each.numel() for each in part.parameters())
    require(tuple(weight.shape) == spec.weight_shape, f"{what}: weights {list(weight.shape)}, not {spec.weight_shape}")
    require(params == spec.params, f"{what}: {params} parameters, counted {spec.params}")
    macs = counter.get_total_flops() // 2
    require(macs == spec.macs * len(x), f"{what}: {macs} MACs, counted {spec.macs} of {len(x)} inputs")
    if spec.kind == "conv":
        sizes = tuple(x.shape[2:]), tuple(y.shape[2:])
        require(sizes == (spec.input_size, spec.output_size), f"{what}: sizes {sizes}, not those of {spec}")
    return y


def _above(high: Rank, low: Rank) -> bool:
    return all(one >= other for one, other in zip(high, low, strict=True))
