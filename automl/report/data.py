"""What a run directory says, read for the report. Works at any moment of a run; what is not there yet is left out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from automl.config import Config
from automl.costs.accelerator import AcceleratorUsage
from automl.costs.latency_budget import LatencyBudget
from automl.errors import InputError
from automl.export.manifest import MANIFEST, Manifest, read_manifest
from automl.report.metric import is_share, metric_name
from automl.run.directory import RunDirectory, RunInfo
from automl.run.explanation import Explanation
from automl.run.store import SearchRow, Store
from automl.searchers.agent_options import AGENTS, agent_options
from automl.searchers.prior import Prior
from search_spaces.policy import LayerPolicy, layer_from_json
from search_spaces.resolution import text

FINALISTS = ("baseline", "best", "uniform", "random", "from_scratch")


@dataclass(frozen=True, slots=True)
class Finalist:
    """One network of the comparison; what is not known is None (see summary.json).

    `latency_s` is by the clock, `table_latency_s` what the latency table sums up to, `table_error` how far the clock is
    off that; `modelled_latency_s` and `energy_j` are those of the config's accelerator. `accuracy_before` is that on
    the test split of a network as it was cut out of a supernet.
    """

    name: str
    accuracy: float | None = None
    accuracy_before: float | None = None
    search_accuracy: float | None = None
    macs: float | None = None
    params: float | None = None
    weight_bytes: float | None = None
    latency_s: float | None = None
    latency_measured: bool = False
    onnxruntime_latency_s: float | None = None
    table_latency_s: float | None = None
    table_error: float | None = None
    modelled_latency_s: float | None = None
    energy_j: float | None = None
    feasible: bool | None = None
    fine_tune_epochs: float | None = None
    resolution: str | None = None
    """Of the images that it reads, where they were brought to another: "12 x 16"."""

    def cost(self, metric: str) -> float | None:
        """The figure that a budget in that metric bounds."""
        costs = {
            "macs": self.macs,
            "params": self.params,
            "weight_bytes": self.weight_bytes,
            "latency_s": self.table_latency_s,
            "modelled_latency_s": self.modelled_latency_s,
            "energy_j": self.energy_j,
        }
        return costs.get(metric)


@dataclass(frozen=True, slots=True)
class Budget:
    """What the compressed network may cost; limit is None where there is none, or it is not known yet.

    Attributes:
        metric, limit: of a latency by the table.
        measured_limit: of a latency by the clock; None where it is not known, or the budget is no latency.
        margin: share of a latency budget that the search held back.
    """

    metric: str
    limit: float | None
    measured_limit: float | None = None
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation on all validation images, reduced to what is drawn.

    `cost` is in the metric that policies are compared by, `costs` holds all of them.
    """

    search: str
    number: int
    accuracy: float
    cost: float
    feasible: bool
    reward: float | None
    costs: Mapping[str, float] = field(default_factory=dict)

    def objectives(self, metrics: Sequence[str]) -> tuple[float, ...]:
        """Those costs, and the accuracy, as `search_spaces.objective.pareto_front` takes them."""
        return (*(self.costs[metric] for metric in metrics), self.accuracy)


@dataclass(frozen=True, slots=True)
class Effort:
    """What an evaluation took, and its searcher.

    Attributes:
        images: that were forwarded; 0 where that is not known.
        share: of the validation images.
        seconds: of the evaluation, and of the searcher's thinking where that is known.

    What a search learnt before its first proposal counts as that one's.
    """

    images: int
    share: float
    seconds: float


@dataclass(frozen=True, slots=True)
class KeptGroup:
    """A channel group of the best policy."""

    name: str
    kept: int
    width: int


@dataclass(frozen=True, slots=True)
class Treatment:
    """What the best policy does to a layer or block beside pruning, and the bytes of its weights after and before."""

    name: str
    policy: LayerPolicy
    weight_bytes: float | None
    whole_bytes: float | None


@dataclass(frozen=True)
class RunData:
    """Everything that the report shows.

    Attributes:
        searches: in the order they are drawn.
        points: the evaluations on all validation images that did not fail, by search and number.
        failed: number of evaluations that did.
        efforts: what each evaluation took, those that failed or saw a part of the images included, by search and
            number.
        warm_up: evaluations at the start of a search that its agent acts at random in; 0 where none are known.
        shares: whether the metric is a share, shown in percent.
        accelerator: what the layers take on the config's accelerator, by finalist.
        explanation: of the best policy, layer by layer; None where there is none yet.
    """

    config: Config
    config_text: str
    info: RunInfo
    budgets: Sequence[Budget]
    finalists: Mapping[str, Finalist]
    searches: Sequence[SearchRow]
    points: Sequence[Point]
    failed: int
    layers: Sequence[KeptGroup]
    treatments: Sequence[Treatment]
    warm_up: int
    summary: Mapping[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None
    accelerator: Mapping[str, AcceleratorUsage] = field(default_factory=dict)
    efforts: Mapping[str, Mapping[int, Effort]] = field(default_factory=dict)
    explanation: Explanation | None = None

    @property
    def budget(self) -> Budget:
        """That which policies are compared by; the others stand behind it in `budgets`."""
        return self.budgets[0]

    @property
    def given(self) -> bool:
        """Whether the policy was given, and nothing searched."""
        return self.config.search.given

    @property
    def cost_metric(self) -> str:
        """What the policies are drawn and compared by."""
        return self.config.cost_metric

    @property
    def limit(self) -> float | None:
        """The budget in that metric."""
        return self.budget.limit if self.budget.metric == self.cost_metric else None

    @property
    def limits(self) -> Mapping[str, float]:
        """Limits of the budgets, by metric; what is not known yet is left out."""
        return {budget.metric: budget.limit for budget in self.budgets if budget.limit is not None}

    @property
    def objectives(self) -> Sequence[str]:
        """Costs that are minimised beside the accuracy."""
        return self.config.search.objectives or [self.cost_metric]

    @property
    def stopped(self) -> Mapping[str, float]:
        """Searches that ended by themselves, and the evaluations that they had made by then, in whole ones."""
        spent = {row.name: sum(each.share for each in self.efforts.get(row.name, {}).values()) for row in self.searches}
        return {row.name: spent[row.name] for row in self.searches if row.stopped(spent[row.name])}

    @property
    def shares(self) -> bool:
        """Whether the metric is a share of the images, shown in percent."""
        return is_share(self.config)

    @property
    def metric_name(self) -> str:
        """The metric for people: "accuracy", or what the user's own is called."""
        return metric_name(self.config)

    @property
    def wall_s(self) -> float:
        """Seconds that the run took so far, over all resumes."""
        return max(self.info.wall_s, _number(self.summary.get("wall_s")) or 0.0)

    @property
    def done(self) -> bool:
        """Whether the run ended as it should."""
        return self.info.state == "done"

    def finalist(self, name: str) -> Finalist | None:
        """That network of the comparison, None where it is not there yet."""
        return self.finalists.get(name)


def read_run(run_dir: Path) -> RunData:
    """Read a run directory, finished or not.

    Raises:
        InputError: it is none, or one of its files is damaged.
    """
    directory = RunDirectory.open(run_dir)
    config = directory.config()
    summary = _read_summary(directory.summary_file)
    searches: list[SearchRow] = []
    points: list[Point] = []
    efforts: dict[str, dict[int, Effort]] = {}
    failed = 0
    prior = Prior.read(directory.prior_file)
    if directory.store_file.exists():
        store = Store.read(directory.store_file)
        try:
            searches = sorted(store.searches(), key=lambda row: (_rank(row, config), row.seed, row.name))
            informed = {row.name for row in searches if row.algorithm == config.search.algorithm}
            for row in store.figures():
                found = row.evaluation
                images, seconds = found.images, found.seconds + (row.thinking_s or 0.0)
                if prior is not None and row.number == 0 and row.search in informed:
                    images, seconds = images + prior.images, seconds + prior.seconds
                efforts.setdefault(row.search, {})[row.number] = Effort(images, found.share, seconds)
                if found.error is not None or config.cost_metric not in found.cost:
                    failed += 1
                    continue
                if found.share == 1.0:
                    figures = (found.accuracy, found.cost[config.cost_metric], found.feasible, row.reward, found.cost)
                    points.append(Point(row.search, row.number, *figures))
        finally:
            store.close()
    return RunData(
        config=config,
        config_text=directory.config_file.read_text(encoding="utf-8"),
        info=directory.info(),
        budgets=_budgets(config, summary, directory),
        finalists={name: _finalist(name, summary[name]) for name in FINALISTS if isinstance(summary.get(name), dict)},
        searches=searches,
        points=points,
        failed=failed,
        layers=_layers(summary.get("layers")),
        treatments=_treatments(summary.get("treatments"), directory.summary_file),
        warm_up=_warm_up(config),
        summary=summary,
        manifest=read_manifest(directory.best) if (directory.best / MANIFEST).exists() else None,
        accelerator=_accelerator(directory.accelerator_file),
        efforts=efforts,
        explanation=Explanation.read(directory.explanation_file),
    )


def _rank(row: SearchRow, config: Config) -> int:
    order = (config.search.algorithm, "random", "uniform")
    return order.index(row.algorithm) if row.algorithm in order else len(order)


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is damaged: {error}") from None
    if not isinstance(summary, dict):
        raise InputError(f"{str(path)!r} is damaged: it holds no object")
    return summary


def _accelerator(path: Path) -> dict[str, AcceleratorUsage]:
    try:
        found = json.loads(path.read_bytes())
        return {str(name): AcceleratorUsage.from_json(usage) for name, usage in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is damaged: {error}") from None


def _budgets(config: Config, summary: Mapping[str, Any], directory: RunDirectory) -> list[Budget]:
    """At least one; a limit that is a share of what is not known yet is None."""
    stated = summary.get("budgets")
    if isinstance(stated, list) and (known := [_stated(each) for each in stated if _metric(each)]):
        return known
    if _metric(summary.get("budget")):
        return [_stated(summary["budget"])]
    if config.budget is None:
        return [Budget("macs", None)]
    found = [Budget(each.metric, each.limit) for each in config.budgets]
    latency = LatencyBudget.read(directory.budget_file)
    return found if latency is None else [Budget("latency_s", latency.limit_s, margin=latency.margin), *found[1:]]


def _metric(budget: object) -> bool:
    return isinstance(budget, dict) and isinstance(budget.get("metric"), str)


def _stated(budget: Mapping[str, Any]) -> Budget:
    return Budget(budget["metric"], *(_number(budget.get(name)) for name in ("limit", "measured_limit", "margin")))


def _finalist(name: str, values: Mapping[str, Any]) -> Finalist:
    feasible, resolution = values.get("feasible"), values.get("resolution")
    return Finalist(
        name=name,
        accuracy=_number(values.get("accuracy")),
        accuracy_before=_number(values.get("accuracy_before")),
        search_accuracy=_number(values.get("search_accuracy")),
        macs=_number(values.get("macs")),
        params=_number(values.get("params")),
        weight_bytes=_number(values.get("weight_bytes")),
        latency_s=_number(values.get("latency_s")),
        latency_measured=values.get("latency_measured") is True,
        onnxruntime_latency_s=_number(values.get("onnxruntime_latency_s")),
        table_latency_s=_number(values.get("table_latency_s")),
        table_error=_number(values.get("table_error")),
        modelled_latency_s=_number(values.get("modelled_latency_s")),
        energy_j=_number(values.get("energy_j")),
        feasible=feasible if isinstance(feasible, bool) else None,
        fine_tune_epochs=_number(values.get("fine_tune_epochs")),
        resolution=text(resolution) if isinstance(resolution, list) else None,
    )


def _layers(entries: object) -> list[KeptGroup]:
    groups = []
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            continue
        kept, width = _number(entry.get("kept")), _number(entry.get("width"))
        if kept is not None and width:
            groups.append(KeptGroup(str(entry.get("name", entry.get("group", "?"))), int(kept), int(width)))
    return groups


def _treatments(entries: object, path: Path) -> list[Treatment]:
    figures = ("weight_bytes", "whole_bytes")
    treatments = []
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            continue
        name = str(entry.get("name", "?"))
        said = {key: value for key, value in entry.items() if key not in ("name", *figures)}
        try:
            policy = layer_from_json(name, said)
        except InputError as error:
            raise InputError(f"{str(path)!r} is damaged: {error}") from None
        treatments.append(Treatment(name, policy, *(_number(entry.get(figure)) for figure in figures)))
    return treatments


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if isfinite(value) else None
    except OverflowError:  # JSON's whole numbers have no bounds
        return None


def _warm_up(config: Config) -> int:
    """Evaluations before the agent learns; 0 for an algorithm without an agent, or without such a phase."""
    how = config.search
    if how.algorithm not in AGENTS:
        return 0
    bits = config.space.treats
    options = agent_options(how.algorithm, how.options, how.evaluations, faithful=how.faithful, bits=bits)
    return min(getattr(options, "warmup", 0), how.evaluations)
