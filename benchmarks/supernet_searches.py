"""Searches over a supernet: is the predictor worth it, and are architecture and bits better searched together?

    python benchmarks/supernet_searches.py predictor|joint [--out DIR] [--stretch-minutes 150]

`predictor`: evolution on predicted accuracies against random search with as many real evaluations; a third of the MACs.
`joint` (Wang et al., "APQ: Joint Search for Network Architecture, Pruning and Quantization Policy", CVPR 2020): on Bit
Fusion's model, under a latency and a size that both have to be kept, architecture and bits searched together, against
the architecture first, with all layers in 8 bits and budgets that are looser by a factor, then the bits of what was
found under the budgets themselves; both with as many evaluations in all. Both know the sub-networks that the supernet's
predictor learns from, as the product's searches do.

The supernet is that of `configs/glyphs_supernet.yaml`, trained at first where the cache does not hold it. In stretches,
as `searchers.py`.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from search_figures import Outcome, Standing, outcomes, percent, points
from search_jobs import Search, Task, prepare
from search_records import SharedEvaluations
from stretches import Stop, parser_of, run_jobs

from automl.cache import cache_dir, digest_of
from automl.costs.pricing import price
from automl.errors import InputError
from automl.once_for_all.sampling import drawn
from automl.predictors.samples import TRAIN, Sample, read_samples, write_samples
from automl.problem import Problem
from search_spaces.space import ELASTIC, SearchSpace

CONFIG = Path(__file__).parent.parent / "configs" / "glyphs_supernet.yaml"
BITS = {"weight_bits": [2, 4, 6, 8], "activation_bits": [4, 8]}
LOOSER = (1.0, 1.25, 1.5)
"""Factors of the size that the architecture of the two-step way keeps in 8 bits; its latency hardly falls with bits."""


def task(name: str, title: str, **sections: Any) -> Task:
    """On the shipped supernet, with other sections."""
    shipped = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    kept = {name: section for name, section in shipped.items() if name not in ("devices", "search")}
    space = {**kept["space"], **sections.pop("space", {})}
    return Task(name, title, {**kept, "space": space, "measure": {"backend": "none"}, **sections})


PREDICTOR = task("predictor", "a third of the MACs", budget={"metric": "macs", "ratio": 0.33})
BUDGETS = {"modelled_latency_s": 0.06, "weight_bytes": 0.06}


def on_bit_fusion(name: str, title: str, space: Mapping[str, Any], factor: float = 1.0) -> Task:
    """Under the budgets, the size times a factor."""
    limits = {**BUDGETS, "weight_bytes": factor * BUDGETS["weight_bytes"]}
    budgets = [{"metric": metric, "ratio": ratio} for metric, ratio in limits.items()]
    return task(name, title, space=space, budget=budgets, measure={"backend": "none", "accelerator": "bit_fusion"})


JOINT = on_bit_fusion("joint", "architecture and bits together", BITS)
FIRST = {
    factor: on_bit_fusion(f"first-{factor}", "architecture", {"weight_bits": [8], "activation_bits": [8]}, factor)
    for factor in LOOSER
}


def samples(out: Path, problem: Problem) -> list[Sample]:
    """Sub-networks that a predictor learns from, evaluated at first; once for all searches of a folder."""
    file, digest = out / "samples.json", problem.graph.digest
    if not file.exists():
        supernet = problem.config.supernet
        assert supernet is not None
        evaluate = SharedEvaluations(out / "evaluations.sqlite", problem)
        policies = drawn(problem.space, supernet.predictor.samples, 0, 0)[TRAIN]
        found = [evaluate(each, price(problem.graph, each, problem.backend), 1.0) for each in policies]
        known = [Sample(each, result.accuracy) for each, result in zip(policies, found, strict=True)]
        write_samples(file, digest, known)
    return read_samples(file, digest)


@dataclass(frozen=True)
class Informed(Search):
    """One that learns from those sub-networks before it evaluates any."""

    def known(self, problem: Problem) -> Sequence[Sample]:
        return samples(self.out, problem)

    @property
    def key(self) -> str:
        return digest_of([super().key, "informed"])


@dataclass(frozen=True)
class Second(Informed):
    """The second of two steps: the bits of the architecture that the first one found."""

    first: Search | None = None

    @property
    def before(self) -> Search:
        assert self.first is not None
        return self.first

    @property
    def label(self) -> str:
        return f"bits after {self.before.label}"

    @property
    def file(self) -> Path:
        return self.out / f"second-{self.before.task.name}" / f"{self.searcher}-{self.seed}-{self.evaluations}.jsonl"

    @property
    def key(self) -> str:
        return digest_of([super().key, self.before.key])

    def run(self, stop: Stop) -> None:
        if self.before.ended is not None:  # else another process is at it, and the next stretch has this
            super().run(stop)

    def space(self, problem: Problem) -> SearchSpace:
        policy = Outcome(self.before, self.before.journal).policy
        if policy is None:
            raise InputError("the first step found no architecture within its budgets")
        point = problem.space.encode(policy)
        decisions = (
            replace(each, choices=(each.choices[number],)) if each.dimension in ELASTIC else each
            for each, number in zip(problem.space.decisions, point.tolist(), strict=True)
        )
        return replace(problem.space, decisions=tuple(decisions))


def main() -> None:
    parser = parser_of(__doc__, evaluations=200)
    parser.add_argument("what", choices=["predictor", "joint"])
    parser.add_argument("--searcher", default="once_for_all", help="of both ways to search jointly")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = arguments.out or cache_dir("benchmarks", "supernet")
    seeds, count = range(arguments.seeds), arguments.evaluations
    tasks: Sequence[Task]
    if arguments.what == "predictor":
        tasks = [PREDICTOR]
        searches = [Search(out, PREDICTOR, name, seed, count) for seed in seeds for name in ("once_for_all", "random")]
    else:
        tasks = [JOINT, *FIRST.values()]
        searches = [Informed(out, JOINT, arguments.searcher, seed, count) for seed in seeds]
        for first in FIRST.values():
            for seed in seeds:
                architecture = Informed(out, first, arguments.searcher, seed, count // 2)
                bits = Second(out, JOINT, arguments.searcher, seed, count // 2, first=architecture)
                searches += [architecture, bits]
    if not arguments.report:
        deadline = time.time() + 60.0 * arguments.stretch_minutes
        for each in tasks:
            prepare(each)
        if JOINT in tasks:
            samples(out, prepare(JOINT))
        done = run_jobs(searches, arguments.processes, deadline)
        print("Nothing is left." if done else "The stretch is over: run it again.", flush=True)
    print("\n".join(of_predictor(searches) if arguments.what == "predictor" else of_joint(searches)))


def of_predictor(searches: Sequence[Search]) -> Iterator[str]:
    """Both searchers after so many evaluations."""
    found = outcomes(searches)
    yield from lines([Standing(name, [each for each in found if each.search.searcher == name]) for name in NAMES])


NAMES = ("once_for_all", "random")


def of_joint(searches: Sequence[Search]) -> Iterator[str]:
    """The joint search, and the two-step way with each factor."""
    found = outcomes(searches)
    joint = [each for each in found if each.search.task is JOINT and not isinstance(each.search, Second)]
    standings = [Standing("together", joint)]
    for factor, first in FIRST.items():
        own = [each for each in found if isinstance(each.search, Second) and each.search.before.task is first]
        standings.append(Standing(f"in two steps, the first within {factor} times the size", own))
    yield from lines(standings)


def lines(standings: Sequence[Standing]) -> Iterator[str]:
    """A table; the first is compared with the others."""
    yield "| search | median | quartiles | the first minus it (95 %) |"
    yield "|---|---|---|---|"
    for each in standings:
        if not each.outcomes:
            continue
        difference = None if each is standings[0] else standings[0].minus(each)
        quartiles = f"{percent(each.best.lower)} - {percent(each.best.upper)}"
        cells = [each.name, percent(each.best.median), quartiles, "" if difference is None else points(difference)]
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
