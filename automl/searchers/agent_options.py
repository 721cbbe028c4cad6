"""Hyperparameters of the agents: what was published, and what `tuned` makes of it for a few hundred evaluations."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from automl.searchers.options import parse_options
from search_spaces.errors import InputError

SHARES = ("actor_lr", "critic_lr", "lr", "tau", "baseline", "decay", "gamma", "clip", "gae")
"""Options in (0, 1]."""
COUNTS = ("hidden", "batch", "replay", "updates", "delay", "episodes", "epochs")
"""Options of at least 1."""
SIZES = ("warmup", "divergence", "sigma", "smoothing", "entropy", "spread")
"""Options that are not negative."""
SHORT = 500
"""Evaluations below which a search makes two updates a step."""


@dataclass(frozen=True)
class AgentOptions(ABC):
    """What all agents have to set.

    Attributes:
        hidden: units of both hidden layers of every network.
        gamma: discount.
        batch: transitions an update.
        step_code: whether the state tells the number of the step, one-hot. It tells layers of one shape apart; without
            it the size of a state does not depend on the network, so that an agent can be taken to another one.
        distinct: whether a policy that was proposed before is not proposed again: the episode is walked anew with more
            noise, because an evaluation gives the same result every time.
    """

    agent: ClassVar[str]
    """Its name in configs."""

    hidden: int = 300
    gamma: float = 1.0
    batch: int = 64
    step_code: bool = True
    distinct: bool = True
    divergence: float = 5e-4

    @classmethod
    @abstractmethod
    def tuned(cls, evaluations: int, warmup: int | None = None, begun: bool = False) -> Self:
        """The defaults of a search.

        Args:
            evaluations: episodes of the search.
            warmup: episodes before learning starts, where the user has set them.
            begun: whether the agent begins with what one had learnt elsewhere.
        """

    def __post_init__(self) -> None:
        names = {field.name for field in fields(self)}
        for name in (each for each in COUNTS if each in names):
            if getattr(self, name) < 1:
                raise InputError(f"{self.agent}: {name} is at least 1, got {getattr(self, name)}")
        for name in (each for each in SHARES if each in names):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise InputError(f"{self.agent}: {name} lies in (0, 1], got {getattr(self, name)}")
        for name in (each for each in SIZES if each in names):
            if not getattr(self, name) >= 0:
                raise InputError(f"{self.agent}: {name} is not negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class ReplayOptions(AgentOptions):
    """Of agents that learn from a replay buffer of episodes.

    Attributes:
        actor_lr, critic_lr: Adam's learning rates.
        tau: share of the learned weights that the target networks take over at each update.
        replay: episodes that the replay buffer holds.
        baseline: how fast the reward baseline follows the mean reward of the batches, in (0, 1].
        warmup: episodes before learning starts, their actions random unless the agent has learnt elsewhere.
        updates: updates for each step of an episode.
        bootstrap: whether the critic learns from its own estimate of the next state; otherwise from the episode's
            reward alone, which no error of its own can run away with.
        ranks: whether rewards are replaced by their rank among those in the buffer, which tells policies near chance
            level apart as well as those near the optimum; otherwise the moving-average baseline is subtracted.
        taken: whether an action is stored as what it came to after bounding and rounding, and an episode as what the
            end of its walk made of it, not as proposed.
    """

    actor_lr: float = 1e-3
    critic_lr: float = 1e-3
    tau: float = 0.01
    replay: int = 100
    baseline: float = 0.5
    warmup: int = 100
    updates: int = 1
    bootstrap: bool = False
    ranks: bool = True
    taken: bool = True


@dataclass(frozen=True)
class DDPGOptions(ReplayOptions):
    """The defaults are AMC's (He et al. 2018, section 4, and its code), `tuned` differs in a few.

    Attributes:
        sigma: exploration noise after the warm-up, as a share of the actions' range.
        decay: factor of sigma from episode to episode.
    """

    agent: ClassVar[str] = "ddpg"

    step_code: bool = False
    distinct: bool = False
    divergence: float = 0.0
    actor_lr: float = 1e-4
    bootstrap: bool = True
    ranks: bool = False
    taken: bool = False
    sigma: float = 0.5
    decay: float = 0.95

    @classmethod
    def haq(cls) -> Self:
        """HAQ's, where its code differs from AMC's (Wang et al. 2019): 128 transitions for each layer, two a step."""
        return cls(warmup=20, decay=0.99, replay=64)

    @classmethod
    def tuned(cls, evaluations: int, warmup: int | None = None, begun: bool = False) -> Self:
        """The defaults of a search that does not ask for the published agent.

        Of the published hyperparameters these change: the warm-up takes at most a tenth of the search, the noise
        starts smaller and decays to 5 % of that by the end of the search, and a search of under 500 episodes makes two
        updates a step.
        """
        random = _warmup(evaluations, warmup, begun)
        return cls(
            sigma=_sigma(begun),
            warmup=random,
            decay=_decay(evaluations, random),
            updates=_updates(evaluations),
            bootstrap=False,
            ranks=True,
            taken=True,
            distinct=True,
            divergence=AgentOptions.divergence,
            step_code=True,
        )


@dataclass(frozen=True)
class TD3Options(ReplayOptions):
    """Of twin delayed DDPG (Fujimoto et al. 2018).

    Attributes:
        sigma: exploration noise after the warm-up, as a share of the actions' range.
        decay: factor of sigma from episode to episode.
        delay: updates of the critics for one of the actor and the targets.
        smoothing: standard deviation of the noise on the target's actions; of use to a critic that bootstraps.
    """

    agent: ClassVar[str] = "td3"

    hidden: int = 128
    sigma: float = 0.5
    decay: float = 0.95
    delay: int = 2
    smoothing: float = 0.2

    @classmethod
    def tuned(cls, evaluations: int, warmup: int | None = None, begun: bool = False) -> Self:
        """Schedules as of `DDPGOptions.tuned`."""
        random = _warmup(evaluations, warmup, begun)
        return cls(sigma=_sigma(begun), warmup=random, decay=_decay(evaluations, random), updates=_updates(evaluations))


@dataclass(frozen=True)
class SACOptions(ReplayOptions):
    """Of soft actor-critic (Haarnoja et al. 2018), whose actor is random of itself.

    Attributes:
        entropy: that the actor is to keep, in nats below that of uniformly random actions, for each of its outputs.
    """

    agent: ClassVar[str] = "sac"

    hidden: int = 64
    entropy: float = 1.5

    @classmethod
    def tuned(cls, evaluations: int, warmup: int | None = None, begun: bool = False) -> Self:
        """Schedules as of `DDPGOptions.tuned`."""
        return cls(warmup=_warmup(evaluations, warmup, begun), updates=_updates(evaluations))


@dataclass(frozen=True)
class PPOOptions(AgentOptions):
    """Of proximal policy optimisation (Schulman et al. 2017).

    Attributes:
        lr: Adam's learning rate.
        episodes: between two updates.
        epochs: passes over them.
        clip: of the ratio of probabilities.
        gae: lambda of the generalised advantage estimate; at 1 it is the reward less the value.
        spread: standard deviation of the actions at the start; their range is 2.
        entropy: weight of the entropy in the loss.
    """

    agent: ClassVar[str] = "ppo"

    hidden: int = 64
    lr: float = 1e-3
    episodes: int = 8
    epochs: int = 10
    clip: float = 0.2
    gae: float = 1.0
    spread: float = 0.6
    entropy: float = 0.0

    @classmethod
    def tuned(cls, evaluations: int, warmup: int | None = None, begun: bool = False) -> Self:
        """At least a dozen updates in a search."""
        return cls(episodes=max(2, min(cls().episodes, evaluations // 12)))


AGENTS: Mapping[str, type[AgentOptions]] = {
    kind.agent: kind for kind in (DDPGOptions, TD3Options, SACOptions, PPOOptions)
}
"""By the name of the agent."""


def agent_options(
    name: str,
    options: Mapping[str, Any],
    evaluations: int,
    *,
    faithful: bool = False,
    bits: bool = False,
    begun: bool = False,
) -> AgentOptions:
    """An agent's hyperparameters: the published ones if faithful, else those tuned for the number of evaluations.

    Args:
        name: of the agent.
        options: that are set.
        evaluations: of the search.
        faithful: whether to begin with what was published.
        bits: whether for bits, as HAQ; else for channels, as AMC.
        begun: whether the agent begins with what one had learnt elsewhere.

    Raises:
        InputError: an unknown option, a value out of range, or an agent that was not published for this.
    """
    kind = AGENTS[name]
    if faithful:
        if kind is not DDPGOptions:
            raise InputError(f"search.faithful is for the published agent, 'ddpg'; {name!r} has none, set it to false")
        return parse_options(DDPGOptions.haq() if bits else DDPGOptions(), name, options)
    given = parse_options(kind(), name, options)
    warmup = getattr(given, "warmup", None) if "warmup" in options else None
    return parse_options(kind.tuned(evaluations, warmup, begun), name, options)


def _warmup(evaluations: int, warmup: int | None, begun: bool) -> int:
    usual = evaluations // 20 if begun else min(ReplayOptions.warmup, evaluations // 10)
    return usual if warmup is None else warmup


def _sigma(begun: bool) -> float:
    """Noise that leaves something of what an agent has learnt."""
    return 0.15 if begun else 0.3


def _decay(evaluations: int, warmup: int) -> float:
    """Such that 5 % is left in the end."""
    return float(0.05 ** (1.0 / max(1, evaluations - warmup)))


def _updates(evaluations: int) -> int:
    return 2 if evaluations < SHORT else 1
