"""When a supernet's training samples what: the phases of progressive shrinking, and the sandwich rule."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from automl.config_sections import SupernetSection
from automl.supernet.network import KERNEL
from automl.training import rate_share
from search_spaces.depth import DEPTH
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy
from search_spaces.space import CHANNELS, RESOLUTION, Point, SearchSpace

SHARES = {KERNEL: 1, DEPTH: 1, CHANNELS: 2}
"""Of the epochs, for the phases in which these are freed, one after the other, where a config names no phases."""
GRADUAL = (DEPTH, CHANNELS)
"""Dimensions whose cheaper half of choices waits for the second half of the phase that frees them."""


@dataclass(frozen=True)
class Phase:
    """A part of the training in which the same dimensions are free.

    Attributes:
        name: for people.
        free: dimensions that are sampled; the others are at their greatest.
        opened: those of them that were not free before.
        epochs: how long it takes.
        lr: peak learning rate; it rises and falls in every phase anew.
    """

    name: str
    free: tuple[str, ...]
    opened: tuple[str, ...]
    epochs: int
    lr: float


@dataclass(frozen=True, eq=False)
class Schedule:
    """What every step of a supernet's training samples, and at which learning rate.

    Progressive shrinking: Cai et al., "Once-for-All: Train One Network and Specialize it for Efficient Deployment",
    ICLR 2020; random sub-networks, of more and more dimensions. The sandwich rule: Yu & Huang, "Universally Slimmable
    Networks and Improved Training Techniques", ICCV 2019; the largest, the smallest and random ones, of everything.

    Attributes:
        space: that is sampled from.
        phases: one after the other.
        sandwich: whether the largest and the smallest come along.
        subnets: random sub-networks a step.
        warmup: epochs over which the learning rate rises, at most half a phase.
        seed: of what is sampled.
    """

    space: SearchSpace
    phases: tuple[Phase, ...]
    sandwich: bool
    subnets: int
    warmup: float
    seed: int

    @classmethod
    def of(cls, space: SearchSpace, section: SupernetSection) -> "Schedule":
        """The schedule of a config.

        Args:
            space: of which sub-networks are trained; without bits, zeros and ranks.
            section: how.

        Raises:
            InputError: phases that do not fit the space, or too few epochs for them.
        """
        training = section.training
        here = tuple(dict.fromkeys(each.dimension for each in space.decisions))
        if section.method == "sandwich":
            phases = [Phase("sandwich", here, here, training.epochs, training.lr)]
        elif section.phases:
            phases = _named(here, section)
        else:
            phases = _derived(here, training.epochs, training.lr)
        sandwich = section.method == "sandwich"
        return cls(space, tuple(phases), sandwich, section.subnets, training.warmup_epochs, training.seed)

    @property
    def epochs(self) -> int:
        """Of all phases."""
        return sum(phase.epochs for phase in self.phases)

    def at(self, epoch: int) -> tuple[Phase, int]:
        """The phase of an epoch, both counted from 0, and how many epochs of the phase are over."""
        for phase in self.phases:
            if epoch < phase.epochs:
                return phase, epoch
            epoch -= phase.epochs
        raise IndexError(f"the schedule has {self.epochs} epochs")

    def rate(self, epoch: int, step: int, steps: int) -> float:
        """Learning rate of a step of an epoch of so many steps."""
        phase, over = self.at(epoch)
        warmup = min(self.warmup, phase.epochs / 2) * steps
        return phase.lr * rate_share(over * steps + step, phase.epochs * steps, warmup)

    def lowest(self, epoch: int) -> Point:
        """The least choice that an epoch samples of every decision, [D]; the greatest is that of the space."""
        phase, over = self.at(epoch)
        found = self.space.greatest.copy()
        for index, decision in enumerate(self.space.decisions):
            if decision.dimension in phase.free:
                waits = decision.dimension in phase.opened and decision.dimension in GRADUAL
                opening = waits and not self.sandwich and over < phase.epochs // 2
                found[index] = len(decision.choices) // 2 if opening else 0
        return found

    def points(self, epoch: int, step: int) -> list[Point]:
        """The sub-networks of a step, [D] each; the sandwich's are the largest, the smallest, then random ones."""
        lowest = self.lowest(epoch)
        generator = np.random.default_rng([self.seed, epoch, step])
        points = [generator.integers(lowest, self.space.counts) for _ in range(self.subnets)]
        return [self.space.greatest, self.space.least, *points] if self.sandwich else points

    def policies(self, epoch: int, step: int) -> list[CompressionPolicy]:
        """The same as policies."""
        return [self.space.decode(point) for point in self.points(epoch, step)]


def _named(here: Sequence[str], section: SupernetSection) -> list[Phase]:
    """The phases of a config."""
    named = [dimension for phase in section.phases for dimension in phase.free]
    for dimension in named:
        if dimension not in here:
            raise InputError(
                f"a phase of the supernet frees {dimension!r}, of which the space has no choice; it decides on "
                f"{', '.join(here)}"
            )
        if named.count(dimension) > 1:
            raise InputError(
                f"phases of the supernet free {dimension!r} {named.count(dimension)} times; once is enough"
            )
    for dimension in here:
        if dimension not in (*named, RESOLUTION):
            raise InputError(f"no phase of the supernet frees {dimension!r}, which the space decides on; add one")
    free = [] if RESOLUTION in named else [dimension for dimension in here if dimension == RESOLUTION]
    phases: list[Phase] = []
    for each in section.phases:
        opened = tuple(each.free) if phases else (*free, *each.free)
        free = [*free, *each.free]
        phases.append(Phase("+".join(each.free), tuple(free), opened, each.epochs, each.lr or section.training.lr))
    return phases


def _derived(here: Sequence[str], epochs: int, lr: float) -> list[Phase]:
    """Kernels, then depth, then channels, of those that the space has; resolution is free throughout."""
    free = [dimension for dimension in here if dimension == RESOLUTION]
    order = [dimension for dimension in SHARES if dimension in here]
    if not order:
        return [Phase(RESOLUTION, tuple(free), tuple(free), epochs, lr)]
    if epochs < len(order):
        raise InputError(
            f"supernet.training.epochs is at least {len(order)}, one for each of {', '.join(order)}, got {epochs}"
        )
    whole = sum(SHARES[dimension] for dimension in order)
    phases: list[Phase] = []
    share = begun = 0
    for index, dimension in enumerate(order):
        share += SHARES[dimension]
        left = len(order) - index - 1  # of which each needs an epoch
        end = min(max(round(epochs * share / whole), begun + 1), epochs - left)
        opened = (dimension,) if phases else (*free, dimension)
        free = [*free, dimension]
        phases.append(Phase(dimension, tuple(free), opened, end - begun, lr))
        begun = end
    return phases
