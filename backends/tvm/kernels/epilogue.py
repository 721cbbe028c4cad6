"""What an operator applies to its sum before storing it: bias, a residual, an activation.

The functions are written in arithmetic that becomes vector instructions: TVM's own exp, tanh and erf are calls of the
C library, one a lane (10 times slower). They stay finite for every finite input up to 1e18, so that what lies in the
lanes behind the last channel does, too.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tvm import te, tirx

from backends.tvm.kernels.base import Expression


@dataclass(frozen=True, slots=True)
class Activation:
    """A function of one number; by default the identity.

    Attributes:
        low: of "clamp", which is min(max(x, low), high): ReLU is (0, inf), ReLU6 is (0, 6), Hardtanh is (-1, 1).
        high: of "clamp".
        kind: one of `ACTIVATIONS`.
        slope: of "leaky_relu".
        alpha: of "elu".

    Raises:
        ValueError: for a kind that is not known.
    """

    low: float = -math.inf
    high: float = math.inf
    kind: str = "clamp"
    slope: float = 0.01
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ACTIVATIONS:
            raise ValueError(f"an activation is one of {', '.join(ACTIVATIONS)}, not {self.kind!r}")

    def apply(self, value: Expression) -> Expression:
        """The tensor expression."""
        return ACTIVATIONS[self.kind][0](self, value)

    def reference(self, value: torch.Tensor) -> torch.Tensor:
        """What torch computes."""
        return ACTIVATIONS[self.kind][1](self, value)

    def then(self, other: "Activation") -> "Activation | None":
        """The activation that applies this one and then the other; None where there is none.

        >>> Activation(low=0.0).then(Activation(high=6.0)) == Activation(low=0.0, high=6.0)
        True
        """
        if other == IDENTITY:
            return self
        if self == IDENTITY:
            return other
        if self.kind != "clamp" or other.kind != "clamp":
            return None
        low = min(max(self.low, other.low), other.high)
        return Activation(low, max(min(self.high, other.high), low))


def _constant(number: float) -> Expression:
    return tirx.const(number, "float32")


def _let(value: Expression, body: Callable[[Expression], Expression]) -> Expression:
    """The body, of a value that is computed once however often it is used."""
    variable = tirx.Var("x", "float32")
    return tirx.Let(variable, value, body(variable))


def _clamp(value: Expression, low: float, high: float) -> Expression:
    if low > -math.inf:
        value = te.max(value, _constant(low))
    if high < math.inf:
        value = te.min(value, _constant(high))
    return value


def _polynomial(x: Expression, *coefficients: float) -> Expression:
    """By Horner's rule, the highest power first."""
    result = _constant(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + _constant(coefficient)
    return result


def _exp_parts(x: Expression, combine: Callable[[Expression, Expression], Expression]) -> Expression:
    """combine(2^n, e^r - 1) where x = n ln 2 + r and |r| <= ln(2)/2; x is kept within [-80, 80], where nothing is
    denormal, which would be slow. The polynomial is Cephes' expf."""

    def of_power(x: Expression, biased: Expression) -> Expression:
        n = biased.astype("float32") - _constant(127.0)
        remainder = (x - n * _constant(0.693359375)) + n * _constant(2.12194440e-4)
        coefficients = 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5
        less_one = _let(remainder, lambda r: _polynomial(r, *coefficients) * (r * r) + r)
        return combine(tirx.reinterpret("float32", biased << tirx.const(23, "int32")), less_one)

    # truncation rounds n to the nearest integer, since n + 127.5 is positive; it is the exponent's bits at once
    return _let(
        _clamp(x, -80.0, 80.0),
        lambda x: of_power(x, (x * _constant(math.log2(math.e)) + _constant(127.5)).astype("int32")),
    )


def exp(x: Expression) -> Expression:
    """e^x, good to 2e-7 of itself, x kept within [-80, 80]."""
    return _exp_parts(x, lambda power, less_one: power * less_one + power)


def _expm1(x: Expression) -> Expression:
    return _exp_parts(x, lambda power, less_one: power * less_one + (power - _constant(1.0)))


def _sigmoid(x: Expression) -> Expression:
    return _constant(1.0) / (_constant(1.0) + exp(_constant(0.0) - x))


def _tanh(x: Expression) -> Expression:
    # e^2x - 1, not e^2x: near zero the difference is the answer
    return _let(_expm1(_clamp(x, -20.0, 20.0) * _constant(2.0)), lambda e: e / (e + _constant(2.0)))


_ERF_ABOVE = (
    *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
    *(-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
)
_ERF_BELOW = (
    *(-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03),
    -1.42647390514189e-02,
)
"""Eigen's erf(t) = t p(t^2) / q(t^2) for |t| <= 4, good to 1e-7; beyond, erf is 1 in float32."""


def _gelu(x: Expression) -> Expression:
    """x/2 (1 + erf(x/sqrt 2))."""

    def one_plus_erf(t: Expression) -> Expression:
        def ratio(square: Expression) -> Expression:
            return _polynomial(square, *_ERF_ABOVE) / _polynomial(square, *_ERF_BELOW)

        return t * _let(t * t, ratio) + _constant(1.0)

    def of(x: Expression) -> Expression:
        half = _constant(0.5) * te.max(x, _constant(-4.0 * math.sqrt(2.0)))
        return half * _let(_clamp(x * _constant(math.sqrt(0.5)), -4.0, 4.0), one_plus_erf)

    return _let(x, of)


def _gelu_tanh(x: Expression) -> Expression:
    # x/2 (1 + tanh u) = x sigmoid(2u)
    def of(x: Expression) -> Expression:
        return x * _sigmoid(
            x * (x * x * _constant(0.044715) + _constant(1.0)) * _constant(2.0 * math.sqrt(2 / math.pi))
        )

    return _let(x, of)


def _softplus(x: Expression) -> Expression:
    """max(x, 0) + log(1 + e^-|x|), the logarithm as 2 artanh(z / (2 + z))."""

    def log1p(z: Expression) -> Expression:
        def series(s: Expression) -> Expression:
            return s * _polynomial(s * s, 2 / 13, 2 / 11, 2 / 9, 2 / 7, 2 / 5, 2 / 3, 2.0)

        return _let(z / (z + _constant(2.0)), series)

    def of(x: Expression) -> Expression:
        negative = te.min(x, _constant(0.0) - x)
        return te.max(x, _constant(0.0)) + _let(exp(negative), log1p)

    return _let(x, of)


def _mish(x: Expression) -> Expression:
    # tanh(log(1 + e)) = (e^2 + 2e) / (e^2 + 2e + 2)
    def of(x: Expression) -> Expression:
        grown = _let(exp(_clamp(x, -80.0, 20.0)), lambda e: e * (e + _constant(2.0)))
        return x * _let(grown, lambda g: g / (g + _constant(2.0)))

    return _let(x, of)


def _relu6(x: Expression) -> Expression:
    return _clamp(x, 0.0, 6.0)


_Apply = Callable[[Activation, Expression], Expression]
_Reference = Callable[[Activation, torch.Tensor], torch.Tensor]

ACTIVATIONS: Mapping[str, tuple[_Apply, _Reference]] = {
    "clamp": (lambda a, x: _clamp(x, a.low, a.high), lambda a, x: x.clamp(a.low, a.high)),
    "sigmoid": (lambda _, x: _sigmoid(x), lambda _, x: torch.sigmoid(x)),
    "silu": (lambda _, x: _let(x, lambda x: x * _sigmoid(x)), lambda _, x: F.silu(x)),
    "hard_sigmoid": (lambda _, x: _relu6(x + _constant(3.0)) * _constant(1 / 6), lambda _, x: F.hardsigmoid(x)),
    "hard_swish": (
        lambda _, x: _let(x, lambda x: x * (_relu6(x + _constant(3.0)) * _constant(1 / 6))),
        lambda _, x: F.hardswish(x),
    ),
    "gelu": (lambda _, x: _gelu(x), lambda _, x: F.gelu(x)),
    "gelu_tanh": (lambda _, x: _gelu_tanh(x), lambda _, x: F.gelu(x, approximate="tanh")),
    "tanh": (lambda _, x: _tanh(x), lambda _, x: torch.tanh(x)),
    "leaky_relu": (
        lambda a, x: _let(x, lambda x: te.max(x, _constant(0.0)) + te.min(x, _constant(0.0)) * _constant(a.slope)),
        lambda a, x: F.leaky_relu(x, a.slope),
    ),
    "elu": (
        lambda a, x: _let(
            x, lambda x: te.max(x, _constant(0.0)) + _expm1(te.min(x, _constant(0.0))) * _constant(a.alpha)
        ),
        lambda a, x: F.elu(x, a.alpha),
    ),
    "softplus": (lambda _, x: _softplus(x), lambda _, x: F.softplus(x)),
    "mish": (lambda _, x: _mish(x), lambda _, x: F.mish(x)),
}
"""The function of each kind, as a tensor expression and as torch has it."""

IDENTITY = Activation()


@dataclass(frozen=True, slots=True)
class Epilogue:
    """The part of an epilogue that shapes the code: bias always, then the residual, then the activation."""

    residual: bool = False
    activation: Activation = IDENTITY

    def apply(self, value: Expression, bias: Expression, residual: Expression | None) -> Expression:
        """The tensor expression of one output element."""
        value = value + bias
        if residual is not None:
            value = value + residual
        return self.activation.apply(value)

    def reference(self, value: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """What torch computes of a sum that has its bias."""
        return self.activation.reference(value if residual is None else value + residual)


NO_EPILOGUE = Epilogue()
"""Bias only."""
