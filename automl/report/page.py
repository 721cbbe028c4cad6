"""The page: what was found, how it compares, how it was found and how it was measured."""

from xml.etree.ElementTree import Element

from automl.engines import ENGINES
from automl.report import units
from automl.report.budgets import budget_texts, budgets
from automl.report.data import Finalist, RunData
from automl.report.document import config_section, document, heading, tile
from automl.report.explained import explained_layers
from automl.report.figures import (
    WIDTH,
    accuracy_against_cost,
    over_search,
    value_text,
)
from automl.report.fronts import fronts
from automl.report.layers import kept_channels, treatments
from automl.report.markup import Child, append, cell, section, tag
from automl.report.method import method, metric_label
from automl.report.roofline import roofline
from automl.run.store import STOPPED
from search_spaces.objective import MODELLED

NAMES = {
    "baseline": "baseline",
    "best": "found by {algorithm}",
    "uniform": "uniform",
    "random": "random search",
    "from_scratch": "found, from scratch",
}
EXPLAINED = {
    "baseline": "the network as given",
    "best": "the best feasible policy of the search, fine-tuned",
    "uniform": "one keep ratio for every group, fine-tuned the same way",
    "random": "best of as many random policies, fine-tuned the same way",
    "from_scratch": "the found architecture, trained anew for as many epochs",
}
NAMES_GIVEN = {**NAMES, "best": "the policy given", "from_scratch": "given, from scratch"}
EXPLAINED_GIVEN = {
    **EXPLAINED,
    "best": "fine-tuned",
    "uniform": "as cheap, one keep ratio for every group, fine-tuned the same way",
    "from_scratch": "the same compressed network, trained anew for as many epochs",
}


def build_page(data: RunData) -> Element:
    """The whole document."""
    title = f"{data.config.model.name} on {data.config.data.name}"
    body = tag("main", _header(data, title), *_notices(data), *_tiles(data))
    parts = (
        _comparison,
        budgets,
        _scatter,
        fronts,
        _progress,
        kept_channels,
        treatments,
        explained_layers,
        _roofline,
        _method,
    )
    for part in parts:
        append(body, part(data))
    append(body, config_section(data.config_text))
    return document(title, body)


def headline(data: RunData) -> str | None:
    """What was found, in one sentence; None before there is a best network."""
    best, baseline = data.finalist("best"), data.finalist("baseline")
    if best is None or baseline is None or best.accuracy is None or baseline.accuracy is None:
        return None
    text = value_text(data)
    means = [("latency", best.latency_s, baseline.latency_s)] if data.budget.metric == "latency_s" else []
    if data.budget.metric in MODELLED:
        means = [(metric_label(data.budget.metric), best.cost(data.budget.metric), baseline.cost(data.budget.metric))]
    means += [("MACs", best.macs, baseline.macs)]
    stored = ("bytes of weights", best.weight_bytes, baseline.weight_bytes)
    means += [stored] if data.treatments else [("parameters", best.params, baseline.params)]
    shares = [f"{units.ratio(value, before)} of the {name}" for name, value, before in means[:2]]
    sentence = (
        f"{' and '.join(shares)} give {text(best.accuracy)} test {data.metric_name}, {text(baseline.accuracy)} before"
    )
    if best.latency_s and baseline.latency_s:
        sentence += f", and run {baseline.latency_s / best.latency_s:.2f}x as fast"
    peers = [
        f"{label} {text(peer.accuracy)}"
        for name, label in (("random", "random search reaches"), ("uniform", "a uniform policy"))
        if (peer := data.finalist(name)) is not None and peer.accuracy is not None
    ]
    return f"{sentence}. {', '.join(peers).capitalize()}{'.' if peers else ''}".strip()


def _header(data: RunData, title: str) -> Element:
    seeds = data.config.search.seeds
    parts = [
        *budget_texts(data),
        *(
            ["a policy that was given"]
            if data.given
            else [
                f"algorithm: {data.config.search.algorithm}",
                _evaluations(data),
                f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}",
            ]
        ),
        f"{units.duration(data.wall_s)} in all",
    ]
    facts = " · ".join(part for part in parts if part)
    return heading("Trimtab compression report", title, data.info.state, headline(data), facts)


def _notices(data: RunData) -> list[Element]:
    """What a reader must know before believing the figures."""
    notices = []
    if not data.done:
        why = f" ({data.info.reason})" if data.info.reason else ""
        what = {
            "infeasible": f"This run ended without a policy within the budget{why}.",
            "failed": f"This run failed at “{data.info.stage}”{why}. What is shown is what it found until then.",
        }
        unfinished = (
            f"This run is unfinished: its state is “{data.info.state}”, at “{data.info.stage}”{why}. What is shown is "
            "what it found so far."
        )
        notices.append(tag("p", what.get(data.info.state, unfinished), class_="notice"))
    best = data.finalist("best")
    if best is not None and best.feasible is False:
        above = (
            "The policy is above the budget."
            if data.given
            else ("The best network is above the budget: no feasible policy was found.")
        )
        notices.append(tag("p", above, class_="notice"))
    if data.failed:
        notices.append(tag("p", f"{data.failed} evaluations failed and are not drawn.", class_="notice"))
    return notices


def _tiles(data: RunData) -> list[Element]:
    best, baseline = data.finalist("best"), data.finalist("baseline")
    if best is None or baseline is None:
        return []
    text = value_text(data)
    tiles = [
        tile(
            f"test {data.metric_name}",
            text(best.accuracy) if best.accuracy is not None else units.UNKNOWN,
            f"from {text(baseline.accuracy)}{_points(data, best, baseline)}" if baseline.accuracy is not None else "",
        ),
        tile("MACs", units.count(best.macs), _left(best.macs, baseline.macs, units.count(baseline.macs))),
        tile("parameters", units.count(best.params), _left(best.params, baseline.params, units.count(baseline.params))),
        tile(
            "weights",
            units.size(best.weight_bytes),
            _left(best.weight_bytes, baseline.weight_bytes, units.size(baseline.weight_bytes)),
        ),
    ]
    if best.latency_s is not None:
        faster = ""
        if baseline.latency_s:
            faster = f"from {units.seconds(baseline.latency_s)}, {baseline.latency_s / best.latency_s:.2f}x as fast"
        how = "measured" if best.latency_measured else "modelled"
        how += f" on {data.config.measure.device.key}" if data.config.measure.device else ""
        tiles.append(tile(f"latency, {how}", units.seconds(best.latency_s), faster))
    if best.latency_s and best.onnxruntime_latency_s and data.config.measure.backend != "onnxruntime":
        against = f"{best.onnxruntime_latency_s / best.latency_s:.2f}x"
        tiles.append(tile("vs ONNX Runtime", against, f"as fast; it takes {units.seconds(best.onnxruntime_latency_s)}"))
    return [tag("section", *tiles, class_="tiles")]


def _left(value: float | None, reference: float | None, text: str) -> str:
    return f"{units.ratio(value, reference)} of {text}" if reference else ""


def _points(data: RunData, best: Finalist, baseline: Finalist) -> str:
    if not data.shares or best.accuracy is None or baseline.accuracy is None:
        return ""
    return f", {100 * (best.accuracy - baseline.accuracy):+.2f} points".replace("-", "−")


def _comparison(data: RunData) -> Element | None:
    if not data.finalists:
        return None
    text = value_text(data)
    by_table, accelerator = data.config.priced_by_table, bool(data.accelerator)
    names, explained = (NAMES_GIVEN, EXPLAINED_GIVEN) if data.given else (NAMES, EXPLAINED)
    engine, device = data.config.measure.backend, data.config.measure.device
    runtime = engine != "onnxruntime" and device is None  # else it stands there already, or did not run there
    smaller = any(found.resolution for found in data.finalists.values())
    supernet = data.config.supernet
    controls = supernet is not None and supernet.controls
    if controls:
        explained = {**explained, "from_scratch": "the found architecture, trained alone for the supernet's epochs"}
    columns = [
        "network",
        *(["images"] if smaller else []),
        *(["from the supernet"] if supernet else []),
        f"test {data.metric_name}",
        f"search {data.metric_name}",
        "MACs",
        "parameters",
        "weights",
        *([metric_label(metric) for metric in MODELLED] if accelerator else []),
        *(["by the table"] if by_table else []),
        (ENGINES[engine].title if engine in ENGINES else "latency") + (f" on {device.key}" if device else ""),
        *(["ONNX Runtime"] if runtime else []),
        "within budget",
    ]
    rows = [tag("tr", *(tag("th", column, scope="col") for column in columns))]
    baseline = data.finalist("baseline")
    for name, found in data.finalists.items():
        label = names[name].format(algorithm=data.config.search.algorithm)
        cells: list[Child] = [
            tag("th", label, tag("small", explained[name]), scope="row"),
            *([cell(found.resolution or "as they are")] if smaller else []),
            *([cell(None if found.accuracy_before is None else text(found.accuracy_before))] if supernet else []),
            cell(None if found.accuracy is None else text(found.accuracy)),
            cell(None if found.search_accuracy is None else text(found.search_accuracy)),
            cell(units.count(found.macs), units.ratio(found.macs, baseline.macs if baseline else None)),
            cell(units.count(found.params), units.ratio(found.params, baseline.params if baseline else None)),
            cell(units.size(found.weight_bytes)),
            *(_modelled_cells(found, baseline) if accelerator else []),
            *([cell(units.seconds(found.table_latency_s))] if by_table else []),
            cell(units.seconds(found.latency_s), _off(found.table_error) if by_table else _modelled(found)),
            *([cell(units.seconds(found.onnxruntime_latency_s))] if runtime else []),
            cell({True: "yes", False: "no", None: units.UNKNOWN}[found.feasible]),
        ]
        rows.append(tag("tr", *cells, class_="chosen" if name == "best" else None))
    table = tag("div", tag("table", *rows), class_="scroll")
    return section(
        "The networks side by side",
        table,
        "Test figures are after fine-tuning"
        f"{', those from the supernet as it was cut out, without any training' if supernet else ''}, search figures "
        "before it (of the network trained from scratch: after training). Every compressed network has "
        f"{'' if data.given else 'the same budget and '}the same number of epochs"
        f"{', but for the one from scratch' if controls else ''}; the latency is that of one image.",
    )


def _modelled_cells(found: Finalist, baseline: Finalist | None) -> list[Element]:
    """Seconds and joules on the accelerator, with their shares of the baseline's."""
    before = baseline or found
    return [
        cell(units.seconds(found.modelled_latency_s), units.ratio(found.modelled_latency_s, before.modelled_latency_s)),
        cell(units.joules(found.energy_j), units.ratio(found.energy_j, before.energy_j)),
    ]


def _modelled(found: Finalist) -> str:
    return "" if found.latency_measured or found.latency_s is None else "modelled"


def _off(error: float | None) -> str:
    return "" if error is None else f"{100 * error:+.1f} %".replace("-", "−")


def _scatter(data: RunData) -> Element | None:
    if data.given and len(data.points) < 3:  # the table of networks says the same
        return None
    return section(
        "Accuracy against cost",
        accuracy_against_cost(data),
        "Each mark is one evaluated policy, without fine-tuning. The line is the Pareto front: nothing cheaper is as "
        "accurate. Hover a mark for its figures.",
    )


def _progress(data: RunData) -> Element | None:
    if data.given:
        return None
    seeds = sorted({row.seed for row in data.searches if row.algorithm != "uniform"})
    width = WIDTH if len(seeds) == 1 else 430.0
    rewards = data.config.reward_name != "accuracy"
    charts: list[Element] = []
    for seed in seeds:
        for kind in (False, True) if rewards else (False,):
            chart = over_search(data, seed, width, rewards=kind)
            if chart is not None:
                charts.append(chart)
    if not charts:
        return None
    grid = tag("div", *charts, class_="grid" if width < WIDTH else None)
    return section(
        "Over the search",
        grid,
        f"Marks are the policies that {data.config.search.algorithm} proposed, lines the best feasible one so far: of "
        f"{data.config.search.algorithm} and of random search with as many evaluations.{_stops(data)}",
    )


def _stops(data: RunData) -> str:
    """Which searches ended by themselves, and after how many evaluations."""
    planned = {row.name: row.evaluations for row in data.searches}
    stops = [f"{name} after {spent:g} of {planned[name]} evaluations" for name, spent in data.stopped.items()]
    return f" Stopped early, where {STOPPED}: {', '.join(stops)}." if stops else ""


def _roofline(data: RunData) -> Element | None:
    """The layers of the baseline and of the best network on the accelerator's roofline."""
    titles = {"baseline": "baseline", "best": "compressed"}
    networks = {title: data.accelerator[name] for name, title in titles.items() if name in data.accelerator}
    if not networks:
        return None
    title = next(iter(networks.values())).title
    return section(
        f"Layers on {title}",
        roofline(networks),
        "Modelled. On the slope a layer waits for memory off the chip, on the roof for arithmetic, below both for a "
        "buffer or for arithmetic that its shape leaves idle. Hover for figures.",
    )


def _method(data: RunData) -> Element | None:
    listing = tag("dl")
    for name, text in method(data):
        append(listing, tag("dt", name))
        append(listing, tag("dd", text))
    return section("How it was measured", listing, None)


def _evaluations(data: RunData) -> str:
    """How many there were; those on a part of the images apart."""
    shares = [effort.share for search in data.efforts.values() for effort in search.values()]
    parts = sum(share < 1.0 for share in shares)
    on_parts = f", {parts} of them on a part of the images" if parts else ""
    return f"{len(shares)} evaluations{on_parts}"
