"""The conformance kit of importance criteria: one subclass, and a new criterion is tested.

class TestMine(ImportanceConformance):
    def make(self):
        return Criterion(my_score)
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from automl.compression.importance.base import Criterion, FloatArray, ImportanceInputs
from automl.testing.checks import global_state, require
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError

CLASSES = 5
IMAGES = 12


class ProbeNetwork(nn.Module):
    """A stream that two layers make and two read, a group inside its branch with a depthwise carrier, batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 8, 1)
        self.inner_norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.outer = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.outer_norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, 6, 6] -> logits [N, classes]."""
        x = self.stem_norm(self.stem(x)).relu()
        branch = self.depthwise(self.inner_norm(self.inner(x)).relu()).relu()
        x = (x + self.outer_norm(self.outer(branch))).relu()
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


_NORM = ("weight", "bias", "running_mean", "running_var")
UNIT_AXES: Mapping[str, Mapping[str, int]] = {
    "stem": {
        **{f"{norm}.{name}": 0 for norm in ("stem_norm", "outer_norm") for name in _NORM},
        "stem.weight": 0,
        "outer.weight": 0,
        "inner.weight": 1,
        "fc.weight": 1,
    },
    "inner": {
        **{f"inner_norm.{name}": 0 for name in _NORM},
        "inner.weight": 0,
        "inner.bias": 0,
        "depthwise.weight": 0,
        "depthwise.bias": 0,
        "outer.weight": 1,
    },
}
"""For each channel group of `ProbeNetwork`, the tensors that have an entry for each unit, and along which axis."""


def probe_network(seed: int = 0) -> ProbeNetwork:
    """A `ProbeNetwork` with random weights, batch norms included, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        model = ProbeNetwork().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                positive = "norm" in name and not name.endswith(("bias", "running_mean"))
                tensor.copy_(0.5 + noise.abs() if positive else noise / max(1.0, tensor[0].numel() ** 0.5))
    return model


def probe_inputs(model: ProbeNetwork, *, seed: int = 0) -> ImportanceInputs:
    """A captured `ProbeNetwork` with the weights of the model, and random images and labels that depend on `seed`."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(IMAGES, 3, 6, 6, generator=generator)
    labels = torch.randint(CLASSES, (IMAGES,), generator=generator)
    network = _captured()
    original = network.prune({})
    original.load_state_dict(model.state_dict(), strict=False)  # nothing counts a batch norm's batches here
    return ImportanceInputs(network, original, images, labels, seed)


@cache
def _captured() -> PrunableNetwork:
    """Capture takes longer than all else, and what it gives does not depend on the weights."""
    return PrunableNetwork(probe_network(), torch.zeros(2, 3, 6, 6))


class ImportanceConformance(ABC):
    """What every criterion promises, on a small network with a residual stream and a depthwise layer.

    Attributes:
        by_unit: whether a unit's score follows from what the unit is, wherever it stands in its group.
        zero_is_least: whether a unit whose weights are all zero comes last.
    """

    by_unit = True
    zero_is_least = True

    @abstractmethod
    def make(self) -> Criterion:
        """The criterion."""

    def test_every_unit_of_every_group_has_a_finite_score(self) -> None:
        """And no other group has any."""
        inputs = probe_inputs(probe_network())
        scores = self.make().score(inputs)
        widths = {group.name: group.width for group in inputs.network.graph.groups}
        require(set(widths) == set(UNIT_AXES), f"the kit's network has the groups {sorted(widths)}")
        require(set(scores) == set(widths), f"scores of {sorted(scores)}, the groups are {sorted(widths)}")
        for name, score in scores.items():
            require(score.shape == (widths[name],), f"{name!r} has {widths[name]} units and scores {score.shape}")
            require(score.dtype == np.float64, f"scores are float64, got {score.dtype}")
            require(bool(np.isfinite(score).all()), f"scores of {name!r} are not finite")

    def test_the_same_inputs_give_the_same_scores(self) -> None:
        """Bit for bit, whatever was scored before."""
        criterion, inputs = self.make(), probe_inputs(probe_network())
        first = criterion.score(inputs)
        criterion.score(probe_inputs(probe_network(seed=1), seed=1))
        require(_equal(first, criterion.score(inputs)), "scored twice, other scores")
        require(_equal(first, self.make().score(probe_inputs(probe_network()))), "another instance, other scores")

    def test_units_tell_units_apart(self) -> None:
        """Scores that are all the same rank nothing."""
        scores = self.make().score(probe_inputs(probe_network()))
        for name, score in scores.items():
            require(len(np.unique(score)) > 1, f"all units of {name!r} have the score {score[0]}")

    def test_permuted_units_have_permuted_scores(self) -> None:
        """In each group, with all tensors that have an entry for each unit; the other groups keep their scores."""
        if not self.by_unit:
            return
        criterion = self.make()
        before = criterion.score(probe_inputs(probe_network()))
        for group, axes in UNIT_AXES.items():
            model = probe_network()
            order = torch.randperm(len(before[group]), generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                for name, axis in axes.items():
                    tensor = model.state_dict()[name]
                    tensor.copy_(tensor.index_select(axis, order))
            after = criterion.score(probe_inputs(model))
            for name, score in after.items():
                wanted = before[name][order.numpy()] if name == group else before[name]
                require(np.allclose(score, wanted, rtol=1e-3, atol=1e-6), f"{group!r} permuted: {name!r} is off")

    def test_a_unit_of_zeros_comes_last(self) -> None:
        """Where all its weights and its batch norms' scales and shifts are zero."""
        if not self.zero_is_least:
            return
        for group, axes in UNIT_AXES.items():
            for unit in (0, 3):
                model = probe_network()
                with torch.no_grad():
                    for name, axis in axes.items():
                        if not name.endswith("running_var"):
                            model.state_dict()[name].select(axis, unit).zero_()
                score = self.make().score(probe_inputs(model))[group]
                require(int(score.argmin()) == unit, f"unit {unit} of {group!r} is zero, but {score.argmin()} is last")

    def test_scores_keep_their_order_across_groups(self) -> None:
        """`across` only puts them on another scale."""
        criterion = self.make()
        for name, score in criterion.score(probe_inputs(probe_network())).items():
            scaled = criterion.across(score)
            require(bool(np.isfinite(scaled).all()), f"scores of {name!r} are not finite across groups")
            require(
                np.array_equal(np.argsort(score), np.argsort(scaled)), f"{name!r} is ranked otherwise across groups"
            )
            require(
                bool(np.isfinite(criterion.across(np.zeros(4))).all()), "scores of zero are not finite across groups"
            )

    def test_nothing_is_changed(self) -> None:
        """Weights, gradients, hooks, mode, images, global generators and threads."""
        inputs = probe_inputs(probe_network())
        assert inputs.images is not None
        state = {name: tensor.clone() for name, tensor in inputs.original.state_dict().items()}
        images, generators = inputs.images.clone(), global_state()
        self.make().score(inputs)
        require(global_state() == generators, "a global generator or the number of threads was changed")
        require(torch.equal(images, inputs.images), "the images were changed")
        for name, tensor in inputs.original.state_dict().items():
            require(torch.equal(tensor, state[name]), f"{name!r} was changed")
        for name, parameter in inputs.original.named_parameters():
            require(parameter.grad is None and parameter.requires_grad, f"{name!r} has a gradient, or can have none")
        for name, module in inputs.original.named_modules():
            require(not module.training, f"{name!r} is in training mode")
            require(not (module._forward_hooks or module._forward_pre_hooks), f"{name!r} has a hook left")

    def test_data_that_do_not_fit_are_refused(self) -> None:
        """By an `InputError` of one line; a criterion that needs no data must not look at them."""
        criterion, good = self.make(), probe_inputs(probe_network())
        assert good.images is not None
        assert good.labels is not None
        bad = {
            "no images": replace(good, images=None),
            "no labels": replace(good, labels=None),
            "images of another shape": replace(good, images=torch.zeros(IMAGES, 3, 7, 6)),
            "images of NaN": replace(good, images=good.images * float("nan")),
            "images of whole numbers": replace(good, images=good.images.long()),
            "no image at all": replace(good, images=good.images[:0], labels=good.labels[:0]),
            "too few labels": replace(good, labels=good.labels[1:]),
            "labels of another shape": replace(good, labels=good.labels[:, None].expand(-1, 2)),
            "negative labels": replace(good, labels=good.labels - CLASSES),
            "labels of an unknown class": replace(good, labels=good.labels + CLASSES),
            "labels that are no whole numbers": replace(good, labels=good.labels.float()),
        }
        for what, inputs in bad.items():
            try:
                criterion.score(inputs)
                require(not criterion.labelled, f"{what}: accepted")
            except InputError as error:
                require(criterion.labelled, f"{what}: refused, though the criterion says that it needs no data")
                require("\n" not in str(error), f"{what}: the error has several lines")


def _equal(first: Mapping[str, FloatArray], second: Mapping[str, FloatArray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)
