"""The report of a supernet: how it learned, how good its predictor is, and what was found for every device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element

from automl.once_for_all.config import SupernetConfig
from automl.once_for_all.directory import SupernetDirectory
from automl.once_for_all.results import DeviceResult
from automl.once_for_all.status import supernet_status
from automl.report import units
from automl.report.data import read_run
from automl.report.document import budget_cells, config_section, document, heading, tile
from automl.report.figures import Text, value_text
from automl.report.fronts import front
from automl.report.markup import append, cell, section, tag, to_html
from automl.report.metric import is_share, metric_name
from automl.report.supernet_figures import learning, predictions
from automl.run.directory import write_atomically


def write_supernet_report(path: str | Path) -> Path:
    """Write `report.html` of a supernet's directory, finished or not; it loads nothing from anywhere.

    Returns:
        The file.

    Raises:
        InputError: the directory holds no supernet, or one of its files is damaged.
    """
    directory = SupernetDirectory.open(Path(path))
    page = to_html(build_supernet_page(SupernetData(directory, directory.config(), supernet_status(directory))))
    write_atomically(directory.report_file, f"<!DOCTYPE html>\n{page}\n".encode())
    return directory.report_file


@dataclass(frozen=True)
class SupernetData:
    """Everything that the report shows.

    Attributes:
        directory: of the supernet.
        config: that it was started with.
        status: see `supernet_status`.
    """

    directory: SupernetDirectory
    config: SupernetConfig
    status: Mapping[str, Any]

    @property
    def shares(self) -> bool:
        """Whether the metric is a share of the images, shown in percent."""
        return is_share(self.config)

    @property
    def metric(self) -> str:
        """The metric for people."""
        return metric_name(self.config)

    @property
    def seconds(self) -> Mapping[str, float]:
        """Of each stage before the devices, over all resumes."""
        return self.status["seconds"]  # type: ignore[no-any-return]

    @cached_property
    def predictor(self) -> Mapping[str, Any]:
        """See `SupernetDirectory.predictor`."""
        return self.directory.predictor()

    @cached_property
    def devices(self) -> Sequence[DeviceResult]:
        """What came of each."""
        return [DeviceResult(**each) for each in self.status["devices"]]


def build_supernet_page(data: SupernetData) -> Element:
    """The whole document."""
    config = data.config
    title = f"{config.model.name} on {config.data.name}, once for all"
    facts = [
        f"{config.supernet.method} training, {config.supernet.epochs} epochs after {config.baseline.epochs}",
        f"{len(data.devices)} device{'s' if len(data.devices) != 1 else ''}",
        f"{units.duration(data.status['wall_s'])} in all",
    ]
    main = tag(
        "main", heading("Trimtab supernet report", title, data.status["state"], headline(data), " · ".join(facts))
    )
    for part in (*_notices(data), _tiles(data), _devices(data), _fronts(data), _learning(data), _predictor(data)):
        append(main, part)
    append(main, _method(data))
    append(main, config_section(data.directory.config_file.read_text(encoding="utf-8")))
    return document(title, main)


def headline(data: SupernetData) -> str | None:
    """What was found, in one sentence; None before there is a network for a device."""
    text = value_text(data)
    done = [device for device in data.devices if device.done]
    found = [device.before for device in done if device.before is not None]
    if not found:
        return None
    whose = f"{len(done)} devices have networks" if len(done) > 1 else f"{done[0].name} has a network"
    sentence = f"From one training, {whose} of {_span(found, text)} test {data.metric} as cut out"
    tuned = [device.after for device in done if device.after is not None]
    return f"{sentence}, {_span(tuned, text)} after fine-tuning." if tuned else f"{sentence}."


def _span(values: Sequence[float], text: Text) -> str:
    """From the least to the greatest."""
    return " to ".join(dict.fromkeys((text(min(values)), text(max(values)))))


def _notices(data: SupernetData) -> list[Element]:
    """What a reader must know before believing the figures."""
    found = []
    state, reason = data.status["state"], data.status["reason"]
    if state != "done":
        why = f" ({reason})" if reason else ""
        found.append(
            f"This supernet is {state}, at “{data.status['stage']}”{why}. What is shown is what there is so far."
        )
    found += [f"{each.name} is {each.state}: {each.reason}" for each in data.devices if each.reason]
    return [tag("p", text, class_="notice") for text in found]


def _tiles(data: SupernetData) -> Element:
    how, rank = data.config.supernet, data.predictor.get("spearman")
    samples = sum(split["done"] for split in data.status["samples"].values())
    driven = sum(device.seconds or 0.0 for device in data.devices)
    return tag(
        "section",
        tile("training", units.duration(data.seconds.get("training")), f"{how.training.epochs} epochs, {how.method}"),
        tile("samples", units.count(samples) if samples else units.UNKNOWN, _took(data.seconds.get("samples"))),
        tile(
            "predictor",
            units.UNKNOWN if rank is None else units.significant(rank, 3),
            f"Spearman, {data.predictor.get('held_out', 0)} held out" if rank is not None else "",
        ),
        tile(
            "devices",
            f"{sum(device.done for device in data.devices)} of {len(data.devices)}",
            f"{units.duration(driven)} of search and fine-tuning",
        ),
        class_="tiles",
    )


def _took(seconds: float | None) -> str:
    return "" if seconds is None else f"evaluated in {units.duration(seconds)}"


def _devices(data: SupernetData) -> Element | None:
    if not data.devices:
        return None
    text = value_text(data)
    titles = ("device", "budget", "cost", "from the supernet", "fine-tuned", "trained alone", "latency", "took")
    rows = [tag("tr", *(tag("th", title, scope="col") for title in titles))]
    for device in data.devices:
        run = data.directory.device(device.name)
        name: Element | str = device.name
        if run.report_file.exists():
            name = tag("a", device.name, href=f"devices/{quote(device.name)}/{run.report_file.name}")
        values = (None if value is None else text(value) for value in (device.before, device.after))
        epochs = f"{device.alone_epochs:g} epochs" if device.alone_epochs is not None else ""
        rows.append(
            tag(
                "tr",
                tag("th", name, None if device.done else tag("small", device.state), scope="row"),
                *budget_cells(device.budget),
                *map(cell, values),
                cell(None if device.alone is None else text(device.alone), epochs),
                cell(units.seconds(device.latency_s)),
                cell(units.duration(device.seconds)),
            )
        )
    return section(
        "The devices",
        tag("div", tag("table", *rows), class_="scroll"),
        f"Test {data.metric} of the best network of each: as it was cut out of the supernet, after fine-tuning, and of "
        "the same architecture trained from scratch. The small figures are shares of the largest sub-network's.",
    )


def _fronts(data: SupernetData) -> Element | None:
    """What the search for each device evaluated."""
    panels = []
    for device in data.devices:
        run = data.directory.device(device.name)
        panel = front(read_run(run.path)) if run.info_file.exists() else None
        if panel is not None:
            panels.append(tag("div", tag("h3", device.name), panel))
    if not panels:
        return None
    return section(
        "Accuracy against cost, device by device",
        tag("div", *panels, class_="grid"),
        "Sub-networks that the searches evaluated, by the supernet's weights. Coloured marks are the Pareto front: "
        "nothing cheaper is as accurate. The dashed line is the budget.",
    )


def _learning(data: SupernetData) -> Element | None:
    return section(
        "How the sub-networks learned",
        learning(data, data.metric, data.directory.training()),
        "Accuracy on a held-out slice of the training data, after batch norm was recalibrated. A phase frees what it "
        "is called after, beside all that was free before. What is far below the rest lies on the axis.",
    )


def _predictor(data: SupernetData) -> Element | None:
    found = data.predictor
    chart = predictions(
        data, data.metric, found.get("accuracies") or [], found.get("predicted") or [], found.get("spearman")
    )
    return section(
        "What the predictor makes of sub-networks that it has not seen",
        chart,
        f"Each mark is one held-out sub-network; the predictor ({found.get('kind', 'mlp')}) learned from "
        f"{found.get('samples', 0)} others. On the dotted line both agree; for a search only the order matters.",
    )


def _method(data: SupernetData) -> Element | None:
    how, config = data.config.supernet, data.config
    training = how.training
    alone = (
        f"for {config.baseline.epochs + how.epochs} epochs, as many as the supernet and its largest network had"
        if how.controls
        else f"for {config.fine_tune.epochs} epochs, as many as fine-tuning has"
    )
    shrinking = "progressive shrinking (Cai et al. 2020)"
    sandwich = "the sandwich rule with in-place distillation (Yu and Huang 2019)"
    facts = {
        "Training": f"the largest network alone for {config.baseline.epochs} epochs, then all sub-networks for "
        f"{how.epochs} by {sandwich if how.method == 'sandwich' else shrinking}, {how.subnets} random ones a step, "
        f"learning rate {training.lr:g}.",
        "From the supernet": "the weights are cut out and batch norm is recalibrated; nothing is trained.",
        "Trained alone": f"the same architecture from scratch, {alone}.",
        "Samples": "drawn uniformly from the space; the smallest and the largest are among those learned from.",
        "Took": "search, fine-tuning, measuring and export of a device's run; training and samples are shared.",
    }
    listing = tag("dl")
    for name, text in facts.items():
        append(listing, tag("dt", name))
        append(listing, tag("dd", text))
    return section("How it was done", listing, None)
