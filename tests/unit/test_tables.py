"""What the commands print of a run."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from automl.cli import main
from automl.run.explanation import Explanation, in_words
from automl.tables import explanation_table, name_table, summary_table
from automl.testing.runs import make_run


def text(*tables: Table) -> str:
    console = Console(width=200, highlight=False)
    with console.capture() as capture:
        for table in tables:
            console.print(table)
    return capture.get()


def summary(path: Path, **changes: Any) -> dict[str, Any]:
    found = make_run(path).summary()
    return {**found, **changes}


def test_a_search_shows_every_network_and_a_dash_for_what_is_missing(tmp_path: Path) -> None:
    found = summary(tmp_path / "run", algorithm="ddpg", random=None)
    shown = text(summary_table(found))
    assert "random" in shown
    assert f"{found['best']['weight_bytes']:,} B" in shown
    assert "above the budget" not in shown
    assert "given" not in shown


def test_a_given_policy_is_called_so_and_told_where_it_is_above_the_budget(tmp_path: Path) -> None:
    found = summary(tmp_path / "run", algorithm="given", random=None)
    assert "random" not in text(summary_table(found))
    assert "given" in text(summary_table(found))
    assert "budget: at most 5,100,000 MACs" in text(summary_table(found))
    found["best"]["feasible"] = False
    assert "above the budget" in text(summary_table(found))
    timed = {"metric": "latency_s", "limit": None, "unit": "s", "measured_limit": 6.1e-5}
    assert "budget: at most 61.00 µs measured" in text(summary_table({**found, "budget": timed}))
    timed["measured_limit"] = None
    assert "no hard budget" not in text(summary_table({**found, "budget": timed}))


def test_the_best_policy_is_told_layer_by_layer(tmp_path: Path) -> None:
    found = Explanation.read(make_run(tmp_path / "run").explanation_file)
    assert found is not None
    shown = text(explanation_table(found))
    assert "together 0.31 nats, accuracy -0.0923" in shown
    assert "macs, of the budget" in shown
    for layer in found.layers:
        assert f"{in_words(layer)} " in shown
    first = found.layers[0]
    assert f"{-first.loss.accuracy:+.4f}" in shown  # type: ignore[union-attr]
    before, after = first.costs["macs"]
    assert f"{before / found.budgets[0].whole:.1%} > {after / found.budgets[0].whole:.1%}" in shown
    assert main(["status", str(tmp_path / "run")]) == 0


def test_brackets_are_no_markup() -> None:
    assert "[out, in]" in text(name_table("things", [("matrix", "weights [out, in]")]))
