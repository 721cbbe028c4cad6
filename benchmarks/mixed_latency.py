"""Do channels with 8-bit or float layers lose less accuracy than channels alone, at 40 % of the latency by the clock?

    python benchmarks/mixed_latency.py [--out DIR] [--stretch-minutes 150]

ResNet-20 on glyphs, one thread of this CPU. Searches go by the table of TVM's operators, 8-bit ones included, and hold
3 % back for its error. The best policies of every seed are then compiled and take turns with the dense float network in
several fresh processes; those that are above the budget by the clock are passed over. What is left is fine-tuned and
tested. In stretches, as `searchers.py`; latencies want a quiet machine.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from search_figures import Outcome, outcomes, percent, points
from search_jobs import FineTuning, Search, Task, prepare, problem_of
from searchers import RESNET
from stretches import parser_of, run_jobs

from automl.cache import atomic_path, cache_dir
from automl.compare.statistics import Difference, Quartiles
from automl.configured import example_input
from automl.run.artefacts import make_artefact
from automl.searchers import searcher_names
from backends.measuring import measure
from search_spaces.policy import CompressionPolicy

RATIO = 0.4
_EITHER = [8, None]
_SPACES = {
    "channels": {},
    "mixed": {"weight_bits": _EITHER, "activation_bits": _EITHER, "coupled_bits": True, "ends": True},
}
CANDIDATES = 3
"""Policies of a search that are measured; the best one within the budget counts."""
DENSE = CompressionPolicy()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    out: Path = arguments.out or cache_dir("benchmarks", "mixed_latency")
    searches = planned(out, arguments)
    if not arguments.report:
        deadline = time.time() + 60.0 * arguments.stretch_minutes
        for search in searches[: len(_SPACES)]:
            prepare(search.task)
        done = run_jobs(searches, arguments.processes, deadline)
        if done:
            measured(out, outcomes(searches), arguments)
            done = run_jobs(list(tunings(out, searches)), arguments.processes, deadline)
        print("Nothing is left." if done else "The stretch is over: run it again.", flush=True)
    print("\n".join(report(out, searches)))


def parse_arguments() -> argparse.Namespace:
    known = [name for name, _ in searcher_names()]
    parser = parser_of(__doc__, evaluations=200)
    parser.add_argument("--searcher", choices=known, default="auto" if "auto" in known else "evolution")
    parser.add_argument("--warming", type=int, default=300, help="random policies whose operators are measured first")
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes that networks are measured in")
    return parser.parse_args()


def planned(out: Path, arguments: argparse.Namespace) -> list[Search]:
    """Both spaces under every seed."""
    tasks = [
        Task(
            name,
            name,
            {
                **RESNET,
                "space": space,
                "budget": {"metric": "latency_s", "ratio": RATIO},
                "measure": {"backend": "tvm", "threads": 1, "margin": 0.03},
            },
            arguments.warming,
        )
        for name, space in _SPACES.items()
    ]
    return [
        Search(out, task, arguments.searcher, seed, arguments.evaluations)
        for seed in range(arguments.seeds)
        for task in tasks
    ]


def measured(out: Path, found: Sequence[Outcome], arguments: argparse.Namespace) -> None:
    """Compile and measure what has not been measured yet; kept in OUT/shares.json."""
    known = shares(out)
    new = {each.digest: (one.search.task, each) for one in found for each in one.best_policies(CANDIDATES)}
    new = {digest: pair for digest, pair in new.items() if digest not in known}
    if not new:
        return
    problem = problem_of(found[0].search.task)
    example, threads = example_input(problem.data), problem.config.measure.threads
    with tempfile.TemporaryDirectory(prefix="trimtab-benchmark-") as folder:
        networks = [problem.network.prune({}).eval()]
        networks += [problem_of(task).compressor().compress(policy) for task, policy in new.values()]
        artefacts = [
            make_artefact("tvm", network, example, Path(folder), str(number), threads).artefact
            for number, network in enumerate(networks)
        ]
        rounds = [measure(artefacts, example.numpy(), threads=threads) for _ in range(arguments.repeats)]
    seconds = [[each.latency_s for each in one] for one in rounds]
    for number, digest in enumerate(new, 1):
        known[digest] = median(one[number] / one[0] for one in seconds)
    known[DENSE.digest] = median(one[0] for one in seconds)
    with atomic_path(out / "shares.json") as temporary:
        temporary.write_text(json.dumps(known))


def shares(out: Path) -> dict[str, float]:
    """Measured latency over the dense network's, by the policy's digest; of the empty policy the seconds."""
    path = out / "shares.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def chosen(outcome: Outcome, known: Mapping[str, float]) -> tuple[CompressionPolicy, float] | None:
    """The most accurate policy that is within the budget by the clock, and its search accuracy."""
    kept = [each for each in outcome.best_policies(CANDIDATES) if known.get(each.digest, 1.0) <= RATIO]
    if not kept:
        return None
    return kept[0], outcome.accuracy_of(kept[0])


def tunings(out: Path, searches: Sequence[Search]) -> Iterator[FineTuning]:
    """Of what was chosen for every seed."""
    known = shares(out)
    for each in outcomes(searches):
        if (pair := chosen(each, known)) is not None:
            yield FineTuning(out, each.search.task, pair[0])


def report(out: Path, searches: Sequence[Search]) -> Iterator[str]:
    """A row for each space, and the difference between them seed by seed."""
    known = shares(out)
    rows: dict[str, dict[int, tuple[float, float | None, float]]] = {name: {} for name in _SPACES}
    passed = dict.fromkeys(_SPACES, 0)
    for each in outcomes(searches):
        task, seed = each.search.task, each.search.seed
        if (pair := chosen(each, known)) is not None:
            policy, accuracy = pair
            rows[task.name][seed] = accuracy, FineTuning(out, task, policy).accuracy, known[policy.digest]
            passed[task.name] += each.best_policies(CANDIDATES).index(policy)
    if DENSE.digest in known:
        yield f"dense, float: {known[DENSE.digest] * 1e6:.1f} us\n"
    yield "| space | seeds within the budget | measured share | search accuracy | test, fine-tuned | passed over |"
    yield "|---|---|---|---|---|---|"
    for name, row in rows.items():
        if row:
            accuracies, tests, taken = zip(*row.values(), strict=True)
            texts = [quartiles([test for test in tests if test is not None])]
            texts.insert(0, quartiles(accuracies))
            span = f"{min(taken):.3f} - {max(taken):.3f}"
            yield f"| {name} | {len(row)} | {span} | {' | '.join(texts)} | {passed[name]} |"
    for index, what in enumerate(("search accuracy", "test accuracy, fine-tuned")):
        both = [
            (rows["mixed"][seed][index], rows["channels"][seed][index])
            for seed in sorted(rows["mixed"].keys() & rows["channels"].keys())
        ]
        gains = [one - other for one, other in both if one is not None and other is not None]
        if gains:
            yield f"\nmixed minus channels, {what}: {points(Difference.of(gains))} points, {len(gains)} seeds"


def quartiles(accuracies: Sequence[float]) -> str:
    """Median, and the quartiles around it."""
    if not accuracies:
        return ""
    found = Quartiles.of(accuracies)
    return f"{percent(found.median)} ({percent(found.lower)} - {percent(found.upper)})"


if __name__ == "__main__":
    sys.exit(main())
