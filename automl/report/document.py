"""What every page is made of: a document that loads nothing, tiles of figures, and a budget in a table of runs."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any
from xml.etree.ElementTree import Element

from automl.report import units
from automl.report.figures import cost_text
from automl.report.markup import cell, tag
from automl.report.method import metric_label


def document(title: str, main: Element) -> Element:
    """The whole document around its content."""
    style = "".join(files("automl.report").joinpath(name).read_text("utf-8") for name in ("chart.css", "style.css"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        # nothing is loaded from anywhere, and a browser is told so
        tag("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        tag("title", f"Trimtab: {title}"),
        tag("style", style),
    )
    return tag("html", head, tag("body", main), lang="en")


def heading(kicker: str, title: str, state: str, lead: str | None, facts: str) -> Element:
    """The top of a page.

    Args:
        kicker: what kind of page it is.
        title: of the page.
        state: of what it is about.
        lead: what was found, in a sentence.
        facts: what else a reader should know at once.
    """
    badge = tag("span", state, class_=f"state {'done' if state == 'done' else 'open'}")
    found = tag("p", lead, class_="lead") if lead else None
    return tag(
        "header",
        tag("p", kicker, class_="kicker"),
        tag("h1", title, " ", badge),
        found,
        tag("p", facts, class_="facts"),
    )


def tile(name: str, value: str, note: str) -> Element:
    """One figure, large."""
    return tag("div", tag("h3", name), tag("p", value, class_="value"), tag("p", note, class_="note"), class_="tile")


def config_section(text: str) -> Element:
    """The resolved config, folded up."""
    return tag("section", tag("details", tag("summary", "Resolved config"), tag("pre", text)))


def budget_cells(budget: Mapping[str, Any] | None) -> tuple[Element, Element]:
    """Two cells of a table of runs: what is allowed, and what the best network takes."""
    if budget is None:
        return cell(None), cell(None)
    metric, text = budget["metric"], cost_text(budget["metric"])
    limit = budget.get("measured_limit") or budget.get("limit")
    whole, best = budget.get("baseline"), budget.get("best")
    if limit is not None:
        allowed = f"at most {text(limit)}"
    else:
        ratio = budget.get("ratio")
        allowed = units.UNKNOWN if ratio is None else f"at most {units.percent(ratio, 0)}"
    return cell(allowed, metric_label(metric)), cell(None if best is None else text(best), units.ratio(best, whole))
