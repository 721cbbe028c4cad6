"""The networks that a run compares at its end: fine-tuned alike, tested once, compiled and measured side by side."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import numpy.typing as npt
import torch

from automl.config import Config
from automl.configured import training_options
from automl.errors import TrimtabError
from automl.export.agreement import Agreement, compare
from automl.orchestration.searches import search_name
from automl.problem import Problem
from automl.run.directory import RunDirectory
from automl.run.store import EvaluationRow, FiguresRow, Store
from automl.training import TrainingOptions
from backends.measuring import Artefact, measure
from backends.remote.device import RemoteDevice
from backends.remote.fleet import Fleet
from backends.remote.networks import Network, measure_networks
from search_spaces.policy import CompressionPolicy
from search_spaces.resizing import resize
from search_spaces.resolution import Resolution

NAMES = ("baseline", "best", "uniform", "random", "from_scratch")

Row = TypeVar("Row", EvaluationRow, FiguresRow)

ROUNDS = 40
PROCESSES = 3
"""Processes that the latencies are measured in, and samples of each network in each of them."""


@dataclass(frozen=True)
class Finalist:
    """A network to be compared, and where its policy comes from.

    Attributes:
        name: "baseline", "best", "uniform", "random" or "from_scratch".
        policy: what is pruned; empty for the baseline.
        search, number: the proposal, None for the baseline.
        search_accuracy: on the search-validation slice before fine-tuning, None where it is still to be found out.
        table_latency_s: seconds of one inference by the latency table, where policies are priced by it.
    """

    name: str
    policy: CompressionPolicy
    search: str | None = None
    number: int | None = None
    search_accuracy: float | None = None
    table_latency_s: float | None = None


def choose(rows: Iterable[EvaluationRow], config: Config, metric: str, limit: float = inf) -> list[Finalist]:
    """The networks that are compared: the baseline, the leaders (see `leaders`), and the best trained from scratch, if
    anything is trained.

    Args:
        rows: evaluations, those of the leaders at least.
        config, metric, limit: see `leaders`.
    """
    found = leaders(rows, config, metric, limit)
    chosen = [Finalist("baseline", CompressionPolicy())]
    for name, row in found.items():
        table_s = row.evaluation.cost.get("latency_s")
        chosen.append(Finalist(name, row.policy, row.search, row.number, row.evaluation.accuracy, table_s))
    best = next((finalist for finalist in chosen if finalist.name == "best"), None)
    if best is None or not training_of("from_scratch", config).epochs:
        return chosen
    return [*chosen, replace(best, name="from_scratch", search_accuracy=None)]


def leaders(rows: Iterable[Row], config: Config, metric: str, limit: float = inf) -> dict[str, Row]:
    """The best feasible policy of the algorithm's searches, of the random ones and of the uniform one.

    Under a budget the best is the most accurate one, in accuracy-guaranteed mode the one with the highest reward; of
    equals the cheapest in `metric`, then the earliest by search and number. What has no feasible policy is left out;
    among policies that are given the budget does not decide.

    Args:
        rows: the evaluations on record.
        config: of the run.
        metric: of the budget.
        limit: the most that a policy found by search may cost; the one uniform policy there is stays.
    """
    how = config.search
    algorithms = {"best": how.algorithm, "uniform": "uniform", "random": "random"}
    groups = {name: {search_name(algorithm, seed) for seed in how.seeds} for name, algorithm in algorithms.items()}

    def rank(row: Row) -> tuple[float, float, str, int]:
        worth = row.evaluation.accuracy if how.given or how.mode == "resource" else (row.reward or 0.0)
        return (-worth, row.evaluation.cost[metric], row.search, row.number)

    found: dict[str, Row] = {}
    for row in rows:
        if row.evaluation.error is not None or not (row.evaluation.feasible or how.given):
            continue
        for name, members in groups.items():
            if row.search != "uniform" and row.evaluation.cost[metric] > limit:
                continue
            if row.search in members and (name not in found or rank(row) < rank(found[name])):
                found[name] = row
    return {name: found[name] for name in groups if name in found}


def training_of(name: str, config: Config) -> TrainingOptions:
    """How a finalist is trained.

    From scratch that is as long as others are fine-tuned, or, as a control of a supernet, as the largest network was
    trained and for as long as that and the supernet took together.

    Args:
        name: of the finalist.
        config: of the run.
    """
    options, alone = training_options(config.fine_tune), training_options(config.baseline)
    if name == "baseline":
        return replace(options, epochs=0)
    if name != "from_scratch":
        return options
    if config.supernet is not None and config.supernet.controls:
        return replace(alone, epochs=alone.epochs + config.supernet.epochs)
    return replace(options, lr=alone.lr)


def choose_finalists(problem: Problem, directory: RunDirectory, limit: float | None = None) -> list[Finalist]:
    """The finalists of a run, from its store.

    Args:
        problem: what was searched.
        directory: of the run.
        limit: the most that what was found may cost; by default what a measurement has shown to keep a latency budget.
    """
    if limit is None:
        limit = (problem.latency.chosen_limit_s if problem.latency is not None else None) or inf
    store = Store.read(directory.store_file)
    try:
        what = (problem.config, problem.constraint.metric, limit)
        found = [store.find(row.search, row.number) for row in leaders(store.figures(), *what).values()]
        return choose([row for row in found if row is not None], *what)
    finally:
        store.close()


@dataclass(frozen=True)
class Compiled:
    """A network as files that can be measured.

    Attributes:
        name: of the network.
        artefacts: at most one for each engine.
        error: how far the output of TVM's machine code is from torch's; None where there is no such code.
        recipes, structures: the operators in TVM's code, see `automl.run.artefacts.Made`.
        expected, step: what TVM's code must compute on another device, see the same.
        resolution: of the images that it reads; None where that is the data's own.
    """

    name: str
    artefacts: tuple[Artefact, ...]
    error: float | None = None
    recipes: tuple[str, ...] = ()
    structures: Mapping[str, str] = field(default_factory=dict)
    expected: npt.NDArray[Any] | None = None
    step: float = 0.0
    resolution: Resolution | None = None


def measure_all(
    compiled: list[Compiled], example: torch.Tensor, threads: int, device: RemoteDevice | None = None
) -> dict[str, Any]:
    """Latencies of all networks, in turns, so that a busy moment of the machine touches all of them.

    Where a process happens to put code and weights in memory makes a network up to a fifth slower for as long as the
    process lives; so several are measured in, and the median of each network counts.

    Args:
        compiled: the networks.
        example: [1, ...] their input, at the data's own resolution.
        threads: that an engine may use.
        device: that they are compiled for; this machine by default.

    Returns:
        By network: {"tvm": figures, "onnxruntime": figures}, as `automl.run.summary` reads and the run directory keeps.
    """
    owners = [item for item in compiled for _ in item.artefacts]
    examples = [resize(example, item.resolution).numpy() for item in owners]
    artefacts = [artefact for item in compiled for artefact in item.artefacts]
    if not artefacts:
        return {}
    if device is None:
        tries = [measure(artefacts, examples, None, threads=threads, rounds=ROUNDS) for _ in range(PROCESSES)]
    else:
        networks = [Network(item.artefacts[0].path, partial(_compared, item)) for item in owners]
        with Fleet(device, threads) as fleet:
            tries = [measure_networks(fleet, networks, examples, rounds=ROUNDS) for _ in range(PROCESSES)]
    latencies: dict[str, Any] = {}
    for owner, found in zip(owners, zip(*tries, strict=True), strict=True):
        figures = asdict(sorted(found, key=lambda item: item.latency_s)[PROCESSES // 2])
        if owner.error is not None and figures["engine"] == "tvm":
            figures["max_error"] = owner.error
        latencies.setdefault(owner.name, {})[figures["engine"]] = figures
    return latencies


def _compared(compiled: Compiled, output: npt.NDArray[Any]) -> Agreement:
    if compiled.expected is None:
        raise TrimtabError(f"it is not known what network {compiled.name!r} must compute")
    return compare(output, compiled.expected, compiled.step)


def read_result(folder: Path, finalist: Finalist) -> dict[str, Any] | None:
    """What a finished finalist's folder holds; None where it is not finished, or was made of another policy."""
    try:
        result = json.loads((folder / "result.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(result, dict) or result.get("policy") != finalist.policy.digest:
        return None
    return result if (folder / "model.safetensors").is_file() else None


def read_progress(folder: Path) -> int | None:
    """Epochs that a finalist has been trained for so far; None where it has not begun, or is finished."""
    try:
        return int(json.loads((folder / "progress.json").read_bytes())["epoch"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None
