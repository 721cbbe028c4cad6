"""Do channels and bits together lose less than either alone, under budgets that either alone can keep?

    python benchmarks/joint.py [--out DIR] [--stretch-minutes 150]

ResNet-20 on glyphs, priced by Bit Fusion's model: 35 % of the latency and 8 % of the bytes, both at once. Pruning alone
computes with the 16 bits of that hardware and stores float32; quantisation alone keeps all channels. All three spaces
have the same searcher and number of evaluations. In stretches, as `searchers.py`.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from search_figures import Standing, outcomes, percent, points
from search_jobs import FineTuning, Search, Task, prepare
from searchers import RESNET
from stretches import parser_of, run_jobs

from automl.cache import cache_dir
from automl.searchers import searcher_names

_BITS = {"weight_bits": [2, 3, 4, 8], "activation_bits": [2, 4, 8]}
_SPACES = {
    "pruning": {},
    "quantisation": {"channels": False, **_BITS},
    "joint": _BITS,
}
TASKS = tuple(
    Task(
        name,
        name,
        {
            **RESNET,
            "space": space,
            "budget": [
                {"metric": "modelled_latency_s", "ratio": 0.35},
                {"metric": "weight_bytes", "ratio": 0.08},
            ],
            "measure": {"backend": "none", "accelerator": "bit_fusion"},
        },
    )
    for name, space in _SPACES.items()
)


def main() -> None:
    known = [name for name, _ in searcher_names()]
    parser = parser_of(__doc__, evaluations=200)
    parser.add_argument("--searcher", choices=known, default="auto" if "auto" in known else "evolution")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = arguments.out or cache_dir("benchmarks", "joint")
    searches = [
        Search(out, task, arguments.searcher, seed, arguments.evaluations)
        for seed in range(arguments.seeds)
        for task in TASKS
    ]
    if not arguments.report:
        deadline = time.time() + 60.0 * arguments.stretch_minutes
        for task in TASKS:
            prepare(task)
        done = run_jobs(searches, arguments.processes, deadline)
        done &= run_jobs(list(tunings(out, searches)), arguments.processes, deadline)
        print("Nothing is left." if done else "The stretch is over: run it again.", flush=True)
    print("\n".join(report(out, searches)))


def tunings(out: Path, searches: Sequence[Search]) -> Iterator[FineTuning]:
    """Of the median seed's policy of each space."""
    for standing in ranked(searches):
        outcome = standing.median_outcome
        if all(each.finished for each in standing.outcomes) and outcome.policy is not None:
            yield FineTuning(out, outcome.search.task, outcome.policy)


def ranked(searches: Sequence[Search]) -> list[Standing]:
    """Of each space; `name` is the space's."""
    found = outcomes(searches)
    return [Standing(task.name, own) for task in TASKS if (own := [each for each in found if each.search.task == task])]


def report(out: Path, searches: Sequence[Search]) -> Iterator[str]:
    """The table, and whether the joint space is above both others."""
    standings = ranked(searches)
    joint = next((each for each in standings if each.name == "joint"), None)
    yield "| space | median | quartiles | joint minus it (95 %) | test, fine-tuned |"
    yield "|---|---|---|---|---|"
    for each in standings:
        difference = joint.minus(each) if joint is not None and joint is not each else None
        policy = each.median_outcome.policy
        tested = None if policy is None else FineTuning(out, each.median_outcome.search.task, policy).accuracy
        cells = [
            each.name,
            percent(each.best.median),
            f"{percent(each.best.lower)} - {percent(each.best.upper)}",
            "" if difference is None else points(difference),
            "" if tested is None else percent(tested),
        ]
        yield f"| {' | '.join(cells)} |"
    if joint is None:
        return
    below = [each for each in standings if each is not joint]
    above = all((gain := joint.minus(each)) is not None and gain.mean > 0 and gain.told_apart for each in below)
    yield f"\nThe joint space is {'above' if above else 'NOT told apart from, or below, one of'} both others."


if __name__ == "__main__":
    sys.exit(main())
