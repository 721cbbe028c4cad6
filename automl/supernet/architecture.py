"""Distributions over the choices of every decision, trained by gradient: the architecture parameters of DARTS (Liu et
al., ICLR 2019) and ProxylessNAS (Cai et al., ICLR 2019).

Weights stay as they are: those of a supernet are trained for all sub-networks, those of an ordinary network are what is
compressed. What is lost is how far the mixture's answers are from the whole network's, and what the expected cost is
above its budget.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from automl.searchers.points.gradient import GradientOptions
from automl.supernet.relaxation import Relaxation
from backends.layer_prices import FloatArray

LEAST = 1e-20
"""Of exponential noise, which has a logarithm."""
BETAS = (0.5, 0.999)
"""Of Adam, as DARTS has them."""


def trained_logits(
    relaxation: Relaxation,
    costs: Callable[[Sequence[Tensor]], Tensor],
    images: Tensor,
    answers: Tensor,
    options: GradientOptions,
    seed: int,
) -> list[FloatArray]:
    """Logits of the choices of every decision.

    Args:
        relaxation: of the network.
        costs: the expected costs of independent decisions as shares of their budgets, see
            `automl.costs.expected.ExpectedCosts`.
        images: training images [N, ...].
        answers: the whole network's logits for them, [N, classes].
        options: how.
        seed: of the batches and of the mixtures.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.zeros(count, requires_grad=True) for count in relaxation.space.counts.tolist()]
    optimiser = torch.optim.Adam(logits, lr=options.lr, betas=BETAS)
    wanted = answers.log_softmax(dim=1)
    for step in range(options.steps):
        tau = options.tau * (options.tau_end / options.tau) ** (step / max(1, options.steps - 1))
        chosen = torch.randint(len(images), (min(options.batch, len(images)),), generator=generator)
        shares = [_mixture(each, tau, options.relaxation, generator) for each in logits]
        if relaxation.resolution is not None:
            shares[relaxation.resolution] = _some_paths(shares[relaxation.resolution], relaxation.paths, generator)
        found = relaxation(images[chosen], shares).log_softmax(dim=1)
        lost = F.kl_div(found, wanted[chosen], reduction="batchmean", log_target=True)
        above = costs([each.softmax(dim=0) for each in logits]).log().clamp_min(0.0).sum()
        optimiser.zero_grad()
        (lost + options.cost_weight * above).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return [each.detach().double().numpy() for each in logits]


def _mixture(logits: Tensor, tau: float, relaxation: str, generator: torch.Generator) -> Tensor:
    """Shares of the choices: those of a draw, or the probabilities themselves."""
    if relaxation == "softmax":
        return logits.softmax(dim=0)
    noise = torch.empty_like(logits).exponential_(generator=generator).clamp_min(LEAST).log().neg()
    return ((logits + noise) / tau).softmax(dim=0)


def _some_paths(shares: Tensor, paths: int, generator: torch.Generator) -> Tensor:
    """All shares but those of a few choices, drawn by them, at zero; the others in proportion."""
    drawn = shares.detach().multinomial(paths, generator=generator)
    stay = torch.zeros_like(shares).index_fill(0, drawn, 1.0)
    return shares * stay / (shares * stay).sum()
