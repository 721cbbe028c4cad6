"""The config of a tuning: that of a search, and a section that says which of its options are drawn from where."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from automl.config import Config
from search_spaces.sections import Section, shown

RESAMPLED = 0.25
"""How often a perturbed option is drawn anew (Jaderberg et al. 2017, as Ray Tune's default)."""
FACTORS = (0.8, 1.2)
"""By which a perturbed number is multiplied otherwise."""


@dataclass(frozen=True)
class Range:
    """Values of an option: a list of them, or the numbers from `low` to `high`.

    Attributes:
        choices: the list; empty where there is none.
        low, high: both included; whole numbers where both are.
        log: whether the logarithm is drawn evenly, not the number itself.
    """

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @classmethod
    def parse(cls, name: str, value: Any) -> "Range":
        """As a config has it: a list, or a mapping with `low`, `high` and, where wanted, `log`.

        Raises:
            ValueError: it is neither.
        """
        if isinstance(value, list) and value and all(isinstance(each, bool | int | float) for each in value):
            return cls(choices=tuple(value))
        if not isinstance(value, Mapping) or not {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
            raise ValueError(
                f"option {name!r} has a list of values, or low, high and log of a range, got {shown(value)}"
            )
        low, high, logarithm = value["low"], value["high"], value.get("log", False)
        if not all(type(end) in (int, float) for end in (low, high)) or type(logarithm) is not bool:
            raise ValueError(f"low and high of option {name!r} are numbers and log is true or false, got {value}")
        if not low < high or (logarithm and low <= 0):
            raise ValueError(f"low of option {name!r} is below high, and above 0 where log is true, got {value}")
        return cls((), low, high, logarithm)

    @property
    def whole(self) -> bool:
        """Whether its numbers are whole ones."""
        return type(self.low) is int and type(self.high) is int

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values that a search is tried with before anything runs."""
        return self.choices or (self.low, self.high)

    def draw(self, generator: np.random.Generator) -> Any:
        """A value."""
        if self.choices:
            return self.choices[int(generator.integers(len(self.choices)))]
        if self.log:
            return self._within(exp(generator.uniform(log(self.low), log(self.high))))
        if self.whole:
            return int(generator.integers(int(self.low), int(self.high), endpoint=True))
        return float(generator.uniform(self.low, self.high))

    def perturb(self, value: Any, generator: np.random.Generator) -> Any:
        """Another value near to it, or now and then one drawn anew."""
        if generator.random() < RESAMPLED or (self.choices and value not in self.choices):
            return self.draw(generator)
        up = bool(generator.integers(2))
        if self.choices:
            index = self.choices.index(value) + (1 if up else -1)
            return self.choices[min(max(index, 0), len(self.choices) - 1)]
        return self._within(value * FACTORS[up])

    def _within(self, value: float) -> Any:
        bounded = min(max(value, self.low), self.high)
        return round(bounded) if self.whole else bounded


class TuneSection(Section):
    """How many trials there are, what their options are drawn from, and which of them go on.

    Evaluations are those of a trial's search. `every`: after how many a trial reports, and can be stopped or copied.
    "asha" (Li et al. 2020): of the trials at `grace` evaluations, then at `reduction` times as many and so on, the best
    share 1 / `reduction` goes on. "pbt" (Jaderberg et al. 2017): after each `perturb` evaluations a trial among the
    lowest `quantile` goes on from the state of one among the highest, with its options perturbed.
    """

    scheduler: Literal["asha", "pbt"] = "asha"
    trials: int = Field(default=16, ge=2, le=1000)
    seed: int = Field(default=0, ge=0)
    every: int = Field(default=10, ge=1)
    grace: int = Field(default=20, ge=1)
    reduction: int = Field(default=3, ge=2)
    perturb: int = Field(default=20, ge=1)
    quantile: float = Field(default=0.25, gt=0, le=0.5)
    options: dict[str, Any] = Field(min_length=1)

    @model_validator(mode="after")
    def _known_ranges(self) -> Self:
        self.ranges()
        return self

    def ranges(self) -> dict[str, Range]:
        """What each option is drawn from."""
        return {name: Range.parse(name, value) for name, value in self.options.items()}

    def drawn(self) -> list[dict[str, Any]]:
        """The options of every trial at its start; those of a trial do not depend on how many there are."""
        ranges = list(self.ranges().items())
        generators = [
            [np.random.default_rng([self.seed, trial, index]) for index in range(len(ranges))]
            for trial in range(self.trials)
        ]
        return [
            {name: each.draw(generator) for (name, each), generator in zip(ranges, own, strict=True)}
            for own in generators
        ]


class TuningConfig(Config):
    """The config of a tuning."""

    tune: TuneSection

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if self.priced_by_table:
            raise ValueError(
                "a tuning makes too many searches for a budget that is measured; give budget.metric another metric"
            )
        if self.search.given:
            raise ValueError("there are no options to tune where policies are given")
        scheduler = self.tune
        first = scheduler.grace if scheduler.scheduler == "asha" else scheduler.perturb
        if not scheduler.every <= first < self.search.evaluations:
            name = "grace" if scheduler.scheduler == "asha" else "perturb"
            raise ValueError(
                f"tune.{name} lies from tune.every ({scheduler.every}) to below search.evaluations "
                f"({self.search.evaluations}), got {first}"
            )
        return self

    def of_search(self, options: Mapping[str, Any]) -> Config:
        """The config of a search with these options beside its own."""
        document = self.model_dump(exclude={"tune"})
        document["search"]["options"] = {**self.search.options, **options}
        return Config.model_validate(document)
