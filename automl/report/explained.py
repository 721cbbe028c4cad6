"""The best policy layer by layer: what compressing each alone loses, and what of the budgets it takes and saves."""

from xml.etree.ElementTree import Element

from automl.report import units
from automl.report.axes import Scale
from automl.report.data import RunData
from automl.report.figures import WIDTH, chart_of
from automl.report.layers import ROW, shortened
from automl.report.markup import append, cell, section, tag
from automl.report.method import metric_label
from automl.run.explanation import BudgetUse, ExplainedLayer, Explanation, Loss, in_words

GAP = 26.0
HEAD = 26.0


def explained_layers(data: RunData) -> Element | None:
    """A picture of losses and shares of the budgets, and a table of all figures; None where none are known."""
    found = data.explanation
    if found is None or not found.layers:
        return None
    together = f"Together they lose {_nats(found.together)}, {_fall(found.together, data)}."
    return section(
        "Layer by layer",
        tag("div", _chart(found, data), tag("div", _table(found, data), class_="scroll")),
        "Loses: when that layer alone is compressed as the policy does, all else being whole, on "
        f"{found.images} validation images, without fine-tuning; the divergence is that of the network's answers from "
        f"the whole network's. {together} A ratio of channels speaks for all layers of its group, and stands with the "
        "first. Shares are of the budget where its limit is known, else of the whole network.",
    )


def _chart(found: Explanation, data: RunData) -> Element:
    """Bars of losses, then a pair of bars a budget: before and after compression."""
    left = min(280.0, 24 + 6.6 * max(len(shortened(layer.name)) for layer in found.layers))
    panels = 1 + len(found.budgets)
    width = (WIDTH - left - 10 - GAP * (panels - 1)) / panels
    chart = chart_of(WIDTH, HEAD + ROW * len(found.layers) + 8, "what each layer loses and costs")
    starts = [left + index * (width + GAP) for index in range(panels)]
    titles = ["loses alone", *(_title(budget) for budget in found.budgets)]
    for start, title in zip(starts, titles, strict=True):
        append(chart, tag("text", title, class_="axis-title", x=start, y=14))
    losses = [_size(layer.loss) for layer in found.layers]
    room = max(20.0, width - 56)  # for the figure behind the longest bar
    loss_scale = Scale(0.0, max(losses) or 1.0, 0.0, room)
    shares = [
        [[cost / budget.whole for cost in layer.costs.get(budget.metric, (0.0, 0.0))] for layer in found.layers]
        for budget in found.budgets
    ]
    scales = [Scale(0.0, max(map(max, of)) or 1.0, 0.0, room) for of in shares]
    for index, layer in enumerate(found.layers):
        top = HEAD + index * ROW
        row = tag("g", tag("title", f"{layer.name}: {in_words(layer)}\nloses {_lost(layer.loss, data)}"))
        append(row, tag("text", shortened(layer.name), class_="tick", x=left - 10, y=top + 11, text_anchor="end"))
        append(row, _bar("lost", starts[0], top, loss_scale(losses[index])))
        append(row, _figure(starts[0] + loss_scale(losses[index]), top, _lost(layer.loss, data)))
        for start, scale, of in zip(starts[1:], scales, shares, strict=True):
            before, after = map(scale, of[index])
            append(row, _bar("width", start, top, before))
            append(row, _bar("kept", start, top, after))
            append(row, _figure(start + max(before, after), top, units.percent(of[index][1], 1)))
        append(chart, row)
    return chart


def _bar(kind: str, start: float, top: float, length: float) -> Element:
    return tag("rect", class_=kind, x=start, y=top, width=length, height=ROW - 5, rx=2)


def _figure(start: float, top: float, text: str) -> Element:
    return tag("text", text, class_="tick", x=start + 6, y=top + 11)


def _table(found: Explanation, data: RunData) -> Element:
    titles = ["layer", "divergence", data.metric_name, *map(_title, found.budgets)]
    table = tag("table", tag("tr", *(tag("th", title, scope="col") for title in titles)))
    for layer in found.layers:
        cells = [cell(_nats(layer.loss)), cell(_fall(layer.loss, data))]
        cells += [_share(layer, budget) for budget in found.budgets]
        append(table, tag("tr", tag("th", layer.name, tag("small", in_words(layer)), scope="row"), *cells))
    return table


def _title(budget: BudgetUse) -> str:
    return f"{metric_label(budget.metric)}, of the {'network' if budget.limit is None else 'budget'}"


def _share(layer: ExplainedLayer, budget: BudgetUse) -> Element:
    if budget.metric not in layer.costs:
        return cell(None)
    before, after = (units.percent(cost / budget.whole, 1) for cost in layer.costs[budget.metric])
    return cell(after, f"from {before}")


def _size(loss: Loss | None) -> float:
    """How long the bar of a loss is: of the divergence, or of accuracy where that is not known."""
    if loss is None:
        return 0.0
    return max(0.0, loss.accuracy if loss.divergence is None else loss.divergence)


def _lost(loss: Loss | None, data: RunData) -> str:
    known = loss is None or loss.error is not None or loss.divergence is not None
    return _nats(loss) if known else _fall(loss, data)


def _nats(loss: Loss | None) -> str:
    if loss is None:
        return units.UNKNOWN
    if loss.error is not None:
        return "failed"
    return units.UNKNOWN if loss.divergence is None else f"{loss.divergence:.2g} nats"


def _fall(loss: Loss | None, data: RunData) -> str:
    """What is lost of the metric: percentage points of a share."""
    if loss is None or loss.error is not None:
        return units.UNKNOWN
    text = f"{0.0 - 100 * loss.accuracy:+.1f} points" if data.shares else f"{0.0 - loss.accuracy:+.3g}"
    return text.replace("-", "−")
