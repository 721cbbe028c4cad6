"""The page: what was found, how it compares, how it was found and how it was measured."""

from importlib.resources import files
from xml.etree.ElementTree import Element

from automl.report import units
from automl.report.data import Finalist, RunData
from automl.report.figures import (
    WIDTH,
    accuracy_against_cost,
    cost_text,
    kept_by_group,
    over_episodes,
    value_text,
)
from automl.report.markup import Child, append, tag

NAMES = {
    "baseline": "baseline",
    "best": "found by {algorithm}",
    "uniform": "uniform",
    "random": "random search",
    "from_scratch": "found, from scratch",
}
ENGINES = {
    "tvm": "TVM",
    "tvm_cuda": "TVM on CUDA",
    "onnxruntime": "ONNX Runtime",
    "torch": "torch",
    "torch_compiled": "torch.compile",
    "torch_cuda": "torch on CUDA",
    "torch_cuda_compiled": "torch.compile on CUDA",
}
EXPLAINED = {
    "baseline": "the network as given",
    "best": "the best feasible policy of the search, fine-tuned",
    "uniform": "one keep ratio for every group, fine-tuned the same way",
    "random": "best of as many random policies, fine-tuned the same way",
    "from_scratch": "the found architecture, trained anew for as many epochs",
}


def build_page(data: RunData) -> Element:
    """The whole document."""
    title = f"{data.config.model.name} on {data.config.data.name}"
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
    body = tag("main", _header(data, title), *_notices(data), *_tiles(data))
    for section in (_comparison(data), _scatter(data), _episodes(data), _layers(data), _method(data), _config(data)):
        append(body, section)
    return tag("html", head, tag("body", body), lang="en")


def headline(data: RunData) -> str | None:
    """What was found, in one sentence; None before there is a best network."""
    best, baseline = data.finalist("best"), data.finalist("baseline")
    if best is None or baseline is None or best.accuracy is None or baseline.accuracy is None:
        return None
    text = value_text(data)
    means = [("latency", best.latency_s, baseline.latency_s)] if data.budget.metric == "latency_s" else []
    means += [("MACs", best.macs, baseline.macs), ("parameters", best.params, baseline.params)]
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
    state = tag("span", data.info.state, class_=f"state {'done' if data.done else 'open'}")
    header = tag("header", tag("p", "Trimtab compression report", class_="kicker"), tag("h1", title, " ", state))
    found = headline(data)
    if found:
        append(header, tag("p", found, class_="lead"))
    seeds = data.config.search.seeds
    parts = [
        _budget_text(data),
        f"algorithm: {data.config.search.algorithm}",
        f"{len(data.points) + data.failed} evaluations",
        f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}",
        f"{units.duration(data.wall_s)} in all",
    ]
    append(header, tag("p", " · ".join(part for part in parts if part), class_="facts"))
    return header


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
        notices.append(tag("p", "The best network is above the budget: no feasible policy was found.", class_="notice"))
    if data.failed:
        notices.append(tag("p", f"{data.failed} evaluations failed and are not drawn.", class_="notice"))
    return notices


def _tiles(data: RunData) -> list[Element]:
    best, baseline = data.finalist("best"), data.finalist("baseline")
    if best is None or baseline is None:
        return []
    text = value_text(data)
    tiles = [
        _tile(
            f"test {data.metric_name}",
            text(best.accuracy) if best.accuracy is not None else units.UNKNOWN,
            f"from {text(baseline.accuracy)}{_points(data, best, baseline)}" if baseline.accuracy is not None else "",
        ),
        _tile("MACs", units.count(best.macs), _left(best.macs, baseline.macs, units.count(baseline.macs))),
        _tile(
            "parameters", units.count(best.params), _left(best.params, baseline.params, units.count(baseline.params))
        ),
        _tile(
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
        tiles.append(_tile(f"latency, {how}", units.seconds(best.latency_s), faster))
    if best.latency_s and best.onnxruntime_latency_s:
        against = f"{best.onnxruntime_latency_s / best.latency_s:.2f}x"
        tiles.append(
            _tile("vs ONNX Runtime", against, f"as fast; it takes {units.seconds(best.onnxruntime_latency_s)}")
        )
    return [tag("section", *tiles, class_="tiles")]


def _tile(name: str, value: str, note: str) -> Element:
    return tag("div", tag("h3", name), tag("p", value, class_="value"), tag("p", note, class_="note"), class_="tile")


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
    by_table = data.budget.metric == "latency_s"
    engine = data.config.measure.backend
    runtime = engine != "onnxruntime"  # else it stands there already
    columns = [
        "network",
        f"test {data.metric_name}",
        f"search {data.metric_name}",
        "MACs",
        "parameters",
        "weights",
        *(["by the table"] if by_table else []),
        ENGINES.get(engine, "latency"),
        *(["ONNX Runtime"] if runtime else []),
        "within budget",
    ]
    rows = [tag("tr", *(tag("th", column, scope="col") for column in columns))]
    baseline = data.finalist("baseline")
    for name, found in data.finalists.items():
        label = NAMES[name].format(algorithm=data.config.search.algorithm)
        cells: list[Child] = [
            tag("th", label, tag("small", EXPLAINED[name]), scope="row"),
            _cell(None if found.accuracy is None else text(found.accuracy)),
            _cell(None if found.search_accuracy is None else text(found.search_accuracy)),
            _cell(units.count(found.macs), units.ratio(found.macs, baseline.macs if baseline else None)),
            _cell(units.count(found.params), units.ratio(found.params, baseline.params if baseline else None)),
            _cell(units.size(found.weight_bytes)),
            *([_cell(units.seconds(found.table_latency_s))] if by_table else []),
            _cell(units.seconds(found.latency_s), _off(found.table_error) if by_table else _modelled(found)),
            *([_cell(units.seconds(found.onnxruntime_latency_s))] if runtime else []),
            _cell({True: "yes", False: "no", None: units.UNKNOWN}[found.feasible]),
        ]
        rows.append(tag("tr", *cells, class_="chosen" if name == "best" else None))
    table = tag("div", tag("table", *rows), class_="scroll")
    return _section(
        "The networks side by side",
        table,
        "Test figures are after fine-tuning, search figures before it (of the network trained from scratch: after "
        "training). Every pruned network has the same budget and the same number of epochs; the latency is that of "
        "one image.",
    )


def _modelled(found: Finalist) -> str:
    return "" if found.latency_measured or found.latency_s is None else "modelled"


def _off(error: float | None) -> str:
    return "" if error is None else f"{100 * error:+.1f} %".replace("-", "−")


def _cell(value: str | None, note: str = "") -> Element:
    return tag("td", value or units.UNKNOWN, tag("small", note) if note and note != units.UNKNOWN else None)


def _scatter(data: RunData) -> Element | None:
    return _section(
        "Accuracy against cost",
        accuracy_against_cost(data),
        "Each mark is one evaluated policy, without fine-tuning. The line is the Pareto front: nothing cheaper is as "
        "accurate. Hover a mark for its figures.",
    )


def _episodes(data: RunData) -> Element | None:
    seeds = sorted({row.seed for row in data.searches if row.algorithm != "uniform"})
    width = WIDTH if len(seeds) == 1 else 430.0
    rewards = data.config.reward_name != "accuracy"
    charts: list[Element] = []
    for seed in seeds:
        for kind in (False, True) if rewards else (False,):
            chart = over_episodes(data, seed, width, rewards=kind)
            if chart is not None:
                charts.append(chart)
    if not charts:
        return None
    grid = tag("div", *charts, class_="grid" if width < WIDTH else None)
    return _section(
        "Over the episodes",
        grid,
        "Marks are the episodes of the agent, lines the best feasible policy so far: of the agent and of random search "
        "with as many evaluations.",
    )


def _layers(data: RunData) -> Element | None:
    return _section(
        "What each layer keeps",
        kept_by_group(data),
        "A channel group is a set of layers whose channels can only be removed together, named after the first.",
    )


def _method(data: RunData) -> Element:
    config = data.config
    compression = config.compression
    steps = [
        f"AMC's least-squares reconstruction on {compression.calibration_images} training images"
        if compression.reconstruct
        else "no reconstruction",
        f"batch norm recalibrated on {compression.recalibrate_images} images"
        if compression.recalibrate_images
        else "batch norm not recalibrated",
    ]
    facts = [
        ("MACs", "multiply-accumulates of convolution and linear layers, batch 1, bias not counted."),
        ("Parameters", "weights, biases and batch-norm affine terms; 4 bytes each."),
        (
            "Search accuracy",
            "of a slice held out of the training data, before fine-tuning. The search sees nothing else.",
        ),
        ("Test accuracy", "of the test split, read once for each network, after fine-tuning."),
        (
            "Fine-tuning",
            f"{config.fine_tune.epochs} epochs, learning rate {config.fine_tune.lr:g}, the same for every pruned "
            "network; training from scratch has as many epochs.",
        ),
        ("Compression", f"channels removed for good by {compression.importance}; {'; '.join(steps)}."),
        ("Budget", _budget_method(data)),
        ("Latency", _latency_method(data)),
        (
            "Compared with",
            "random search with as many evaluations and the same seeds; one uniform policy of the same budget.",
        ),
    ]
    if not data.shares:
        facts.append(
            ("Metric", f"{data.metric_name}; before fine-tuning, one that is to be minimised is shown negated.")
        )
    manifest = data.manifest
    if manifest is not None:
        facts.append(("Machine", ", ".join(f"{name} {value}" for name, value in manifest.machine.items()) + "."))
        facts.append(("Versions", ", ".join(f"{name} {value}" for name, value in manifest.versions.items()) + "."))
    listing = tag("dl")
    for name, text in facts:
        append(listing, tag("dt", name))
        append(listing, tag("dd", text))
    section = _section("How it was measured", listing, None)
    return section if section is not None else listing


def _budget_method(data: RunData) -> str:
    if data.budget.metric != "latency_s":
        return "kept when the cost after rounding to real channel counts is within it."
    text = (
        "in latency. While searching, a policy's latency is the sum of its operators', each measured once on this "
        "device and kept in a table"
    )
    if data.budget.margin is not None:
        text += (
            f"; the search held {units.percent(data.budget.margin, 1)} of the budget back for what the table misses of "
            "whole networks"
        )
    text += ". In the end whole networks are measured, and the budget is kept when that latency is within it"
    baseline = data.finalist("baseline")
    if data.budget.measured_limit is not None and baseline is not None:
        text += (
            f": {units.seconds(data.budget.measured_limit)}, where the baseline takes "
            f"{units.seconds(baseline.latency_s)} in the same session. Beside each measured latency stands how far it "
            "is off the table's sum"
        )
    return f"{text}."


def _latency_method(data: RunData) -> str:
    best = data.finalist("best")
    if data.config.measure.backend == "none" or (best is not None and best.latency_s is None):
        return "not measured."
    if best is not None and not best.latency_measured:
        return "modelled, not measured."
    engine = data.config.measure.backend
    run = "compiled by TVM" if engine == "tvm" else f"in {ENGINES[engine]}"
    if engine != "onnxruntime":
        run += " and of its ONNX export in ONNX Runtime"
    text = "measured" if best is not None else "to be measured at the end of the run"
    text += (
        f": wall-clock median at batch 1 of the network {run}, "
        f"{data.config.measure.threads} thread, interleaved in one process of their own. Its ratios are more certain "
        "than its seconds."
    )
    if data.manifest is not None:
        spreads = [
            f"{engine} {units.seconds(found.median_s)} (p10 {units.seconds(found.p10_s)}, p90 "
            f"{units.seconds(found.p90_s)}, {found.runs} runs)"
            for engine, found in data.manifest.latency.items()
        ]
        text += f" Exported network: {'; '.join(spreads)}." if spreads else ""
    return text


def _config(data: RunData) -> Element:
    return tag(
        "section",
        tag("details", tag("summary", "Resolved config"), tag("pre", data.config_text)),
    )


def _section(title: str, content: Element | None, note: str | None) -> Element | None:
    if content is None:
        return None
    return tag("section", tag("h2", title), content, tag("p", note, class_="note") if note else None)


def _budget_text(data: RunData) -> str:
    limit, label = data.budget.limit, _metric_label(data.budget.metric)
    if data.config.budget is None:
        return "no hard budget"
    if limit is None:
        return f"budget: {units.percent(data.config.budget.ratio, 0)} of the baseline's {label}"
    if data.budget.metric == "latency_s":
        return f"budget: at most {units.seconds(limit)} by the latency table"
    return f"budget: at most {cost_text(data.budget.metric)(limit)} {label}"


def _metric_label(metric: str) -> str:
    return {"macs": "MACs", "params": "parameters", "weight_bytes": "weights", "latency_s": "latency"}.get(
        metric, metric
    )
