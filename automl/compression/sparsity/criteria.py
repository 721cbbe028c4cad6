"""Scores of single weights: the loss that is expected of setting each of them to zero.

Scores add up: that of several weights that become zero together is their sum. A criterion is another entry of
`CRITERIA`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.errors import InputError


def magnitude(weight: Tensor) -> Tensor:
    """The squared weights, float64: single ones are ranked as by their absolute value, and the atoms that stay are
    those that change the weights least in the L2 norm.

    Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015.
    """
    return weight.detach().double().square()  # in float32 small weights would all be 0


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """(gradient * weight)^2, float64: the square of the first-order change of the loss.

    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8.

    Args:
        weight: of a layer.
        gradient: of the loss with respect to it.

    Raises:
        InputError: the gradient has another shape.
    """
    if weight.shape != gradient.shape:
        raise InputError(f"a gradient has the shape of its weight {list(weight.shape)}, got {list(gradient.shape)}")
    return (weight.detach().double() * gradient.detach().double()).square()


@dataclass(frozen=True, slots=True)
class Criterion:
    """How weights are scored.

    Attributes:
        score: (weight, gradient of the loss or None) -> scores like the weight, at least 0.
        needs_gradient: whether it makes nothing of None.
    """

    score: Callable[[Tensor, Tensor | None], Tensor]
    needs_gradient: bool = False


def _magnitude(weight: Tensor, gradient: Tensor | None) -> Tensor:
    return magnitude(weight)


def _taylor(weight: Tensor, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise InputError("the criterion 'taylor' needs gradients of the loss; compute some, or choose 'magnitude'")
    return taylor(weight, gradient)


CRITERIA: dict[str, Criterion] = {"magnitude": Criterion(_magnitude), "taylor": Criterion(_taylor, needs_gradient=True)}
"""By name."""


def taylor_scores(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> dict[str, Tensor]:
    """The Taylor scores of a network's weights, averaged over batches.

    The model is evaluated in the mode it is in, and nothing of it changes, gradients included; in training mode batch
    norm's statistics do.

    Args:
        model: the network.
        weights: parameters of it, by name of the layer.
        batches: (inputs, targets).
        loss: (outputs, targets) -> a scalar.

    Raises:
        InputError: there is no batch.
    """
    parameters = list(weights.values())
    totals = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    count = 0
    for inputs, targets in batches:
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(model(inputs), targets), parameters)
        for total, parameter, gradient in zip(totals, parameters, gradients, strict=True):
            total += taylor(parameter, gradient)
        count += 1
    if not count:
        raise InputError("Taylor scores need at least one batch of inputs and targets")
    return {name: total / count for name, total in zip(weights, totals, strict=True)}
