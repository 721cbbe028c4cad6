"""The report of a supernet: every figure of its devices is in it, at any moment, and it loads nothing."""

import json
from math import exp
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import pytest

from automl.config import load_config
from automl.once_for_all.config import SupernetConfig
from automl.once_for_all.directory import SupernetDirectory
from automl.report import units
from automl.report.markup import to_html
from automl.report.supernet import write_supernet_report
from automl.report.supernet_figures import learning, predictions
from automl.run.directory import write_json
from automl.testing.runs import make_run

DEVICES = ("edge", "<b>cloud")
PHASES = ("kernel", "depth", "channels")


class Shares:
    """Judged by accuracy."""

    shares = True


def epochs() -> list[dict[str, Any]]:
    """Of a training, as its file has them; every other one was looked at."""
    found = []
    for epoch in range(1, 31):
        reached = 1 - exp(-epoch / 8)
        looks = {"smallest": 0.5 + 0.35 * reached, "middle": 0.6 + 0.3 * reached, "largest": 0.93 + 0.02 * reached}
        phase = PHASES[(epoch - 1) // 10]
        said = looks if epoch % 2 == 0 else {}
        found.append(
            {"epoch": epoch, "epochs": 30, "loss": 1 / epoch, "seconds": 1.0, "phase": phase, "accuracies": said}
        )
    return found


@pytest.fixture
def supernet(tmp_path: Path) -> SupernetDirectory:
    document = {
        "model": {"name": "resnet20"},
        "data": {"name": "digits", "args": {"size": 16}},
        "baseline": {"epochs": 12},
        "supernet": {"training": {"epochs": 30}, "controls": True},
        "devices": {name: {"budget": {"metric": "macs", "ratio": 0.5}} for name in (*DEVICES, "later")},
    }
    directory = SupernetDirectory.create(tmp_path / "supernet", load_config(document, kind=SupernetConfig))
    for name in DEVICES:
        run = make_run(directory.device(name).path)
        summary = run.summary()
        summary["best"]["accuracy_before"] = 0.9712
        summary["from_scratch"]["fine_tune_epochs"] = 42
        used = {"baseline": summary["baseline"]["macs"], "best": summary["best"]["macs"], "used": 0.97}
        summary["budgets"] = [{**summary["budget"], **used}]
        write_json(run.summary_file, summary)
        run.report_file.touch()
    write_json(directory.training_file, epochs())
    generator = np.random.default_rng(0)
    measured = generator.uniform(0.8, 0.95, 40)
    predicted = measured + generator.normal(0, 0.01, 40)
    told = {"predicted": predicted.tolist(), "accuracies": measured.tolist()}
    write_json(directory.predictor_file, {"kind": "mlp", "samples": 100, "held_out": 40, "spearman": 0.9312, **told})
    write_json(directory.seconds_file, {"training": 754.0, "samples": 61.0})
    return directory


def page(directory: SupernetDirectory) -> str:
    return write_supernet_report(directory.path).read_text(encoding="utf-8")


def marks(chart: Element | None) -> int:
    assert chart is not None
    return sum(1 for _ in chart.iter("circle"))


def test_every_figure_of_the_devices_is_in_it(supernet: SupernetDirectory) -> None:
    text = page(supernet)
    for name in DEVICES:
        summary = supernet.device(name).summary()
        for value in (0.9712, summary["best"]["accuracy"], summary["from_scratch"]["accuracy"]):
            assert text.count(f"<td>{units.percent(value)}") == len(DEVICES)
        assert units.seconds(summary["best"]["latency_s"]) in text
        assert f"at most {units.count(summary['budget']['limit'])}" in text
    assert "<small>42 epochs</small>" in text
    assert "<small>waiting</small>" in text  # of the third device
    assert "0.931" in text
    assert "12 min 34 s" in text
    assert supernet.config_file.read_text().splitlines()[0] in text
    assert "<h2>How the sub-networks learned</h2>" in text


def test_devices_lead_to_their_reports_and_nothing_is_loaded(supernet: SupernetDirectory) -> None:
    text = page(supernet)
    assert 'href="devices/edge/report.html"' in text
    assert 'href="devices/%3Cb%3Ecloud/report.html"' in text
    assert "<b>" not in text
    assert "src=" not in text
    assert text.count("href=") == len(DEVICES)


def test_there_is_a_report_before_anything_is_found(supernet: SupernetDirectory) -> None:
    for file in (supernet.training_file, supernet.predictor_file, supernet.seconds_file):
        file.unlink()
    for name in DEVICES:
        supernet.device(name).summary_file.unlink()
        supernet.device(name).store_file.unlink()
    text = page(supernet)
    assert "unfinished" in text
    assert "<svg" not in text


def test_what_stopped_a_device_is_said(supernet: SupernetDirectory) -> None:
    run = supernet.device("edge")
    write_json(
        run.info_file, {**json.loads(run.info_file.read_bytes()), "state": "infeasible", "reason": "the least is 3"}
    )
    assert '<p class="notice">edge is infeasible: the least is 3' in page(supernet)


def test_every_look_and_every_held_out_sub_network_is_a_mark() -> None:
    assert marks(learning(Shares(), "accuracy", epochs())) == 3 * 15
    assert learning(Shares(), "accuracy", epochs()[:1]) is None
    assert marks(predictions(Shares(), "accuracy", [0.1, 0.2, 0.3], [0.1, 0.1, 0.4], 0.9)) == 3
    assert predictions(Shares(), "accuracy", [], [], None) is None
    chart = learning(Shares(), "accuracy", epochs())
    assert chart is not None
    assert all(phase in to_html(chart) for phase in PHASES)
