"""Does the agent find better policies than chance? ResNet-20 on glyphs, best search accuracy before fine-tuning.

    python benchmarks/agent_vs_random.py OUT [--seeds 5] [--evaluations 400] [--budgets 0.5 0.3] [--images 20000]

Every evaluation is committed to OUT/evaluations.sqlite as it ends. Run the same command again after an interruption:
the searchers, which are deterministic, are told the stored results and go on where they were.
"""

import argparse
import multiprocessing
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from automl.config import load_config
from automl.problem import Problem
from automl.searchers import make_searcher
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy

TABLE = """CREATE TABLE IF NOT EXISTS evaluations (
    budget REAL, searcher TEXT, seed INTEGER, number INTEGER,
    policy TEXT, accuracy REAL, macs REAL, violation REAL, error TEXT, seconds REAL,
    PRIMARY KEY (budget, searcher, seed, number))"""


@dataclass(frozen=True)
class Job:
    """One search."""

    out: Path
    images: int
    epochs: int
    searcher: str
    faithful: bool
    budget: float
    seed: int
    evaluations: int
    lag: int

    @property
    def label(self) -> str:
        return f"{self.searcher} (faithful)" if self.faithful else self.searcher


def main() -> None:
    arguments = parse_arguments()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    with connect(out) as database:
        database.execute(TABLE)
    problem = build_problem(arguments.images, arguments.epochs)
    whole = problem.evaluator()(CompressionPolicy())
    print(
        f"ResNet-20, {problem.graph.macs:,} MACs, {len(problem.graph.groups)} channel groups; glyphs, "
        f"{len(problem.data.val)} search-validation images, accuracy of the whole network {whole.accuracy:.4f}"
    )
    searchers = [("uniform", False), ("random", False), ("ddpg", False)] + [("ddpg", True)] * arguments.faithful
    jobs = [
        Job(
            out,
            arguments.images,
            arguments.epochs,
            name,
            faithful,
            budget,
            seed,
            1 if name == "uniform" else arguments.evaluations,
            arguments.lag,
        )
        for seed in range(arguments.seeds)
        for budget in arguments.budgets
        for name, faithful in searchers
        if name != "uniform" or seed == 0
    ]
    started = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=context) as pool:
        for done, finished in enumerate(as_completed([pool.submit(search, job) for job in jobs]), 1):
            label, budget, seed, best = finished.result()
            elapsed = time.perf_counter() - started
            print(f"[{done}/{len(jobs)}, {elapsed:.0f} s] {label} at {budget:.0%}, seed {seed}: {best:.4f}", flush=True)
    report(out, arguments.budgets, [job.label for job in jobs], arguments.seeds, arguments.evaluations)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=400, help="of each search, warm-up included")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.3], help="shares of the network's MACs")
    parser.add_argument("--images", type=int, default=20_000, help="size of the data set; a twentieth validates")
    parser.add_argument("--epochs", type=int, default=12, help="of the baseline")
    parser.add_argument("--lag", type=int, default=4, help="results that a proposal does not know yet")
    parser.add_argument("--faithful", action="store_true", help="also run the agent as published")
    parser.add_argument("--processes", type=int, default=2)
    return parser.parse_args()


@cache
def build_problem(images: int, epochs: int) -> Problem:
    """Once for each process; the trained baseline comes from the cache."""
    config = load_config(
        {
            "model": {"name": "resnet20"},
            "data": {"name": "glyphs", "args": {"images": images, "val": images // 20}},
            "baseline": {"epochs": epochs},
            "budget": {"metric": "macs", "ratio": 0.5},
        }
    )
    return Problem.build(config, lambda report: print(f"baseline: epoch {report.epoch}, loss {report.loss:.3f}"))


def search(job: Job) -> tuple[str, float, int, float]:
    """Run one search, or the rest of it; the best accuracy of a feasible policy."""
    torch.set_num_threads(1)
    problem = build_problem(job.images, job.epochs)
    constraint = Constraint("macs", job.budget * problem.graph.macs)
    evaluator = problem.evaluator()
    evaluator.constraint = constraint
    searcher = make_searcher(
        job.searcher,
        space=problem.space,
        constraint=constraint,
        seed=job.seed,
        evaluations=job.evaluations,
        faithful=job.faithful,
    )
    stored = deque(stored_evaluations(job))
    pending: deque[tuple[CompressionPolicy, Evaluation]] = deque()
    best = 0.0
    for number in range(job.evaluations):
        policy = searcher.ask()
        if stored:
            digest, evaluation = stored.popleft()
            if digest != policy.digest:
                raise RuntimeError(f"{job.out} holds results of other options or another version: use a new folder")
        else:
            evaluation = evaluator(policy)
            store(job, number, policy, evaluation)
        if evaluation.feasible:
            best = max(best, evaluation.accuracy)
        pending.append((policy, evaluation))
        if len(pending) > job.lag:
            searcher.tell(*pending.popleft())
    return job.label, job.budget, job.seed, best


@contextmanager
def connect(out: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(out / "evaluations.sqlite", timeout=60)) as database, database:
        yield database


def store(job: Job, number: int, policy: CompressionPolicy, evaluation: Evaluation) -> None:
    row = (job.budget, job.label, job.seed, number, policy.digest, evaluation.accuracy, evaluation.cost["macs"])
    with connect(job.out) as database:
        database.execute(
            "INSERT INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, evaluation.violation, evaluation.error, evaluation.seconds),
        )


def stored_evaluations(job: Job) -> list[tuple[str, Evaluation]]:
    with connect(job.out) as database:
        rows = database.execute(
            "SELECT policy, accuracy, macs, violation, seconds, error FROM evaluations "
            "WHERE budget = ? AND searcher = ? AND seed = ? AND number < ? ORDER BY number",
            (job.budget, job.label, job.seed, job.evaluations),
        ).fetchall()
    return [(policy, Evaluation(accuracy, {"macs": macs}, *rest)) for policy, accuracy, macs, *rest in rows]


def report(out: Path, budgets: Sequence[float], labels: Sequence[str], seeds: int, evaluations: int) -> None:
    """The table: best accuracy over the seeds, and the paired differences to random search with their bootstrap."""
    for budget in budgets:
        print(f"\nbest search accuracy at {budget:.0%} of the MACs, {evaluations} evaluations, {seeds} seeds")
        print(f"{'':18}{'median':>8}{'quartiles':>18}{'range':>18}   minus random (95 %)   MACs over budget")
        found = {label: best_by_seed(out, budget, label, seeds, evaluations) for label in dict.fromkeys(labels)}
        for label, (best, overshoot) in found.items():
            low, lower, median, upper, high = np.percentile(best, [0, 25, 50, 75, 100])
            line = f"{label:18}{median:8.4f}{f'{lower:.4f}-{upper:.4f}':>18}{f'{low:.4f}-{high:.4f}':>18}"
            if label.startswith("ddpg"):
                gain = np.array(best) - np.array(found["random"][0])
                drawn = np.random.default_rng(0).choice(gain, (10_000, len(gain))).mean(axis=1)
                left, right = np.percentile(drawn, [2.5, 97.5])
                line += f"   {gain.mean():+.4f} ({left:+.4f} to {right:+.4f})"
            print(f"{line}{f'   {overshoot:.0%} of policies' if overshoot else ''}")


def best_by_seed(out: Path, budget: float, label: str, seeds: int, evaluations: int) -> tuple[list[float], float]:
    """The best accuracy of a feasible policy for each seed, and the share of policies above the budget."""
    with connect(out) as database:
        rows = database.execute(
            "SELECT seed, MAX(CASE WHEN violation = 0 AND error IS NULL THEN accuracy ELSE 0 END), AVG(violation > 0) "
            "FROM evaluations WHERE budget = ? AND searcher = ? AND seed < ? AND number < ? "
            "GROUP BY seed ORDER BY seed",
            (budget, label, seeds, evaluations),
        ).fetchall()
    return [row[1] for row in rows], float(np.mean([row[2] for row in rows]))


if __name__ == "__main__":
    sys.exit(main())
