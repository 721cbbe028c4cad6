"""The report of a sweep: what came of its cells, side by side, and what their searches evaluated."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element

from automl.report import units
from automl.report.data import RunData, read_run
from automl.report.document import budget_cells, config_section, document, heading
from automl.report.figures import value_text
from automl.report.fronts import front
from automl.report.markup import append, cell, section, tag, to_html
from automl.run.directory import write_atomically
from automl.sweeps.directory import SweepDirectory
from automl.sweeps.results import CellResult, sweep_status


def write_sweep_report(path: str | Path) -> Path:
    """Write `report.html` of a sweep's directory, finished or not; it loads nothing from anywhere.

    Returns:
        The file.

    Raises:
        InputError: the directory holds no sweep, or one of its files is damaged.
    """
    directory = SweepDirectory.open(Path(path))
    page = to_html(build_sweep_page(directory, sweep_status(directory)))
    write_atomically(directory.report_file, f"<!DOCTYPE html>\n{page}\n".encode())
    return directory.report_file


def build_sweep_page(directory: SweepDirectory, status: Mapping[str, Any]) -> Element:
    """The whole document.

    Args:
        directory: of the sweep.
        status: see `sweep_status`.
    """
    cells = [CellResult(**each) for each in status["cells"]]
    data = {each.name: read_run(directory.cell(each.name).path) for each in cells}
    title = f"A sweep over {', '.join(cells[0].values)}"
    states = ", ".join(f"{count} {state}" for state, count in status["states"].items())
    facts = f"{len(cells)} cells: {states} · {units.duration(status['wall_s'])} in all"
    main = tag("main", heading("Trimtab sweep report", title, status["state"], _headline(cells, data), facts))
    for notice in _notices(status, cells):
        append(main, notice)
    append(main, _table(directory, cells, data))
    append(main, _fronts(cells, data))
    append(main, config_section(directory.config_file.read_text(encoding="utf-8")))
    return document(title, main)


def _headline(cells: Sequence[CellResult], data: Mapping[str, RunData]) -> str | None:
    """The cell that keeps most, where there is one."""
    known = [(each.accuracy, each) for each in cells if each.done and each.accuracy is not None]
    if not known:
        return None
    _, best = max(known, key=lambda pair: pair[0])
    said = value_text(data[best.name])(best.accuracy or 0.0)
    return f"{best.name} kept most: {said} test {data[best.name].metric_name}."


def _notices(status: Mapping[str, Any], cells: Sequence[CellResult]) -> list[Element]:
    """What a reader must know before believing the figures."""
    found = []
    if status["state"] != "done":
        why = f" ({status['reason']})" if status["reason"] else ""
        found.append(f"This sweep is {status['state']}{why}. What is shown is what there is so far.")
    found += [f"{each.name} is {each.state}: {each.reason}" for each in cells if each.reason]
    return [tag("p", text, class_="notice") for text in found]


def _table(directory: SweepDirectory, cells: Sequence[CellResult], data: Mapping[str, RunData]) -> Element | None:
    titles = (*cells[0].values, "budget", "cost", "accuracy", "uncompressed", "latency", "took")
    rows = [tag("tr", *(tag("th", title, scope="col") for title in titles))]
    for each in cells:
        text = value_text(data[each.name])
        accuracies = (None if value is None else text(value) for value in (each.accuracy, each.baseline))
        first, *others = each.values.values()
        name: Element | str = first
        if directory.cell(each.name).report_file.exists():
            name = tag("a", first, href=f"{quote(each.name)}/report.html")
        rows.append(
            tag(
                "tr",
                tag("th", name, None if each.done else tag("small", each.state), scope="row"),
                *(tag("td", label) for label in others),
                *budget_cells(each.budget),
                *map(cell, accuracies),
                cell(units.seconds(each.latency_s)),
                cell(units.duration(each.seconds)),
            )
        )
    return section(
        "The cells",
        tag("div", tag("table", *rows), class_="scroll"),
        "Accuracies are those of the exported networks on the test split, beside the uncompressed one's. The small "
        "figures are shares of the uncompressed network's. Each cell is a run with a report of its own; "
        "`trimtab compare` ranks the algorithms.",
    )


def _fronts(cells: Sequence[CellResult], data: Mapping[str, RunData]) -> Element | None:
    """What the searches of each cell evaluated."""
    panels = [(each.name, panel) for each in cells if (panel := front(data[each.name])) is not None]
    if not panels:
        return None
    return section(
        "Accuracy against cost, cell by cell",
        tag("div", *(tag("div", tag("h3", name), panel) for name, panel in panels), class_="grid"),
        "Policies that the searches evaluated, before fine-tuning. Coloured marks are the Pareto front: nothing "
        "cheaper is as accurate. The dashed line is the budget.",
    )
