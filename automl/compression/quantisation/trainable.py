"""Quantisers that are in force while a network is fine-tuned, and become plain numbers afterwards.

| class | learns | source |
|---|---|---|
| `StraightThrough` | the weights, of any scheme, through tanh under "dorefa" | arXiv 1606.06160 |
| `LearnedWeightStep`, `LearnedActivationStep` | the step between levels, too (LSQ) | Esser et al., ICLR 2020 |
| `LearnedClip` | the largest activation (PACT) | Choi et al., arXiv 1805.06085 |

Those for weights are parametrisations (`torch.nn.utils.parametrize`); `fold(weight)` gives the `Quantised` weight whose
values are, bit for bit, what `forward` gave. Those for activations take the place of an `ActivationQuantiser` (which
passes gradients itself, and learns nothing), and `fold()` gives one that computes the same.
"""

import torch
from torch import Tensor, nn

from automl.compression.quantisation.activations import ActivationQuantiser, UniformActivation
from automl.compression.quantisation.base import Quantised
from automl.compression.quantisation.dorefa import squash
from automl.compression.quantisation.granularity import join, rows_of, split
from automl.compression.quantisation.registry import dequantise, quantise
from automl.compression.quantisation.straight_through import straight_through
from automl.compression.quantisation.uniform import TINY, Grid, code_range, middle
from search_spaces.errors import InputError
from search_spaces.number_formats import NumberFormat


class StraightThrough(nn.Module):
    """Weights quantised anew at every step, by any scheme; gradients pass through the rounding.

    Args:
        format: of the weights.
        mask: True for the weights that stay; the others are zero and get no gradient.
        method: as of `quantise`.
    """

    mask: Tensor | None

    def __init__(self, format: NumberFormat, mask: Tensor | None = None, method: str = "min_max") -> None:
        super().__init__()
        self.format, self.method = format, method
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """[out, ...] -> quantised values of that shape."""
        found = self.fold(weight)
        smooth = _masked(weight, self.mask)
        if self.format.scheme == "dorefa":
            scale = found.side["scale"][:, None]
            smooth = _masked(join(squash(split(smooth, self.format.granularity)) * scale, weight.shape), self.mask)
        return straight_through(smooth, found.values)

    def fold(self, weight: Tensor) -> Quantised:
        """The weights as they are stored."""
        return quantise(weight, self.format, mask=self.mask, method=self.method)


class _LearnedStep(nn.Module):
    """Learned step size quantisation: what weights and activations have in common.

    Attributes:
        step: the parameter, [sets, 1]; its magnitude is the scale.
        zero_point: code of zero, int64, a buffer without axes.
    """

    zero_point: Tensor

    def __init__(self, format: NumberFormat, scale: Tensor, zero_point: int) -> None:
        super().__init__()
        self.format = format
        self.least, self.most = code_range(format.bits, format.scheme == "symmetric")
        self.step = nn.Parameter(scale.detach().clone().reshape(-1, 1))
        self.register_buffer("zero_point", torch.tensor(zero_point))

    def _scale(self) -> Tensor:
        return self.step.abs().clamp(min=TINY)

    def _steps(self, rows: Tensor, scale: Tensor) -> Tensor:
        """Numbers in units of the scale, clipped."""
        low, high = self.least - self.zero_point, self.most - self.zero_point
        return torch.minimum(torch.maximum(rows / scale, low), high)

    def _levels(self, rows: Tensor, numbers: float) -> Tensor:
        """[sets, size] -> levels; gradients of the step are scaled by 1 / sqrt(numbers * levels on a side), so that it
        moves as fast as the weights do."""
        largest = max(self.most - int(self.zero_point), 1)
        scale = self._scale()
        slowed = scale * (numbers * largest) ** -0.5
        scale = straight_through(slowed, scale)
        steps = self._steps(rows, scale)
        return straight_through(steps, steps.round()) * scale


class LearnedWeightStep(_LearnedStep):
    """Weights on a symmetric uniform grid whose steps are learned.

    It starts from the paper's step, 2 mean |w| / sqrt(levels on a side).

    Args:
        weight: to start from.
        format: of the scheme "symmetric".
        mask: True for the weights that stay; the others are zero and get no gradient.

    Raises:
        InputError: another scheme.
    """

    mask: Tensor | None

    def __init__(self, weight: Tensor, format: NumberFormat, mask: Tensor | None = None) -> None:
        if format.scheme != "symmetric":
            raise InputError(f"a learned step of weights is for the scheme 'symmetric', got {format.scheme!r}")
        rows = rows_of(weight, mask, format.granularity)
        scale = 2 * rows.mean(rows.values.abs()) / (middle(format.bits) - 1) ** 0.5
        super().__init__(format, torch.where(scale > 0, scale.clamp(min=TINY), 1.0).float(), middle(format.bits))
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """[out, ...] -> levels of that shape."""
        rows = split(_masked(weight, self.mask), self.format.granularity)
        return join(self._levels(rows, rows.shape[1]), weight.shape)

    def fold(self, weight: Tensor) -> Quantised:
        """The weights as they are stored."""
        scale = self._scale().detach()
        rows = split(_masked(weight.detach(), self.mask), self.format.granularity)
        codes = join(self._steps(rows, scale).round().long() + self.zero_point, weight.shape)
        side = {"scale": scale[:, 0]}
        return Quantised(dequantise(codes, side, self.format, self.mask), codes, side, self.format, self.mask)


class LearnedActivationStep(_LearnedStep):
    """Activations on a uniform grid whose step is learned; its zero point stays as it was calibrated.

    Args:
        quantiser: to start from, of a scheme with equally spaced levels.

    Raises:
        InputError: another scheme.
    """

    def __init__(self, quantiser: ActivationQuantiser) -> None:
        found = _uniform(quantiser)
        super().__init__(found.format, found.scale, int(found.zero_point))

    def forward(self, x: Tensor) -> Tensor:
        """[N, ...] -> levels of that shape."""
        return self._levels(x.reshape(1, -1), x.numel() / max(len(x), 1)).reshape(x.shape)

    def fold(self) -> UniformActivation:
        """The quantiser with the step that was learned, in eval mode."""
        grid = Grid(self._scale().detach(), self.zero_point, self.least, self.most)
        return UniformActivation(self.format, grid).eval()


class LearnedClip(nn.Module):
    """Parameterised clipping activation (PACT): values of at least zero, up to a bound that is learned.

    The gradient of the bound is that of the values beyond it. The paper decays it as it does weights.

    Args:
        quantiser: to start from, of a scheme with equally spaced levels whose lowest is zero.

    Raises:
        InputError: another scheme, or levels below zero.
    """

    def __init__(self, quantiser: ActivationQuantiser) -> None:
        super().__init__()
        found = _uniform(quantiser)
        if int(found.zero_point) != found.least:
            raise InputError(
                "a learned clip is for values from zero up, such as a ReLU gives, and this quantiser has levels below "
                "zero; learn its step instead"
            )
        self.format = found.format
        self.bound = nn.Parameter(found.scale.detach() * (found.most - found.least))

    def forward(self, x: Tensor) -> Tensor:
        """Values of any shape -> levels of that shape."""
        return straight_through(torch.minimum(torch.relu(x), self.bound), self.fold()(x))

    def fold(self) -> UniformActivation:
        """The quantiser with the bound that was learned, in eval mode."""
        bound = self.bound.detach().double()
        return UniformActivation(
            self.format, Grid.spanning(torch.zeros_like(bound), bound, self.format.bits, symmetric=False)
        ).eval()


def _masked(weight: Tensor, mask: Tensor | None) -> Tensor:
    return weight if mask is None else weight * mask


def _uniform(quantiser: ActivationQuantiser) -> UniformActivation:
    if not isinstance(quantiser, UniformActivation):
        raise InputError(
            f"what is learned of activations is a step or a bound of equally spaced levels, got the scheme "
            f"{quantiser.format.scheme!r}"
        )
    return quantiser
