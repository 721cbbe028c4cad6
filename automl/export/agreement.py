"""Whether an engine computes what the network in torch does.

Engines add numbers up in another order than torch, so outputs differ in their last digits. Those of a network with
quantised activations differ by more: a value at the edge between two codes goes to the one here and to the other there,
and integer kernels round biases (Jacob et al., CVPR 2018). Torch itself differs so between a batch of one image and one
of many. Such outputs are compared in steps of the coarsest activations, over all images together.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from automl.compression.quantisation import ActivationQuantiser
from automl.compression.quantisation.activations import HalfActivation, UniformActivation
from automl.compression.quantisation.half import DTYPES
from automl.export.torch_export import Batch
from backends.measuring import TOLERANCE, FloatArray, relative_error
from search_spaces.errors import TrimtabError

CHUNK = 256
STEPS = 4
"""Root mean square difference that is allowed, in steps: seen were up to 1.5, of MobileNetV2 in 8 bits."""

MOST = STEPS / 256
"""The same as a share of the outputs' range, where steps are wider than those of 8 bits."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far outputs are from those of the network.

    Attributes:
        error: max|a-b| / max|a|, of outputs b and the network's a; where activations are quantised the root mean square
            of a-b over the range of a.
        allowed: the most that it may be.
        measure: what the error is, in signs.
    """

    error: float
    allowed: float
    measure: str

    @property
    def holds(self) -> bool:
        """Whether the outputs are those of the network."""
        return self.error <= self.allowed

    def __str__(self) -> str:
        return f"{self.measure} = {self.error:.1e}, at most {self.allowed:.2g}"


def rounding_step(module: nn.Module) -> float:
    """The widest gap between neighbouring levels of a network's activations, as a share of their range; 0 where none
    are quantised."""
    return max((_step(child) for child in module.modules() if isinstance(child, ActivationQuantiser)), default=0.0)


def compare(outputs: FloatArray, expected: FloatArray, step: float) -> Agreement:
    """Compare outputs [N, ...] with those of the network, whose `rounding_step` is given."""
    error = relative_error(outputs, expected)
    if not step or not np.isfinite(error):
        return Agreement(error, TOLERANCE, "max|a-b|/max|a|")
    spread = float(np.ptp(expected.astype(np.float64))) or 1.0
    error = float(np.sqrt(np.square(outputs.astype(np.float64) - expected).mean())) / spread
    return Agreement(error, min(MOST, max(TOLERANCE, STEPS * step)), "rms(a-b)/range(a)")


def check_answer(
    engine: str, run: Callable[[FloatArray], FloatArray], module: nn.Module, images: Tensor, batch: Batch
) -> float:
    """Refuse what computes something else than the network: a format that answers wrongly is not exported.

    Args:
        engine: for the message.
        run: images [N, ...] -> outputs [N, ...].
        module: the network.
        images: [N, ...] to compare on.
        batch: how many `run` takes at a time.

    Returns:
        The error of the agreement.

    Raises:
        TrimtabError: the outputs are not those of the network.
    """
    with torch.no_grad():
        parts = torch.split(images, CHUNK if batch == "dynamic" else batch)
        expected = np.concatenate([module(part).numpy() for part in parts])
        outputs = np.concatenate([run(part.numpy()) for part in parts])
    found = compare(outputs, expected, rounding_step(module))
    if not found.holds:
        raise TrimtabError(f"{engine} answers wrongly: {found}")
    return found.error


def _step(quantiser: ActivationQuantiser) -> float:
    if isinstance(quantiser, UniformActivation):
        return 2.0**-quantiser.format.bits
    if isinstance(quantiser, HalfActivation):
        return torch.finfo(DTYPES[quantiser.format.scheme]).eps
    return 1.0
