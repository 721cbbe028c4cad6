"""What a benchmark's searches came to: figures over seeds, a Markdown table, and what may be said of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import inf, isfinite
from statistics import median

from search_jobs import Search, Task, problem_of
from search_records import Journal, evaluation_of

from automl.compare.statistics import Difference, Quartiles
from automl.costs.pricing import price
from search_spaces.objective import Evaluation, hypervolume
from search_spaces.policy import CompressionPolicy

AGENTS = ("ddpg", "td3", "sac", "ppo")


@dataclass(frozen=True)
class Outcome:
    """One search, as far as it is.

    Attributes:
        search: which.
        journal: what it left.
    """

    search: Search
    journal: Journal

    @property
    def finished(self) -> bool:
        return self.journal.end is not None and self.journal.end["ended"] == "finished"

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """All of them, those on a part of the images included."""
        return [evaluation_of(line) for line in self.journal.lines]

    @cached_property
    def best(self) -> float:
        """Search accuracy of its best policy within the budget; minus infinity where there is none."""
        return max((each.accuracy for each in self.evaluations if each.feasible), default=-inf)

    @property
    def policy(self) -> CompressionPolicy | None:
        """The first of the best policies."""
        found = self.best_policies(1)
        return found[0] if found else None

    def best_policies(self, count: int) -> list[CompressionPolicy]:
        """The best one, then those that were the best before it."""
        found = [line["policy"] for line in self.journal.lines if "policy" in line]
        return [CompressionPolicy.from_json(text) for text in reversed(found[-count:])]

    def accuracy_of(self, policy: CompressionPolicy) -> float:
        """Search accuracy of one of its best policies."""
        lines = self.journal.lines
        return float(next(line["accuracy"] for line in lines if line["digest"] == policy.digest and "policy" in line))

    @property
    def efforts(self) -> list[float]:
        """Images forwarded until the end of each evaluation, in whole evaluations."""
        whole = len(problem_of(self.search.task).data.val)  # type: ignore[arg-type]  # torch's Dataset has no length
        return list(accumulate(each.images / whole for each in self.evaluations))

    @property
    def evaluating_s(self) -> float:
        return sum(each.seconds for each in self.evaluations)

    @property
    def thinking_s(self) -> float:
        return sum(self.journal.thinking.values())

    def reached(self, accuracy: float) -> float:
        """The effort after which a policy within the budget was as accurate; infinity where none was."""
        both = zip(self.efforts, self.evaluations, strict=True)
        return next((effort for effort, each in both if each.feasible and each.accuracy >= accuracy), inf)

    def hypervolume(self, metric: str, whole: float) -> float:
        """Of the policies within the budget, as a share of what accuracy 1 at no cost has.

        Args:
            metric: of the cost.
            whole: that of the uncompressed network, from which it is counted: counted from the budget, policies that
                use it up would be worth nothing.
        """
        points = [(each.cost[metric], each.accuracy) for each in self.evaluations if each.feasible]
        return hypervolume(points, (whole, 0.0)) / whole


def outcomes(searches: Sequence[Search]) -> list[Outcome]:
    """Of those that have begun."""
    found = [Outcome(search, search.journal) for search in searches]
    return [each for each in found if each.journal.lines]


@dataclass(frozen=True)
class Standing:
    """A searcher under one budget.

    Attributes:
        name: of the searcher.
        outcomes: of its seeds.
    """

    name: str
    outcomes: Sequence[Outcome]

    @cached_property
    def best(self) -> Quartiles:
        return Quartiles.of([each.best for each in self.outcomes])

    @property
    def seedless(self) -> bool:
        """Whether its one outcome stands for every seed."""
        return self.name == "uniform"

    @property
    def median_outcome(self) -> Outcome:
        """Of the seed in the middle; of two, the worse."""
        return sorted(self.outcomes, key=lambda each: (each.best, each.search.seed))[(len(self.outcomes) - 1) // 2]

    def minus(self, other: "Standing") -> Difference | None:
        """How far it is above another, seed by seed; None where no seed pairs up, or found nothing."""
        own = {each.search.seed: each.best for each in self.outcomes}
        others = {each.search.seed: each.best for each in other.outcomes}
        if self.seedless:
            own = dict.fromkeys(others, self.outcomes[0].best)
        if other.seedless:
            others = dict.fromkeys(own, other.outcomes[0].best)
        pairs = [own[seed] - others[seed] for seed in sorted(own.keys() & others.keys())]
        return Difference.of(pairs) if pairs and all(isfinite(pair) for pair in pairs) else None


def standings(found: Sequence[Outcome]) -> list[Standing]:
    """From the best median down; of equal ones, that of the larger mean first."""
    names = dict.fromkeys(each.search.searcher for each in found)
    made = [Standing(name, [each for each in found if each.search.searcher == name]) for name in names]
    return sorted(made, key=lambda each: (-each.best.median, -sum(one.best for one in each.outcomes)))


COLUMNS = (
    "searcher",
    "median",
    "quartiles",
    "minus the first (95 %)",
    "test",
    "hypervolume",
    "whole evaluations",
    "s evaluating",
    "s thinking",
)


def table(task: Task, metric: str, ranked: Sequence[Standing], tested: Mapping[str, float]) -> Iterator[str]:
    """Lines of Markdown.

    Args:
        task: what was searched.
        metric: of the budget.
        ranked: see `standings`.
        tested: test accuracy of the median seed's policy after fine-tuning, by searcher, where it is known.
    """
    problem = problem_of(task)
    whole = price(problem.graph, None, problem.backend)[metric]
    yield f"### {task.title}\n"
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    for each in ranked:
        difference = None if each is ranked[0] else each.minus(ranked[0])
        cells = [
            each.name if all(one.finished for one in each.outcomes) else f"{each.name} (unfinished)",
            percent(each.best.median),
            "" if each.seedless else f"{percent(each.best.lower)} - {percent(each.best.upper)}",
            "" if difference is None else points(difference),
            percent(tested[each.name]) if each.name in tested else "",
            f"{median(one.hypervolume(metric, whole) for one in each.outcomes):.3f}",
            f"{median(one.efforts[-1] for one in each.outcomes):.0f}",
            f"{median(one.evaluating_s for one in each.outcomes):.0f}",
            f"{median(one.thinking_s for one in each.outcomes):.0f}",
        ]
        yield f"| {' | '.join(cells)} |"


def verdicts(ranked: Sequence[Standing]) -> Iterator[str]:
    """What may be said: is auto first, does each agent beat random?"""
    by_name = {each.name: each for each in ranked}
    if auto := by_name.get("auto"):
        first = ranked[0]
        difference = None if auto is first else auto.minus(first)
        if auto is first:
            yield "- auto: first"
        elif difference is None or difference.low is None:
            yield f"- auto: behind {first.name}; too few seeds to tell apart"
        elif difference.told_apart and difference.mean < 0:
            yield f"- auto: BEHIND {first.name}, {points(difference)}"
        else:
            yield f"- auto: not told apart from the first ({first.name}), {points(difference)}"
    random = by_name.get("random")
    for name in AGENTS:
        if random is None or name not in by_name or (difference := by_name[name].minus(random)) is None:
            continue
        how = "beats" if difference.mean > 0 else "LOSES TO"
        yield f"- {name}: {how if difference.told_apart else 'not told apart from'} random, {points(difference)}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %" if isfinite(share) else "nothing found"


def points(difference: Difference) -> str:
    """In points, with the interval where there is one."""
    if difference.low is None or difference.high is None:
        return f"{100 * difference.mean:+.1f}"
    return f"{100 * difference.mean:+.1f} ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
