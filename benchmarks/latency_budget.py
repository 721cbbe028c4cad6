"""Do networks found under a latency budget keep it by the clock, and what does a budget in MACs give instead?

    python benchmarks/latency_budget.py OUT [--networks resnet20 resnet56 vgg11] [--seeds 10] [--evaluations 30]

For each network: one run that searches with that many seeds for half of its latency, one for half of its MACs with a
few. They are runs like any other, in OUT; the same command again goes on after an interruption, and only measures
where they are done. Baselines are trained for a few epochs and nothing is fine-tuned: that changes no latency.

A run measures its best network before it fine-tunes it, and passes over what is not within the budget by the clock.
Each seed is given the same check here, so a row is what a run of that seed alone would have ended with. All these
networks, the uncompressed one and those of the MACs budget are then compiled anew and take turns in several fresh
processes; a network's share of the latency is the median, over the processes, of its ratio to the uncompressed network
beside it.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from automl.api import resume, search
from automl.config import Config, load_config
from automl.configured import example_input
from automl.costs.latency_budget import LatencyBudget, Probe
from automl.costs.pricing import price
from automl.costs.table_error import with_chosen_limit
from automl.problem import Problem
from automl.run.artefacts import make_artefact
from automl.run.directory import RunDirectory
from automl.run.finalists import Compiled, Finalist, choose, measure_all
from automl.run.store import Store
from backends.measuring import Artefact, measure
from search_spaces.errors import TrimtabError
from search_spaces.policy import CompressionPolicy

ROUND_TO = {"resnet20": 8, "resnet56": 8, "vgg11": 32}
"""Grid of the channel counts: whole vectors, and few enough widths for ten short searches to share their operators."""

RECONSTRUCT = {"resnet20": True, "resnet56": True, "vgg11": False}
"""Whether layers are refitted after pruning, which changes no latency: with 4,608 inputs it takes seconds a policy."""


@dataclass(frozen=True)
class Found:
    """The best policy of a seed.

    Attributes:
        label: for the row.
        policy: what it keeps.
        accuracy: on the search-validation slice, nothing fine-tuned.
        table_s: seconds by the table; None where the budget was another one.
        passed_over: better ones that the run's check found to be over the budget.
    """

    label: str
    policy: CompressionPolicy
    accuracy: float
    table_s: float | None
    passed_over: tuple[CompressionPolicy, ...] = ()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    for name in arguments.networks:
        try:
            show(name, arguments)
        except TrimtabError as error:
            print(f"{name}: {error}", flush=True)


def show(name: str, arguments: argparse.Namespace) -> None:
    """Everything about one network."""
    out: Path = arguments.out
    latency_run = searched(config(name, "latency_s", range(arguments.seeds), arguments), out / f"{name}-latency")
    macs_seeds = range(arguments.macs_seeds)
    macs_run = searched(config(name, "macs", macs_seeds, arguments), out / f"{name}-macs") if macs_seeds else None
    problem, budget = outline(latency_run)
    with compiler(problem) as compiled:
        under_latency = [
            kept for seed in range(arguments.seeds) if (kept := checked(latency_run, problem, budget, seed, compiled))
        ]
        under_macs = [found for seed in macs_seeds if macs_run and (found := best(macs_run, seed, float("inf")))]
        passed = {policy.digest: policy for found in under_latency for policy in found.passed_over}
        policies = [CompressionPolicy(), *(found.policy for found in [*under_latency, *under_macs]), *passed.values()]
        shares, baseline_s = measured(policies, problem, compiled, arguments)
    whole = search_accuracy(latency_run, "baseline")
    print_budget(name, budget, problem, baseline_s, whole, arguments)
    print_found(under_latency, shares, baseline_s, problem, budget, arguments)
    print_speed_ups(under_latency, under_macs, shares, problem, whole, arguments)


def config(name: str, metric: str, seeds: Sequence[int], arguments: argparse.Namespace) -> Config:
    """A run that searches for a share of the network's latency or MACs."""
    return load_config(
        {
            "model": {"name": name},
            "data": {"name": "digits", "args": {"size": arguments.size, "val": arguments.val}},
            "baseline": {"epochs": arguments.epochs, "batch_size": 32, "lr": 0.05},
            "space": {"round_to": ROUND_TO[name]},
            "budget": {"metric": metric, "ratio": arguments.ratio},
            "search": {"algorithm": "ddpg", "evaluations": arguments.evaluations, "seeds": list(seeds)},
            "compression": {"calibration_images": 300, "reconstruct": RECONSTRUCT[name]},
            "fine_tune": {"epochs": 0},
            "measure": {"backend": "tvm", "threads": arguments.threads},
        }
    )


def searched(config: Config, out: Path) -> RunDirectory:
    """The run in that directory, begun or gone on with.

    Raises:
        TrimtabError: it did not end as it should.
    """
    start = time.perf_counter()
    result = resume(out) if (out / "config.yaml").exists() else search(config, out)
    print(f"{out.name}: {result.state} after {time.perf_counter() - start:.0f} s", flush=True)
    if result.state != "done":
        raise TrimtabError(f"the run {str(out)!r} is {result.state}: {result.reason}")
    run = RunDirectory.open(out)
    if run.config() != config:
        raise TrimtabError(f"{str(out)!r} was made with other options: use a new folder")
    return run


def outline(run: RunDirectory) -> tuple[Problem, LatencyBudget]:
    """The problem of a run under a latency budget, and what the run knows of its budget."""
    budget = LatencyBudget.read(run.budget_file)
    if budget is None:
        raise TrimtabError(f"the run {str(run.path)!r} has no latency budget")
    return Problem.load(run.config(), run.baseline_file, [budget.constraint]), budget


def search_accuracy(run: RunDirectory, name: str) -> float:
    found: float = run.summary()[name]["search_accuracy"]
    return found


class Compiler:
    """Machine code of policies' networks, made once each, in a folder."""

    def __init__(self, problem: Problem, folder: Path) -> None:
        self._problem = problem
        self._folder = folder
        self._made: dict[str, Artefact] = {}

    def __call__(self, policy: CompressionPolicy) -> Artefact:
        """The network of the policy; its weights are the baseline's."""
        if policy.digest not in self._made:
            module = self._problem.network.prune(self._problem.kept(policy)).eval()
            example, threads = example_input(self._problem.data), self._problem.config.measure.threads
            made = make_artefact("tvm", module, example, self._folder, policy.digest, threads)
            self._made[policy.digest] = made.artefact
        return self._made[policy.digest]


@contextmanager
def compiler(problem: Problem) -> Iterator[Compiler]:
    with tempfile.TemporaryDirectory(prefix="trimtab-benchmark-") as folder:
        yield Compiler(problem, Path(folder))


def best(run: RunDirectory, seed: int, limit: float) -> Found | None:
    """The best feasible policy of one seed that costs at most `limit` in the run's metric; None where there is none."""
    finalist = best_finalist(run, seed, limit)
    if finalist is None or finalist.search_accuracy is None:
        return None
    return Found(f"seed {seed}", finalist.policy, finalist.search_accuracy, finalist.table_latency_s)


def best_finalist(run: RunDirectory, seed: int, limit: float) -> Finalist | None:
    """What a run of that seed alone would choose."""
    config = run.config()
    alone = config.model_copy(update={"search": config.search.model_copy(update={"seeds": [seed]})})
    store = Store.read(run.store_file)
    try:
        finalists = choose(store.evaluations(), alone, alone.budget.metric if alone.budget else "macs", limit)
    finally:
        store.close()
    return next((finalist for finalist in finalists if finalist.name == "best"), None)


def checked(run: RunDirectory, problem: Problem, budget: LatencyBudget, seed: int, compiled: Compiler) -> Found | None:
    """The best policy of one seed that a run's own check lets pass; None where no policy is within the budget."""
    measured: list[CompressionPolicy] = []

    def timed(policies: Mapping[str, CompressionPolicy]) -> dict[str, float]:
        networks = [Compiled(name, (compiled(policy),)) for name, policy in policies.items()]
        measured.append(policies["best"])
        found: Mapping[str, Any] = measure_all(networks, example_input(problem.data), problem.config.measure.threads)
        return {name: found[name]["tvm"]["latency_s"] for name in policies}

    fresh = replace(budget, chosen_limit_s=None)
    limit = with_chosen_limit(fresh, lambda limit: best_finalist(run, seed, limit), timed).chosen_limit_s
    found = best(run, seed, limit or budget.limit_s)
    if found is None:
        return None
    over = tuple(policy for policy in measured if policy.digest != found.policy.digest)
    return replace(found, passed_over=over)


def measured(
    policies: Sequence[CompressionPolicy], problem: Problem, compiled: Compiler, arguments: argparse.Namespace
) -> tuple[dict[str, list[float]], float]:
    """By digest, in each of several fresh processes, what share of the first policy's latency each takes.

    Returns:
        The shares, and the seconds of the first.
    """
    networks = list({policy.digest: policy for policy in policies}.values())
    artefacts = [compiled(policy) for policy in networks]
    example = example_input(problem.data).numpy()
    processes = []
    for _ in range(arguments.processes):
        found = measure(artefacts, example, threads=arguments.threads, rounds=arguments.rounds)
        processes.append([measurement.latency_s for measurement in found])
    shares = {
        policy.digest: [process[index] / process[0] for process in processes] for index, policy in enumerate(networks)
    }
    return shares, statistics.median(process[0] for process in processes)


def print_budget(
    name: str,
    budget: LatencyBudget,
    problem: Problem,
    baseline_s: float,
    whole: float,
    arguments: argparse.Namespace,
) -> None:
    print(
        f"\n{name}, {arguments.size} px, {problem.graph.macs / 1e6:.1f} M MACs, search accuracy {whole:.1%}, "
        f"{arguments.threads} thread(s)"
    )
    print(
        f"  table {budget.baseline_s * 1e6:.1f} us, measured {baseline_s * 1e6:.1f} us "
        f"(table {budget.baseline_s / baseline_s - 1:+.1%}); the cheapest policy takes "
        f"{budget.least_s / budget.baseline_s:.1%}"
    )
    print(f"  margin {budget.margin or 0.0:.1%} by {probes(budget)}")


def probes(budget: LatencyBudget) -> str:
    """What the margin was found with: each network's excess, and the table's error of it."""
    shown = [
        f"{name} {budget.excess(probe, budget.probes['baseline']):+.1%} (table {error(probe):+.1%})"
        for name, probe in budget.probes.items()
    ]
    return ", ".join(shown)


def error(probe: Probe) -> float:
    return probe.table_s / probe.measured_s - 1.0


def print_found(
    networks: Sequence[Found],
    shares: Mapping[str, Sequence[float]],
    baseline_s: float,
    problem: Problem,
    budget: LatencyBudget,
    arguments: argparse.Namespace,
) -> None:
    """A row for each seed, and in how many the budget is met."""
    print(
        f"  {'':9}{'table us':>10}{'measured us':>13}{'table share':>13}{'measured share':>16}{'(range)':>14}  met"
        f"{'MACs':>8}{'accuracy':>10}  passed over"
    )
    for found in networks:
        each = shares[found.policy.digest]
        share, table_s = statistics.median(each), found.table_s or 0.0
        over = ", ".join(f"{statistics.median(shares[policy.digest]):.3f}" for policy in found.passed_over) or "-"
        print(
            f"  {found.label:9}{table_s * 1e6:10.1f}{share * baseline_s * 1e6:13.1f}{table_s / budget.baseline_s:13.3f}"
            f"{share:16.3f}{f'({min(each):.3f}-{max(each):.3f})':>14}"
            f"  {'yes' if share <= arguments.ratio else 'NO ':3}{macs_share(problem, found):8.1%}"
            f"{found.accuracy:10.1%}  {over}"
        )
    first = [found.passed_over[0] if found.passed_over else found.policy for found in networks]
    for text, policies in (("", [found.policy for found in networks]), (", by the table and its margin alone", first)):
        met = sum(statistics.median(shares[policy.digest]) <= arguments.ratio for policy in policies)
        print(f"  met in {met} of {arguments.seeds}{text}", flush=True)


def print_speed_ups(
    under_latency: Sequence[Found],
    under_macs: Sequence[Found],
    shares: Mapping[str, Sequence[float]],
    problem: Problem,
    whole: float,
    arguments: argparse.Namespace,
) -> None:
    """What both budgets give: measured speed-up, MACs, search accuracy; medians over the seeds, and their range."""
    print(f"  {'budget':18}{'seeds':>6}{'speed-up':>10}{'(range)':>14}{'MACs':>8}{'accuracy lost':>15}{'(range)':>16}")
    for name, networks in (("latency", under_latency), ("MACs", under_macs)):
        if not networks:
            continue
        ups = [1.0 / statistics.median(shares[found.policy.digest]) for found in networks]
        lost = [100 * (whole - found.accuracy) for found in networks]
        macs = statistics.median(macs_share(problem, found) for found in networks)
        print(
            f"  {f'{arguments.ratio:.0%} of the {name}':18}{len(networks):6}{statistics.median(ups):9.2f}x"
            f"{f'({min(ups):.2f}-{max(ups):.2f})':>14}{macs:8.1%}{statistics.median(lost):8.1f} points"
            f"{f'({min(lost):.1f} to {max(lost):.1f})':>16}",
            flush=True,
        )


def macs_share(problem: Problem, found: Found) -> float:
    return price(problem.graph, found.policy)["macs"] / problem.graph.macs


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--networks", nargs="+", choices=ROUND_TO, default=list(ROUND_TO), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=10, help="of the latency budget's searches")
    parser.add_argument("--macs-seeds", type=int, default=3, help="of the MACs budget's searches; 0: none")
    parser.add_argument("--evaluations", type=int, default=30, help="of each search")
    parser.add_argument("--ratio", type=float, default=0.5, help="of both budgets")
    parser.add_argument("--size", type=int, default=32, help="rows and columns of the digits")
    parser.add_argument("--val", type=int, default=120, help="images that search accuracy is found with")
    parser.add_argument("--epochs", type=int, default=6, help="of the baseline")
    parser.add_argument("--processes", type=int, default=7, help="that the networks are measured in")
    parser.add_argument("--rounds", type=int, default=40, help="samples of each network in a process")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
