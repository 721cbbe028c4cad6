import io
import re

import pytest
from rich.console import Console

from automl.orchestration.dispatcher import SearchProgress
from automl.progress import Progress, read_plain, search_note
from automl.training import EpochReport
from search_spaces.objective import Constraint, Evaluation

BUDGET = Constraint("macs", 100.0)


def test_elsewhere_than_in_a_terminal_news_are_plain_lines() -> None:
    text = io.StringIO()
    with Progress(Console(file=text, width=40)) as progress:
        progress.stage("Baseline: training")
        progress.epoch("baseline", EpochReport(1, 30, 2.3, 1.0))
        progress.epoch("baseline", EpochReport(2, 30, 1.2, 1.0))  # too soon after the last line
        progress.stage("Search")
    assert text.getvalue().splitlines() == [
        "Baseline: training",
        "  baseline 1/30 loss 2.300",
        "  baseline 2/30 loss 1.200",
        "Search",
    ]


def test_in_a_terminal_there_are_bars() -> None:
    text = io.StringIO()
    with Progress(Console(file=text, force_terminal=True, width=120)) as progress:
        progress.stage("Search")
        progress.searches([SearchProgress("ddpg-0", 120, done=30)], BUDGET)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    assert re.search(r"ddpg-0 .*30/120", plain)


def test_quiet_means_nothing() -> None:
    text = io.StringIO()
    with Progress(Console(file=text, quiet=True)) as progress:
        progress.stage("Search")
        progress.update("x", 1, 2)
    assert text.getvalue() == ""


def test_a_search_tells_its_best_feasible_policy() -> None:
    row = SearchProgress("ddpg-0", 120)
    assert search_note(row, BUDGET) == ""
    row.count(Evaluation(0.9, {"macs": 150.0}, 0.5, 0.1))
    row.count_reward(0.9)
    assert search_note(row, BUDGET) == "nothing within the budget yet, reward 0.9000"
    row.count(Evaluation(0.8, {"macs": 90.0}, 0.0, 0.1))
    row.count(Evaluation(0.0, {"macs": 90.0}, 0.0, 0.1, "boom"))
    assert search_note(row, BUDGET) == "best 0.8000 at 90.0% of the limit, reward 0.9000, 1 failed"
    assert row.done == 3


def test_what_is_written_without_a_terminal_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automl.progress.PLAIN_EVERY_S", 0.0)
    text = io.StringIO()
    with Progress(Console(file=text, width=60)) as progress:
        progress.stage("Baseline: training lenet5 on digits")
        progress.update("baseline", 1, 2, "loss 2.2")
        progress.stage("Search: at most 101,000 MACs (50.0%), 24 evaluations a search")
        progress.say("a library says: something")
        row = SearchProgress("ddpg-0", 120)
        row.count(Evaluation(0.8, {"macs": 90.0}, 0.0, 0.1))
        progress.searches([row, SearchProgress("uniform", 1)], BUDGET)
        progress.update("uniform", 1, 1)
    stage, tasks = read_plain(text.getvalue())
    assert stage == "Search: at most 101,000 MACs (50.0%), 24 evaluations a search"
    assert tasks == {"ddpg-0": (1, 120, "best 0.8000 at 90.0% of the limit"), "uniform": (1, 1, "")}
    assert read_plain("") == ("", {})
    assert read_plain("Traceback:\n  what 1/x y\n") == ("", {})
