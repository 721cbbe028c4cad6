"""What the commands print, as rich tables."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from search_spaces.blocks import residual_blocks
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.objective import MODELLED, UNITS
from search_spaces.resolution import text as resolution_text

if TYPE_CHECKING:
    from automl.config import Config
    from automl.costs.accelerator import AcceleratorUsage
    from automl.costs.profile import Profile
    from automl.run.explanation import Explanation, Loss
    from automl.tuning.records import TrialRecord

WRITTEN_OUT = 10**30
"""Numbers of policies below this are said to the last digit."""

FINALIST_TITLES = {
    "baseline": "baseline",
    "best": "best",
    "uniform": "uniform",
    "random": "random",
    "from_scratch": "from scratch",
}


def layer_table(graph: ModelGraph) -> list[Table]:
    """The layers of a network with the channel groups they cut, the blocks that can go, what cannot be cut and why."""
    table = Table(title=f"{graph.macs:,} MACs, {graph.params:,} parameters")
    for title in ("layer", "kind", "output group", "input groups"):
        table.add_column(title, overflow="fold")
    for title in ("channels", "kernel", "output", "MACs", "params"):
        table.add_column(title, justify="right")
    names = [group.name for group in graph.groups]
    for layer in graph.layers:
        kind = "depthwise" if layer.depthwise else layer.kind
        table.add_row(
            layer.name,
            kind,
            ", ".join(names[index] for index, _ in layer.out_extent.terms) or "-",
            ", ".join(names[index] for index, _ in layer.in_extent.terms) or "-",
            f"{layer.in_channels} > {layer.out_channels}",
            "x".join(map(str, layer.kernel)),
            "x".join(map(str, layer.output_size)),
            f"{layer.macs:,}",
            f"{layer.params:,}",
        )
    groups = Table(title=f"{len(graph.groups)} channel groups that can be pruned")
    groups.add_column("group", overflow="fold")
    groups.add_column("channels", justify="right")
    groups.add_column("layers cut together", overflow="fold")
    for group in graph.groups:
        groups.add_row(group.name, str(group.width), ", ".join((*group.producers, *group.carriers)))
    tables = [table, groups]
    if blocks := residual_blocks(graph):
        removable = Table(title=f"{len(blocks)} residual blocks that can be left out")
        removable.add_column("block", overflow="fold")
        removable.add_column("layers that go with it", overflow="fold")
        for block in blocks:
            removable.add_row(block.name, ", ".join(block.layers))
        tables.append(removable)
    if graph.refusals:
        refused = Table(title="channels that stay as they are")
        refused.add_column("layer", overflow="fold")
        refused.add_column("reason", overflow="fold")
        for refusal in graph.refusals:
            refused.add_row(refusal.name, Text(refusal.reason))
        tables.append(refused)
    return tables


def space_line(config: "Config", graph: ModelGraph) -> Text:
    """How many policies a config's search space has for a network, or why it has none."""
    from automl.configured import search_space  # imports all that compresses

    try:
        size = search_space(config, graph).size
    except InputError as error:
        return Text(f"search space: none; {error}")
    exactly = f" ({size:,})" if size < WRITTEN_OUT else ""
    rounded = f"{Decimal(size):.2e}".replace("e+", "e")
    return Text(f"search space: {rounded} policies{exactly}")


def accelerator_table(usage: "AcceleratorUsage") -> Table:
    """What each layer takes on an accelerator, and what it waits for."""
    from automl.report import units  # the report's package is slow to import

    seconds, joules = (sum(getattr(layer, name) for layer in usage.layers) for name in ("latency_s", "energy_j"))
    table = Table(title=f"{usage.title}: {latency(seconds)}, {_energy(joules)} an image, modelled")
    table.add_column("layer", overflow="fold")
    levels = list(dict.fromkeys(level for layer in usage.layers for level in layer.bytes))
    for title in ("bits", "MACs", "latency", "energy", "in use", *levels):
        table.add_column(title, justify="right")
    table.add_column("limited by")
    for layer in usage.layers:
        table.add_row(
            layer.name,
            f"{layer.weight_bits}/{layer.activation_bits}",
            units.count(layer.macs),
            latency(layer.latency_s),
            _energy(layer.energy_j),
            f"{layer.utilisation:.1%}",
            *(units.size(layer.bytes.get(level)) for level in levels),
            layer.limit,
        )
    table.caption = f"checked: {usage.checked}"
    return table


def accelerators_table(entries: Sequence[tuple[str, str, str, str]]) -> Table:
    """The accelerators that are shipped: name, what it is, where its figures are from, how far the model was off."""
    table = Table(title="accelerators")
    for title in ("name", "what it is", "source", "checked"):
        table.add_column(title, no_wrap=title == "name")
    for entry in entries:
        table.add_row(*map(Text, entry))
    return table


def name_table(title: str, entries: Sequence[tuple[str, str]]) -> Table:
    """Names and what they are."""
    table = Table(title=title)
    table.add_column("name", no_wrap=True)
    table.add_column("what it is")
    for name, description in entries:
        table.add_row(name, Text(description))  # not markup: shapes stand in brackets
    return table


def summary_table(summary: Mapping[str, Any]) -> Table:
    """The networks that a run compared."""
    given = summary.get("algorithm") == "given"
    by_table = summary["budget"]["metric"] == "latency_s" and not given
    table = Table(title="; ".join(map(_budget_text, summary.get("budgets") or [summary["budget"]])))
    table.add_column("network")
    device = summary.get("latency_device")
    clock = f"latency on {device['key']}" if device else "latency"
    columns = ["test accuracy", "search accuracy", "MACs", "params", "weights", clock, "ONNX Runtime"]
    columns[5:5] = ["by the table"] if by_table else []
    modelled = any((summary.get(name) or {}).get("energy_j") is not None for name in FINALIST_TITLES)
    columns[5:5] = ["modelled latency", "energy"] if modelled else []
    resized = any((summary.get(name) or {}).get("resolution") for name in FINALIST_TITLES)
    before = any((summary.get(name) or {}).get("accuracy_before") is not None for name in FINALIST_TITLES)
    columns[:0] = ["from the supernet"] if before else []
    columns[:0] = ["images"] if resized else []
    for title in columns:
        table.add_column(title, justify="right")
    for name, title in FINALIST_TITLES.items():
        found = summary.get(name)
        if not found:
            if not (given and name == "random"):  # nothing was searched that random search could stand beside
                table.add_row(title, *["-"] * len(columns))
            continue
        table.add_row(
            "given" if given and name == "best" else title,
            *([resolution_text(found.get("resolution") or []) or "as they are"] if resized else []),
            *([number(found.get("accuracy_before"))] if before else []),
            number(found["accuracy"]),
            number(found["search_accuracy"]),
            f"{found['macs']:,}",
            f"{found['params']:,}",
            f"{found['weight_bytes']:,} B",
            *([latency(found["modelled_latency_s"]), _energy(found["energy_j"])] if modelled else []),
            *([latency(found["table_latency_s"])] if by_table else []),
            latency(found["latency_s"]),
            latency(found["onnxruntime_latency_s"]),
        )
    if (summary.get("best") or {}).get("feasible") is False:
        table.caption = f"the {'given policy' if given else 'best network'} is above the budget"
    return table


def profile_table(profile: "Profile") -> Table:
    """What a latency table knows of a search space."""
    table = Table(title="latency table", show_header=False)
    table.add_column("what")
    table.add_column("value", overflow="fold")
    table.add_row("whole network", latency(profile.whole_s))
    share = f" ({profile.least_s / profile.whole_s:.1%})" if profile.least_s and profile.whole_s else ""
    table.add_row("least that the space can reach", latency(profile.least_s) + share)
    refused = f", {len(profile.refused)} refused" if profile.refused else ""
    table.add_row("operators of the space", f"{profile.operators}, {profile.measured} measured just now{refused}")
    table.add_row("file", f"{profile.table} ({profile.entries} operators)")
    return table


def status_table(status: Mapping[str, Any]) -> list[Table]:
    """Where a run stands."""
    table = Table(title=f"{status['directory']}: {status['state']}", show_header=False)
    table.add_column("what")
    table.add_column("value", overflow="fold")
    table.add_row("stage", status["stage"])
    if status["reason"]:
        table.add_row("reason", Text(status["reason"]))
    if status["driver"]:
        table.add_row("driven by", Text(status["driver"]))
    table.add_row("driven for", f"{status['wall_s']:.0f} s")
    for budget in status["budgets"]:
        table.add_row(f"budget in {budget['metric']}", Text(_use_text(budget)))
    for search in status["searches"]:
        best = search["best_accuracy"]
        note = f", best {best:.4f}" if best is not None else ""
        note += f", {search['failures']} failed" if search["failures"] else ""
        note += f"; stopped: {search['stopped']}" if search["stopped"] else ""
        table.add_row(search["name"], f"{search['done']:g}/{search['evaluations']}{note}")
    for name, state in status["finalists"].items():
        table.add_row(f"finalist {name}", state)
    return [table]


def front_table(front: Sequence[Mapping[str, Any]]) -> Table:
    """The front of a run, see `automl.run.status.run_front`."""
    metrics = list(front[0]["cost"]) if front else []
    table = Table(title=f"{len(front)} policies that no cheaper one is as accurate as, before fine-tuning")
    for title in ("accuracy", *metrics, "number"):
        table.add_column(title, justify="right")
    table.add_column("search", overflow="fold")
    table.add_column("within budget")
    for each in front:
        costs = (amount(metric, each["cost"][metric]) for metric in metrics)
        within = "yes" if each["feasible"] else "no"
        table.add_row(f"{each['accuracy']:.4f}", *costs, str(each["number"]), Text(each["search"]), within)
    return table


def explanation_table(explanation: "Explanation") -> Table:
    """What the best policy does to each layer, what that loses alone, and what the layer takes of the budgets."""
    from automl.run.explanation import in_words

    together = _loss(explanation.together)
    table = Table(title=f"the best policy, layer by layer; together {together[0]} nats, accuracy {together[1]}")
    table.add_column("layer", overflow="fold")
    table.add_column("what is done", overflow="fold")
    shares = [f"{each.metric}, of the {'network' if each.limit is None else 'budget'}" for each in explanation.budgets]
    for title in ("nats", "accuracy", *shares):
        table.add_column(title, justify="right")
    for layer in explanation.layers:
        table.add_row(
            Text(layer.name),
            in_words(layer),
            *(("-", "-") if layer.loss is None else _loss(layer.loss)),
            *(_shares(layer.costs.get(budget.metric), budget.whole) for budget in explanation.budgets),
        )
    table.caption = f"losses of each alone, on {explanation.images} validation images, without fine-tuning"
    return table


def _loss(loss: "Loss") -> tuple[str, str]:
    if loss.error is not None:
        return "failed", "failed"
    return "-" if loss.divergence is None else f"{loss.divergence:.2g}", f"{0.0 - loss.accuracy:+.4f}"


def _shares(cost: tuple[float, float] | None, whole: float) -> str:
    """Before and after compression."""
    if cost is None:
        return "-"
    before, after = (f"{value / whole:.1%}" for value in cost)
    return f"{before} > {after}"


def _budget_text(budget: Mapping[str, Any]) -> str:
    measured = budget.get("measured_limit")
    used = f", {budget['used']:.1%} used" if budget.get("used") is not None else ""
    if budget["metric"] == "latency_s" and "margin" not in budget:  # no table was searched by
        return f"budget: at most {latency(measured)} measured{used}"
    if budget["limit"] is None:
        return "no hard budget"
    text = f"budget: at most {amount(budget['metric'], budget['limit'])}"
    if budget["metric"] in MODELLED:
        text += ", modelled"
    if budget["metric"] == "latency_s":
        text += " by the table" + (f", {latency(measured)} measured" if measured is not None else "")
        text += f"; {budget['margin']:.1%} held back" if budget["margin"] else ""
    return text + used


def _use_text(budget: Mapping[str, Any]) -> str:
    """The limit of a budget, and how far the best network uses it."""
    limit = budget["limit"] if budget.get("measured_limit") is None else budget["measured_limit"]
    share = f"{budget['ratio']:.1%} of the uncompressed network's" if budget.get("ratio") is not None else "none"
    text = share if limit is None else f"at most {amount(budget['metric'], limit)}"
    return text if budget["used"] is None else f"{text}, {budget['used']:.1%} used by the best"


def amount(metric: str, value: float) -> str:
    """A cost in its metric's unit."""
    if metric == "energy_j":
        return _energy(value)
    return latency(value) if metric.endswith("latency_s") else f"{value:,.0f} {UNITS[metric]}"


def _energy(value: float) -> str:
    return f"{1e3 * value:.3f} mJ" if value >= 1e-4 else f"{1e6 * value:.3f} µJ"


def number(value: float | None) -> str:
    """An accuracy, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def latency(value: float | None) -> str:
    """Seconds in a unit that suits them, or a dash."""
    if value is None:
        return "-"
    return f"{1e3 * value:.3f} ms" if value >= 1e-4 else f"{1e6 * value:.2f} µs"


def tuning_table(trials: "Sequence[TrialRecord]") -> Table:
    """The trials of a tuning, the best first."""
    table = Table(title=f"{len(trials)} trials")
    for title in ("trial", "state"):
        table.add_column(title)
    for title in ("evaluations", "best accuracy"):
        table.add_column(title, justify="right")
    table.add_column("options", overflow="fold")
    for each in trials:
        accuracy = "-" if each.accuracy is None else f"{each.accuracy:.4f}"
        options = ", ".join(f"{name} {shown_value(value)}" for name, value in each.options.items())
        table.add_row(each.name, each.state, f"{each.evaluations:g}", accuracy, options)
    return table


def shown_value(value: object) -> str:
    """A number in few digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
