"""What an operator applies to its sum before storing it: scale and bias, a residual, an activation."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm import te, tirx


@dataclass(frozen=True, slots=True)
class Activation:
    """min(max(x, low), high): ReLU is (0, inf), ReLU6 is (0, 6)."""

    low: float = -math.inf
    high: float = math.inf

    def apply(self, value: Any) -> Any:
        """The tensor expression."""
        if self.low > -math.inf:
            value = te.max(value, tirx.const(self.low, "float32"))
        if self.high < math.inf:
            value = te.min(value, tirx.const(self.high, "float32"))
        return value

    def then(self, other: "Activation") -> "Activation":
        """The activation that applies this one and then the other.

        >>> Activation(low=0.0).then(Activation(high=6.0))
        Activation(low=0.0, high=6.0)
        """
        low = min(max(self.low, other.low), other.high)
        return Activation(low, max(min(self.high, other.high), low))


IDENTITY = Activation()


@dataclass(frozen=True, slots=True)
class Epilogue:
    """The part of an epilogue that shapes the code: bias always, then the residual, then the activation."""

    residual: bool = False
    activation: Activation = IDENTITY

    def apply(self, value: Any, bias: Any, residual: Any | None) -> Any:
        """The tensor expression of one output element."""
        value = value + bias
        if residual is not None:
            value = value + residual
        return self.activation.apply(value)


NO_EPILOGUE = Epilogue()
"""Bias only."""


@dataclass(slots=True)
class FusedTail:
    """What was found behind an operator and is computed with it.

    Attributes:
        scale, shift: [channels], the affine map after the operator; folded into its weights and bias.
        residual: the Relax variable that is added, or None.
        activation: applied last.
    """

    scale: npt.NDArray[np.float64]
    shift: npt.NDArray[np.float64]
    residual: Any | None = None
    activation: Activation = IDENTITY

    @classmethod
    def of(cls, channels: int) -> "FusedTail":
        """The empty tail."""
        return cls(np.ones(channels), np.zeros(channels))

    def of_channels(self, rows: npt.NDArray[np.int64]) -> "FusedTail":
        """The tail of some of the channels; there must be no residual."""
        return FusedTail(self.scale[rows], self.shift[rows], None, self.activation)

    @property
    def epilogue(self) -> Epilogue:
        """What it means for the code."""
        return Epilogue(self.residual is not None, self.activation)

    @property
    def linear(self) -> bool:
        """Whether an affine map may still be folded in."""
        return self.residual is None and self.activation == IDENTITY
