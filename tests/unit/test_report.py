"""The report: every figure of the run is in it, nothing it says can become markup, and it loads nothing."""

import json
import re
import sqlite3
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automl.cli import main
from automl.export.manifest import MANIFEST
from automl.report import units, write_picture, write_report
from automl.report.axes import nice_range
from automl.report.data import read_run
from automl.report.markup import tag, to_html
from automl.report.page import headline
from automl.run.directory import RunDirectory, State
from automl.run.explanation import Explanation, in_words
from automl.run.status import run_status
from automl.testing.runs import make_run
from search_spaces.errors import InputError
from search_spaces.objective import pareto_front

ATTACK = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
VOID = {"meta", "br", "img", "link", "hr", "input"}


class _Page(HTMLParser):
    """What a browser would see: elements, attributes and the text of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return make_run(tmp_path_factory.mktemp("runs") / "done", seeds=(0, 3))


def _page(directory: RunDirectory) -> _Page:
    return _Page(write_report(directory.path).read_text(encoding="utf-8"))


def test_it_is_a_page_of_its_own(run: RunDirectory) -> None:
    page = _page(run)
    assert page.open == []
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    assert not re.findall(
        r"(?:https?:)?//|url\(|@import", run.report_file.read_text(encoding="utf-8").partition("<pre>")[0]
    )


def test_every_figure_of_the_summary_is_in_it(run: RunDirectory) -> None:
    text = _page(run).text
    summary = json.loads(run.summary_file.read_text())
    for name in ("baseline", "best", "uniform", "random", "from_scratch"):
        figures = summary[name]
        assert units.percent(figures["accuracy"]) in text
        assert units.percent(figures["search_accuracy"]) in text
        assert units.count(figures["macs"]) in text
        assert units.count(figures["params"]) in text
        assert units.size(figures["weight_bytes"]) in text
        assert units.seconds(figures["latency_s"]) in text
    assert units.seconds(summary["best"]["onnxruntime_latency_s"]) in text
    for layer in summary["layers"]:
        assert layer["name"] in text
        assert f"{layer['kept']} of {layer['width']}" in text
    assert "budget 5.10 M" in text
    assert run.config_file.read_text() in text


def test_every_layer_is_explained(run: RunDirectory) -> None:
    text = _page(run).text
    found = Explanation.read(run.explanation_file)
    assert found is not None
    (budget,) = found.budgets
    for layer in found.layers:
        assert text.count(layer.name) >= 3  # in both pictures and the table
        assert in_words(layer) in text
        assert units.percent(layer.costs["macs"][1] / budget.whole, 1) in text
        if layer.loss is not None and layer.loss.error is None:
            assert f"{layer.loss.divergence:.2g} nats" in text
            assert f"{-100 * layer.loss.accuracy:+.1f} points".replace("-", "−") in text
    assert "Together they lose 0.31 nats, −9.2 points." in text
    assert text.count("failed") == 3  # the picture, its hint and the table
    run.explanation_file.rename(run.path / "kept.json")
    try:
        assert "Layer by layer" not in _page(run).text
    finally:
        (run.path / "kept.json").rename(run.explanation_file)


SEVERAL = {
    "budget": [{"metric": "macs", "ratio": 0.5}, {"metric": "weight_bytes", "ratio": 0.45}],
    "search": {"algorithm": "ddpg", "evaluations": 40, "seeds": [0], "objectives": ["macs", "weight_bytes"]},
}


def test_several_budgets_are_named_with_how_far_each_is_used(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", evaluations=40, overrides=SEVERAL)
    text = _page(directory).text
    assert "budget: at most 5.10 M MACs" in text
    assert "budget: at most 490 kB bytes of weights" in text
    assert "The budgets" in text
    for budget in json.loads(directory.summary_file.read_text())["budgets"]:
        assert units.percent(budget["used"], 1) in text
    bounds = RunDirectory.open(tmp_path / "run").config().budgets
    assert [each.metric for each in bounds] == [each.metric for each in read_run(directory.path).budgets]
    early = _page(make_run(tmp_path / "early", state="unfinished", summarised=False, overrides=SEVERAL)).text
    assert "budget: 50 % of the baseline's MACs" in early
    assert "budget: 45 % of the baseline's bytes of weights" in early
    assert "The budgets" not in early


def test_several_objectives_have_a_panel_for_each_pair(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", evaluations=40, overrides=SEVERAL)
    page, data = _page(directory), read_run(directory.path)
    points = [point.objectives(data.objectives) for point in data.points]
    front = pareto_front(points)
    assert f"{len(front)} of {len(points)} policies" in page.text
    assert [value for name, value in page.attributes if name == "aria-label" and " against " in value] == [
        "accuracy against MACs of an inference",
        "bytes of weights against MACs",
        "search accuracy against MACs",
        "search accuracy against bytes of weights",
    ]
    dots = [value for name, value in page.attributes if name == "class" and value.startswith("dot agent")]
    assert len(dots) >= 3 * len(front)
    assert "The Pareto front of all objectives" not in _page(make_run(tmp_path / "one", evaluations=6)).text


def test_a_search_that_stopped_by_itself_is_told_with_what_it_spent(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", evaluations=40)
    connection = sqlite3.connect(directory.store_file)
    connection.execute("UPDATE searches SET finished = 1")
    connection.execute("DELETE FROM evaluations WHERE search = 'ddpg-0' AND number > 20")
    connection.execute("UPDATE evaluations SET share = 0.25, feasible = 0 WHERE search = 'ddpg-0' AND number < 4")
    connection.commit()
    connection.close()
    text = _page(directory).text
    said = "Stopped early, where no further proposal was worth its evaluation: ddpg-0 after 18 of 40 evaluations."
    assert said in text
    assert "62 evaluations, 4 of them on a part of the images" in text
    assert "ddpg-0, number 4\n" in text
    assert "ddpg-0, number 3\n" not in text  # no result
    status = run_status(directory)
    assert [row["stopped"] is None for row in status["searches"]] == [False, True, True]
    assert main(["status", str(directory.path)]) == 0


def test_a_latency_budget_is_told_in_milliseconds_by_the_table_and_by_the_clock(tmp_path: Path) -> None:
    overrides = {"budget": {"metric": "latency_s", "ratio": 0.5}}
    directory = make_run(tmp_path / "run", overrides=overrides)
    text = _page(directory).text
    summary = json.loads(directory.summary_file.read_text())
    assert "budget: at most 0.062 ms by the latency table" in text
    assert "held 2.0 % of the budget back" in text
    assert "0.061 ms, where the baseline takes 0.122 ms in the same session" in text
    for name in ("baseline", "best", "uniform", "random", "from_scratch"):
        figures = summary[name]
        assert units.seconds(figures["table_latency_s"]) in text
        assert units.seconds(figures["latency_s"]) in text
        assert f"{100 * figures['table_error']:+.1f} %".replace("-", "−") in text
    assert "latency of an inference by the table" in text
    assert re.search(r"0\.0\d+ ms latency of an inference by the table", text)  # of an evaluation
    assert headline(read_run(directory.path)) == (
        "57 % of the latency and 50 % of the MACs give 98.61 % test accuracy, 98.89 % before, and run 1.77x as "
        "fast. Random search reaches 98.33 %, a uniform policy 98.06 %."
    )
    unfinished = make_run(tmp_path / "unfinished", overrides=overrides, state="unfinished", summarised=False)
    assert "budget: at most 0.062 ms" in _page(unfinished).text


def test_every_evaluation_is_drawn_and_seeds_have_their_own_chart(run: RunDirectory) -> None:
    text = _page(run).text
    for search in ("ddpg-0", "ddpg-3", "random-0", "random-3"):
        assert len(re.findall(rf"{search}, number \d+", text)) == 60
    assert "uniform, number 0" in text
    assert "proposal (seed 0)" in text
    assert "proposal (seed 3)" in text
    assert "warm-up" in text
    assert "unfinished" not in text


def test_the_headline_says_what_was_found(run: RunDirectory) -> None:
    sentence = headline(read_run(run.path))
    assert sentence == (
        "50 % of the MACs and 50 % of the parameters give 98.61 % test accuracy, 98.89 % before, and run 1.77x as "
        "fast. Random search reaches 98.33 %, a uniform policy 98.06 %."
    )


def test_an_unfinished_run_says_so(tmp_path: Path) -> None:
    text = _page(make_run(tmp_path / "run", state="unfinished", summarised=False)).text
    assert "This run is unfinished" in text
    assert "ddpg-0, number 59" in text
    assert "The networks side by side" not in text
    assert "50 % of the baseline's MACs" in text


@pytest.mark.parametrize(
    ("state", "words"), [("infeasible", "without a policy within the budget"), ("failed", "This run failed")]
)
def test_a_run_that_came_to_nothing_says_so(tmp_path: Path, state: State, words: str) -> None:
    text = _page(make_run(tmp_path / "run", state=state, summarised=False)).text
    assert words in text
    assert "unfinished" not in text


def test_a_run_that_has_just_begun_has_a_report(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", state="running", summarised=False)
    directory.store_file.unlink()
    assert "This run is unfinished" in _page(directory).text
    with pytest.raises(InputError, match="no evaluation"):
        write_picture(directory.path, tmp_path / "chart.svg")


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    directory = make_run(
        tmp_path / "run",
        overrides={"model": {"name": ATTACK}, "data": {"name": ATTACK}, "metric": f"module:{ATTACK}"},
    )
    summary = json.loads(directory.summary_file.read_text())
    summary["layers"][0]["name"] = ATTACK
    directory.summary_file.write_text(json.dumps(summary))
    info = json.loads(directory.info_file.read_text())
    directory.info_file.write_text(json.dumps({**info, "state": "failed", "reason": ATTACK, "stage": ATTACK}))
    page = _page(directory)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.text.count(ATTACK) >= 4
    assert page.open == []


def test_figures_that_are_none_are_dashes(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run")
    summary = json.loads(directory.summary_file.read_text())
    summary["best"] = dict.fromkeys(summary["best"])
    summary["uniform"] = None
    summary["layers"] = [None, {"kept": "a"}, {"name": "x", "kept": 1, "width": 0}]
    summary["random"]["accuracy"] = "high"
    directory.summary_file.write_text(json.dumps(summary))
    page = _page(directory)
    assert units.UNKNOWN in page.text
    assert "not measured" in page.text


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00"])
def test_a_damaged_summary_is_refused(tmp_path: Path, content: str) -> None:
    directory = make_run(tmp_path / "run", evaluations=3)
    directory.summary_file.write_text(content)
    with pytest.raises(InputError, match="damaged"):
        write_report(directory.path)
    assert not directory.report_file.exists()


def test_a_damaged_export_is_refused(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", evaluations=3)
    directory.best.mkdir()
    (directory.best / MANIFEST).write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        write_report(directory.path)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run directory"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_picture_stands_alone(run: RunDirectory, tmp_path: Path) -> None:
    root = ElementTree.parse(write_picture(run.path, tmp_path / "chart.svg")).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "--agent" in "".join(root.itertext())
    assert len(root.findall(".//{*}circle")) > 100


def test_a_reward_of_its_own_kind_is_drawn_too(tmp_path: Path) -> None:
    search = {"evaluations": 30, "reward": "accuracy_flops", "mode": "accuracy", "algorithm": "ddpg"}
    text = _page(make_run(tmp_path / "run", evaluations=30, overrides={"search": search, "budget": None})).text
    assert "reward over" not in text  # that is the picture's label, not a text
    assert re.search(r"proposal \d+: reward ", text)
    assert "no hard budget" in text


GIVEN = {"schema_version": 2, "model": None, "layers": {"conv1": {"weight_bits": 8}}}


def given_run(path: Path, **sections: Any) -> tuple[RunDirectory, dict[str, Any]]:
    """A run of a policy that was given, and its summary to be changed and written."""
    search = {"algorithm": "given", "options": {"policies": [GIVEN]}, "evaluations": 1}
    directory = make_run(path, overrides={"search": search, **sections})
    summary = json.loads(directory.summary_file.read_text())
    summary["random"] = None
    return directory, summary


def write(directory: RunDirectory, summary: dict[str, Any]) -> None:
    directory.summary_file.write_text(json.dumps(summary))


def test_what_is_done_beside_pruning_has_a_table_with_the_columns_that_say_something(tmp_path: Path) -> None:
    directory, summary = given_run(tmp_path / "run")
    quantised = {"weight_bits": 4, "weight_granularity": "group:32", "activation_bits": 8}
    summary["treatments"] = [
        {"name": "stage1", **quantised, "weight_bytes": 1234, "whole_bytes": 12340},
        {"name": "stage2", "sparsity": 0.75, "pattern": "block:2x2", "weight_bytes": 10, "whole_bytes": 100},
        {"name": "stage3", "remove": True, "weight_bytes": 0, "whole_bytes": 5000},
        None,
    ]
    write(directory, summary)
    text = _page(directory).text
    for words in ("4 bits symmetric, group:32", "8 bits asymmetric, tensor", "75 % block:2x2", "left out"):
        assert words in text
    for words in ("1.23 kB", "10 % of 12.3 kB", "0 % of 5 kB"):
        assert words in text
    assert text.count("rank") == 1  # the config's own key
    summary["treatments"] = [{"name": "stage4", "rank": [4, 8], "factorisation": "tucker2"}]
    write(directory, summary)
    text = _page(directory).text
    assert "4 × 8 tucker2" in text
    assert "activations" not in text
    summary["treatments"] = []
    write(directory, summary)
    assert "What else is done to layers" not in _page(directory).text


@pytest.mark.parametrize("treatment", [{"name": "a", "weight_bits": 0}, {"name": "a", "bits": 8}])
def test_a_treatment_that_no_policy_could_hold_is_refused(tmp_path: Path, treatment: dict[str, Any]) -> None:
    directory, summary = given_run(tmp_path / "run")
    write(directory, {**summary, "treatments": [treatment]})
    with pytest.raises(InputError, match="damaged: layer 'a' of a policy"):
        write_report(directory.path)


def test_a_policy_that_was_given_is_not_called_found(tmp_path: Path) -> None:
    directory, summary = given_run(tmp_path / "run")
    write(directory, summary)
    text = _page(directory).text
    for words in ("the policy given", "a policy that was given", "one uniform policy of at most as many MACs"):
        assert words in text
    for words in ("found by", "random search", "Over the search", "The policy is above the budget"):
        assert words not in text
    summary["best"]["feasible"] = False
    write(directory, summary)
    assert "The policy is above the budget." in _page(directory).text


def test_a_latency_budget_of_a_given_policy_needs_no_table(tmp_path: Path) -> None:
    directory, summary = given_run(tmp_path / "run", budget={"metric": "latency_s", "ratio": 0.5})
    summary["budget"] = {"metric": "latency_s", "limit": None, "unit": "s", "measured_limit": 6.1e-5}
    write(directory, summary)
    text = _page(directory).text
    assert "budget: 50 % of the baseline's latency" in text
    assert "0.061 ms, where the baseline takes 0.122 ms" in text
    assert "latency table" not in text
    assert write_picture(directory.path, tmp_path / "chart.svg").exists()  # of MACs


def test_why_a_latency_could_not_be_measured_is_told(tmp_path: Path) -> None:
    directory, summary = given_run(tmp_path / "run")
    summary["best"]["latency_s"] = None
    write(directory, {**summary, "latency_errors": {"best": "no rule for aten.fake"}})
    assert "not measured in TVM: no rule for aten.fake." in _page(directory).text


@given(st.text())
def test_any_text_survives_as_text(text: str) -> None:
    page = _Page(to_html(tag("p", text, title=text)))
    assert page.tags == ["p"]
    assert page.text.replace("\r", "\n") == re.sub(r"[^\n\t\x20-\ud7ff\ue000-\U0010ffff]", "\ufffd", text)


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12))
def test_an_axis_holds_its_data(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    start, end, ticks = nice_range(low, high)
    slack = (end - start) * 1e-6
    assert start - slack <= low <= high <= end + slack
    assert 2 <= len(ticks) <= 13
    assert ticks == sorted(ticks)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.count(None), "–"),
        (units.count(999), "999"),
        (units.count(10_200_000), "10.2 M"),
        (units.count(272_474), "272 k"),
        (units.size(1_089_896), "1.09 MB"),
        (units.size(12), "12 B"),
        (units.seconds(0.000122), "0.122 ms"),
        (units.seconds(0.0123), "12.3 ms"),
        (units.seconds(2), "2 s"),
        (units.seconds(4e-6), "4 µs"),
        (units.duration(212.4), "3 min 32 s"),
        (units.duration(3725), "1 h 2 min"),
        (units.percent(0.98765), "98.77 %"),
        (units.ratio(1, 3), "33 %"),
        (units.ratio(1, 0), "–"),
    ],
)
def test_figures_are_written_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_ticks_share_their_prefix_and_decimals() -> None:
    assert units.ticks([3.5e6, 4e6, 4.5e6]) == ["3.5 M", "4.0 M", "4.5 M"]
    assert units.ticks([0, 20, 40]) == ["0", "20", "40"]
