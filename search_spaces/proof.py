"""Proof of the channel groups: the pruned network must equal the whole one with the same channels zeroed.

The twin is the model itself, not what was made of it: where layers read a removed channel, the weights they read it
with are set to zero. Both get random weights and calibrated batch norms first, so that nothing hides an error (a
fresh residual branch may be scaled by zero, an untrained deep network may forget its input).
"""

import contextlib
import copy
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces.channels import ChannelStructure
from search_spaces.errors import InputError
from search_spaces.labels import IntArray
from search_spaces.rebuild import build, with_tensors
from search_spaces.template import BatchNorm, Conv, Template
from search_spaces.trace import first_line

TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest output."""

Kept = Mapping[int, IntArray]


def prove(structure: ChannelStructure, model: nn.Module, example_input: Tensor) -> ChannelStructure:
    """The structure with the groups that fail the proof refused.

    Each group loses its lowest, middle and highest unit, all groups at once, then all units but one; where that fails,
    bisection finds the culprits.

    Raises:
        InputError: not even the network that keeps everything gives the model's output.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if structure.template.any_batch and len(example_input) == 1:
            example_input = example_input.expand(2, *example_input.shape[1:])
        bench = _Bench(structure.template, model, example_input)
        failure = bench.compare(structure, {})
        if failure:
            raise InputError(
                f"the captured network does not reproduce the model: {failure}; its forward may be random or depend on "
                "the values of its input"
            )
        refused: dict[int, str] = {}
        while structure.groups:
            trials = [_edges(structure), _singles(structure)]
            failed = _culprits(structure, trials, bench, list(range(len(structure.groups))))
            if not failed:
                break
            for group, reason in failed.items():
                refused.update(dict.fromkeys(structure.members[group], reason))
            structure = ChannelStructure(structure.template, structure.labels, refused)
        return structure


def _edges(structure: ChannelStructure) -> dict[int, IntArray]:
    """Without the lowest, the middle and the highest unit of each group; at least one stays."""
    kept = {}
    for index, group in enumerate(structure.groups):
        removed = sorted({0, group.width // 2, group.width - 1})[: group.width - 1]
        kept[index] = np.setdiff1d(np.arange(group.width), removed)
    return kept


def _singles(structure: ChannelStructure) -> dict[int, IntArray]:
    """The middle unit of each group alone."""
    return {index: np.array([group.width // 2]) for index, group in enumerate(structure.groups)}


def _culprits(
    structure: ChannelStructure, trials: list[dict[int, IntArray]], bench: "_Bench", groups: list[int]
) -> dict[int, str]:
    """Which of the groups fail, by bisection: group index -> reason."""
    failures = (bench.compare(structure, {index: kept[index] for index in groups}) for kept in trials)
    reason = next((failure for failure in failures if failure), None)
    if reason is None:
        return {}
    middle = len(groups) // 2
    found: dict[int, str] = {}
    if middle:
        for half in (groups[:middle], groups[middle:]):
            found.update(_culprits(structure, trials, bench, half))
    # halves that only fail together: the latter has to stay
    return found or dict.fromkeys(groups[middle:], f"pruning them fails the proof: {reason}")


class _Bench:
    """The model and its template with the same random weights."""

    def __init__(self, template: Template, model: nn.Module, example_input: Tensor) -> None:
        self.model, self.x = copy.deepcopy(model).eval(), _noise_like(example_input)
        _randomise(self.model)
        _calibrate(self.model, self.x)
        if not bool(torch.isfinite(self.model(self.x)).all()):  # outside of what the network can compute with
            self.model, self.x = copy.deepcopy(model).eval(), example_input.detach()
        self.template = _with_tensors_of(template, self.model)
        self.double: _Bench | None = None

    def compare(self, structure: ChannelStructure, kept: Kept) -> str | None:
        """How the pruned network differs from its zeroed twin; None where it does not."""
        try:
            pruned = build(structure, self.template, kept)(self.x)
        except Exception as error:  # whatever a wrong shape makes torch raise
            return f"the pruned network cannot be run: {first_line(error)}"
        difference = _difference(pruned, self._zeroed(structure, kept))
        if difference <= TOLERANCE:
            return None
        wide = self._widened()  # rounding or a wrong channel?
        if wide is not None:
            return wide.compare(structure, kept)
        return f"outputs differ by {difference:.1e} of the largest"

    def _zeroed(self, structure: ChannelStructure, kept: Kept) -> Tensor:
        """Output of the model where no layer reads a removed channel."""
        alive = structure.alive(kept)
        saved: list[tuple[Tensor, Tensor]] = []
        for name, sides in structure.labels.layers.items():
            dead = np.flatnonzero(~alive[structure.unit_ids(sides.inputs)])
            if not len(dead) or structure.depthwise(name):
                continue
            owner, _, key = structure.template.weight_name(name).rpartition(".")
            module = self.model.get_submodule(owner)
            weight: Tensor = getattr(module, key)
            saved.append((weight, weight.clone()))
            groups = module.groups if isinstance(module, Conv) else 1
            blocks = weight.view(groups, weight.shape[0] // groups, *weight.shape[1:])
            owners, columns = np.divmod(dead, weight.shape[1])
            blocks[torch.from_numpy(owners), :, torch.from_numpy(columns)] = 0
        try:
            return self.model(self.x)  # type: ignore[no-any-return]
        finally:
            for weight, before in saved:
                weight.copy_(before)

    def _widened(self) -> "_Bench | None":
        """The same in double precision; None where it is that already, or the model cannot be run so."""
        if all(tensor.dtype == torch.float64 for tensor in self.model.parameters()):
            return None
        if self.double is None:
            wide = copy.copy(self)
            wide.model = copy.deepcopy(self.model).double()
            wide.x = self.x.double() if self.x.is_floating_point() else self.x
            try:
                wide.model(wide.x)
            except Exception:  # a dtype fixed in its code: single precision has to do
                return None
            wide.template = _with_tensors_of(self.template, wide.model)
            self.double = wide
        return self.double


def _difference(pruned: Tensor, twin: Tensor) -> float:
    if pruned.shape != twin.shape:
        return float("inf")
    error = float((pruned - twin).abs().max() / twin.abs().max().clamp_min(1e-30))
    return error if np.isfinite(error) else float("inf")


def _with_tensors_of(template: Template, model: nn.Module) -> Template:
    tensors: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    tensors.update(model.named_parameters(remove_duplicate=False))
    return with_tensors(template, tensors)


def _noise_like(example_input: Tensor) -> Tensor:
    """An input in which all positions differ; whole numbers, which mean something, are left as they are."""
    if not example_input.is_floating_point():
        return example_input
    noise = torch.randn(example_input.shape, generator=torch.Generator().manual_seed(1))
    return noise.to(example_input)


def _randomise(model: nn.Module) -> None:
    """Weights that pass their input's variance on; everything of one dimension near one or near zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1 and name.endswith("weight"):
            values = noise * (2.0 / parameter[0].numel()) ** 0.5
        elif name.endswith("weight"):
            values = 1.0 + 0.2 * noise.clamp(-2, 2)
        else:
            values = 0.2 * noise
        parameter.data.copy_(values)


def _calibrate(model: nn.Module, x: Tensor) -> None:
    """Give every batch norm the statistics of the example, so that each layer's input stays in range."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with contextlib.suppress(ValueError):  # one value per channel has no variance
        model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
        if norm.running_var is not None:
            norm.running_var.clamp_(min=0.01)
