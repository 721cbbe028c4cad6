"""Which searcher finds the best policies, what does it spend, and does it beat chance?

    python benchmarks/searchers.py [--out DIR] [--stretch-minutes 150]

ResNet-20 on glyphs (16 px, 256 search-validation images) under three budgets by all searchers, MobileNetV2 and the
joint space by four; 200 evaluations and 5 seeds each. Two processes work for so many minutes; run the same command
again until it says that nothing is left (it goes on after a kill, too). Every policy is evaluated once, whoever
proposes it first.

A first stretch on a quiet machine trains the baselines and measures the operators of the latency table. For an estimate
of the whole, take a quick look before: `--seeds 1 --evaluations 20`, in the same folder.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from statistics import median

import torch
from search_figures import Standing, outcomes, percent, standings, table, verdicts
from search_jobs import FineTuning, Search, Task, prepare, problem_of
from stretches import parser_of, run_jobs

from automl.cache import cache_dir
from automl.searchers import searcher_names

GLYPHS = {"name": "glyphs", "args": {"size": 16, "images": 10_000, "val": 256}}
RESNET = {
    "model": {"name": "resnet20"},
    "data": GLYPHS,
    "baseline": {"epochs": 12, "lr": 0.1},
    "fine_tune": {"epochs": 3, "lr": 0.01},
    "measure": {"backend": "none"},
}
MOBILENET = {
    "model": {"name": "mobilenet_v2", "args": {"width": 0.35}},
    "data": GLYPHS,
    "baseline": {"epochs": 8, "batch_size": 128, "lr": 0.1},
    "fine_tune": {"epochs": 3, "batch_size": 128, "lr": 0.01},
    "measure": {"backend": "none"},
}
TASKS = (
    Task(
        "macs",
        "ResNet-20, channels, 50 % of the MACs",
        {**RESNET, "budget": {"metric": "macs", "ratio": 0.5}},
    ),
    Task(
        "bytes",
        "ResNet-20, channels and bits of weights, 10 % of the bytes",
        {
            **RESNET,
            "space": {"weight_bits": [2, 3, 4, 5, 6, 8]},
            "budget": {"metric": "weight_bytes", "ratio": 0.1},
        },
    ),
    Task(
        "latency",
        "ResNet-20, channels, 50 % of the latency by TVM's table",
        {
            **RESNET,
            "budget": {"metric": "latency_s", "ratio": 0.5},
            "measure": {"backend": "tvm", "margin": 0.0},
        },
    ),
    Task(
        "mobilenet",
        "MobileNetV2, channels, 50 % of the MACs",
        {**MOBILENET, "budget": {"metric": "macs", "ratio": 0.5}},
    ),
    Task(
        "joint",
        "ResNet-20 on Bit Fusion, channels, bits and zeros, 20 % of the latency and 10 % of the bytes",
        {
            **RESNET,
            "space": {"weight_bits": [2, 4, 8], "activation_bits": [4, 8], "sparsity": [0.5, 0.75]},
            "budget": [{"metric": "modelled_latency_s", "ratio": 0.2}, {"metric": "weight_bytes", "ratio": 0.1}],
            "measure": {"backend": "none", "accelerator": "bit_fusion"},
        },
    ),
)
FEW = ("auto", "ddpg", "evolution", "random")
"""Searchers of the last two tasks."""
TARGET = "ddpg"
"""Whose accuracy after many episodes auto is to reach."""
EFFORTS = (40, 80)
"""Evaluations that auto may take for it: the goal, and the limit."""


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    out: Path = arguments.out or cache_dir("benchmarks", "searchers")
    deadline = time.time() + 60.0 * arguments.stretch_minutes
    searches = list(planned(out, arguments))
    if not searches:
        raise SystemExit(f"nothing is called {' '.join(arguments.only)}")
    if not arguments.report:
        estimate(searches, arguments.processes)
        for task in dict.fromkeys(search.task for search in searches if search.ended is None):
            prepare(task)
        left = not run_jobs(searches, arguments.processes, deadline)
        left |= not run_jobs(list(tunings(out, searches, arguments.evaluations)), arguments.processes, deadline)
        print("The stretch is over: run it again." if left else "Nothing is left.", flush=True)
    lines = list(report(out, searches, arguments.evaluations))
    (out / "report.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def parse_arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, evaluations=200)
    parser.add_argument("--only", nargs="*", default=[], metavar="TASK[,SEARCHER]", help="some of it, for a look")
    parser.add_argument("--episodes", type=int, default=400, help=f"of the {TARGET} that auto is to reach; 0: none")
    return parser.parse_args()


def planned(out: Path, arguments: argparse.Namespace) -> Iterator[Search]:
    """All searches: every seed's before the next one's, so that a part of them makes a table already."""
    known = [name for name, _ in searcher_names() if name != "given"]
    wanted = [tuple(each.split(",")) for each in arguments.only]
    for seed in range(arguments.seeds):
        for number, task in enumerate(TASKS):
            for name in known if number < 3 else [name for name in known if name in FEW]:
                if wanted and (task.name,) not in wanted and (task.name, name) not in wanted:
                    continue
                if name != "uniform":
                    yield Search(out, task, name, seed, arguments.evaluations)
                elif seed == 0:
                    yield Search(out, task, name, seed, 1)
        if arguments.episodes:
            for name, evaluations in ((TARGET, arguments.episodes), *(("auto", effort) for effort in EFFORTS)):
                if not wanted or (TASKS[0].name,) in wanted or (TASKS[0].name, name) in wanted:
                    yield Search(out, TASKS[0], name, seed, evaluations)


def estimate(searches: Sequence[Search], processes: int) -> None:
    """Print what is left, by what evaluations and proposals took lately."""
    seconds, unknown, left = 0.0, 0, 0
    for search in searches:
        if search.ended is not None:
            continue
        left += 1
        pace = _pace(search)
        done = len(search.journal.lines)
        if pace is None:
            unknown += 1
        else:
            seconds += pace * (search.evaluations - done)
    print(
        f"{left} of {len(searches)} searches are left: {seconds / processes / 3600:.1f} h at the pace of the latest "
        f"evaluations, and {unknown} of which nothing is known yet; fine-tuning comes on top",
        flush=True,
    )


def _pace(search: Search) -> float | None:
    """Seconds of an evaluation and the thought before it, from the longest journal there is of that searcher."""
    journals = []
    for path in search.file.parent.glob(f"{search.searcher}-*-*.jsonl"):
        *_, seed, evaluations = path.stem.split("-")
        journals.append(Search(search.out, search.task, search.searcher, int(seed), int(evaluations)).journal)
    journal = max(journals, key=lambda each: len(each.thinking), default=None)
    if journal is None or not journal.thinking:
        return None
    latest = sorted(journal.thinking)[-10:]
    return median(journal.thinking[number] + journal.lines[number]["seconds"] for number in latest)


def tunings(out: Path, searches: Sequence[Search], evaluations: int) -> Iterator[FineTuning]:
    """Of the median seed's policy of each searcher whose seeds have all ended."""
    for task, ranked in _ranked(searches, evaluations):
        for standing in ranked:
            if all(each.finished for each in standing.outcomes) and (policy := standing.median_outcome.policy):
                yield FineTuning(out, task, policy)


def report(out: Path, searches: Sequence[Search], evaluations: int) -> Iterator[str]:
    """The tables, and what may be said."""
    for task, ranked in _ranked(searches, evaluations):
        tested = {}
        for standing in ranked:
            policy = standing.median_outcome.policy
            if policy is not None and (accuracy := FineTuning(out, task, policy).accuracy) is not None:
                tested[standing.name] = accuracy
        yield from table(task, problem_of(task).constraint.metric, ranked, tested)
        yield ""
        yield from verdicts(ranked)
        yield from sorted({f"- {each.searcher}: {each.ended}" for each in searches if each.task == task and _why(each)})
        if task is TASKS[0]:
            yield from reaching([each for each in searches if each.evaluations != evaluations])
        yield ""


def _why(search: Search) -> bool:
    return search.ended is not None and search.ended != "finished"


def reaching(searches: Sequence[Search]) -> Iterator[str]:
    """How much auto needs for what the agent has after its episodes."""
    extra = [each for each in outcomes(searches) if each.finished]
    agents = [each for each in extra if each.search.searcher == TARGET]
    if not agents:
        return
    target = median(each.best for each in agents)
    episodes = agents[0].search.evaluations
    yield f"- {TARGET} has {percent(target)} after {episodes} episodes (median of {len(agents)} seeds)"
    for effort in EFFORTS:
        autos = [each for each in extra if each.search.searcher == "auto" and each.search.evaluations == effort]
        if autos:
            needed = sorted(each.reached(target) for each in autos)
            shown = ", ".join(f"{each:.0f}" if isfinite(each) else "not reached" for each in needed)
            best = percent(median(each.best for each in autos))
            yield f"- auto with {effort} evaluations has {best}; it had the agent's after {shown}, by seed"


def _ranked(searches: Sequence[Search], evaluations: int) -> Iterator[tuple[Task, list[Standing]]]:
    """The standings of each task; searches of other lengths stand in none."""
    usual = [each for each in searches if each.evaluations == (1 if each.searcher == "uniform" else evaluations)]
    for task in dict.fromkeys(search.task for search in usual):
        if found := outcomes([each for each in usual if each.task == task]):
            yield task, standings(found)


if __name__ == "__main__":
    sys.exit(main())
