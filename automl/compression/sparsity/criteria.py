"""Scores of single weights: the loss that is expected of setting each of them to zero.

Scores add up: that of several weights that become zero together is their sum. A criterion is another entry of
`CRITERIA`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.errors import InputError, did_you_mean


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


def criterion(name: str) -> Criterion:
    """The criterion of that name; InputError where there is none."""
    if name not in CRITERIA:
        raise InputError(f"there is no criterion {name!r} of sparsity{did_you_mean(name, CRITERIA)}")
    return CRITERIA[name]


def score_weights(
    name: str,
    model: nn.Module,
    weights: Mapping[str, Tensor],
    batches: Iterable[tuple[Tensor, Tensor]] = (),
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> dict[str, Tensor]:
    """The scores of a network's weights; those that need gradients are averaged over batches.

    The model is evaluated in the mode it is in, and nothing of it changes, gradients included; in training mode batch
    norm's statistics do.

    Args:
        name: of the criterion.
        model: the network.
        weights: parameters of it, by name of the layer.
        batches: (inputs, targets), where the criterion needs gradients.
        loss: (outputs, targets) -> a scalar.

    Raises:
        InputError: there is no such criterion, or no batch where one is needed.
    """
    found = criterion(name)
    if not found.needs_gradient or not weights:
        return {layer: found.score(weight, None) for layer, weight in weights.items()}
    parameters = list(weights.values())
    totals = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    count = 0
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for inputs, targets in batches:
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(model(inputs), targets), parameters, materialize_grads=True)
            for total, parameter, gradient in zip(totals, parameters, gradients, strict=True):
                total += found.score(parameter, gradient)
            count += 1
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    if not count:
        raise InputError(f"the criterion {name!r} needs at least one batch of inputs and targets")
    return {layer: total / count for layer, total in zip(weights, totals, strict=True)}
