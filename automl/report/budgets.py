"""What the compressed network may cost, and how far that is used."""

from xml.etree.ElementTree import Element

from automl.report import units
from automl.report.data import Budget, RunData
from automl.report.figures import cost_text
from automl.report.markup import append, cell, section, tag
from automl.report.method import metric_label


def budget_texts(data: RunData) -> list[str]:
    """Each budget in a few words."""
    asked = data.config.budgets
    if not asked:
        return ["no hard budget"]
    return [_text(data, budget, section.ratio) for budget, section in zip(data.budgets, asked, strict=False)]


def _text(data: RunData, budget: Budget, ratio: float | None) -> str:
    limit, label = budget.limit, metric_label(budget.metric)
    if limit is None:
        return f"budget: {units.percent(ratio, 0)} of the baseline's {label}"
    if budget.metric == "latency_s":
        return f"budget: at most {units.seconds(limit)}{' by the latency table' if data.config.priced_by_table else ''}"
    return f"budget: at most {cost_text(budget.metric)(limit)} {label}"


def budgets(data: RunData) -> Element | None:
    """A table of how far each of several budgets is used; None where there is but one, or no network within it yet."""
    if len(data.budgets) < 2 or (best := data.finalist("best")) is None:
        return None
    baseline = data.finalist("baseline") or best
    titles = ("budget", "at most", "baseline", "compressed", "used")
    table = tag("table", tag("tr", *(tag("th", title, scope="col") for title in titles)))
    for budget in data.budgets:
        label, text = metric_label(budget.metric), cost_text(budget.metric)
        limit, before, after = budget.limit, baseline.cost(budget.metric), best.cost(budget.metric)
        if budget.measured_limit is not None and best.latency_s is not None:
            label, limit, before, after = (
                f"{label}, measured",
                budget.measured_limit,
                baseline.latency_s,
                best.latency_s,
            )
        cells = [cell(None if value is None else text(value)) for value in (limit, before, after)]
        used = units.UNKNOWN if after is None or not limit else units.percent(after / limit, 1)
        append(table, tag("tr", tag("th", label, scope="row"), *cells, cell(used)))
    return section(
        "The budgets", tag("div", table, class_="scroll"), "A policy is feasible where it keeps all of them."
    )
