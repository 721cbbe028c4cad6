"""What an evaluation is worth to an agent, by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isfinite, log

from search_spaces.errors import InputError, did_you_mean
from search_spaces.objective import Evaluation


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward.

    Attributes:
        name: as configs spell it.
        description: one line for people.
        counts_cost: whether it falls with rising cost; without a hard budget only such a reward makes sense.
        function: gives the reward of an evaluation.
    """

    name: str
    description: str
    counts_cost: bool
    function: Callable[[Evaluation], float]

    def __call__(self, evaluation: Evaluation) -> float:
        """Reward of the evaluation; an accuracy that is no finite number counts as 0."""
        if not isfinite(evaluation.accuracy):
            evaluation = replace(evaluation, accuracy=0.0)
        return self.function(evaluation)


def _accuracy(evaluation: Evaluation) -> float:
    return evaluation.accuracy


def _accuracy_flops(evaluation: Evaluation) -> float:
    return -(1.0 - evaluation.accuracy) * log(evaluation.cost["macs"])


def _accuracy_latency(evaluation: Evaluation) -> float:
    # in nanoseconds: the logarithm of a figure below 1 would reward errors
    return -(1.0 - evaluation.accuracy) * log(1e9 * evaluation.cost["latency_s"])


REWARDS: Mapping[str, Reward] = {
    reward.name: reward
    for reward in (
        Reward("accuracy", "accuracy; for searches under a budget (AMC, section 3.2)", False, _accuracy),
        Reward("accuracy_flops", "-error * log(FLOPs); for searches that guard accuracy (AMC)", True, _accuracy_flops),
        Reward("accuracy_latency", "-error * log(latency in ns); the same for latency", True, _accuracy_latency),
    )
}


def accuracy_change(whole: float) -> Reward:
    """HAQ's reward (Wang et al. 2019, equation 7): a tenth of the percentage points of accuracy gained or lost.

    Args:
        whole: accuracy of the uncompressed network, in [0, 1].
    """
    described = "a tenth of the percentage points gained or lost; for searches under a budget (HAQ)"
    return Reward("accuracy_change", described, False, lambda evaluation: 10.0 * (evaluation.accuracy - whole))


def find_reward(name: str, mode: str = "resource") -> Reward:
    """The reward of that name.

    Raises:
        InputError: there is none, or it makes no sense in that mode of search.
    """
    if name not in REWARDS:
        raise InputError(f"there is no reward {name!r}{did_you_mean(name, REWARDS)}")
    reward = REWARDS[name]
    if mode == "accuracy" and not reward.counts_cost:
        raise InputError(
            f"mode 'accuracy' has no hard limit, so the reward {name!r} would never prune; use reward 'accuracy_flops' "
            "or 'accuracy_latency'"
        )
    return reward
