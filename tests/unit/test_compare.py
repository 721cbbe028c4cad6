"""`trimtab compare`: what is ranked, what is refused, and that the figures are those of the runs."""

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from math import inf, isfinite, prod
from pathlib import Path
from statistics import median
from typing import Any, NoReturn, cast
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from automl.cli import main
from automl.compare import compare, comparison_tables, write_comparison
from automl.compare.runs import Improvement, Run, Search
from automl.compare.statistics import Quartiles, best_so_far, paired_difference, quantile
from automl.run.directory import RunDirectory
from automl.testing.runs import FULL, IMAGES, make_run
from search_spaces.errors import InputError
from search_spaces.objective import hypervolume

SEEDS = (0, 1, 4)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one problem, beside what compares with neither."""
    home = tmp_path_factory.mktemp("compare")
    make_run(home / "runs" / "first", seeds=SEEDS, evaluations=12)
    make_run(home / "runs" / "more", seeds=(1, 2), evaluations=12)
    (home / "empty").mkdir()
    return home


def _search(seed: int, *found: tuple[int, float, float], evaluations: int, finished: bool = True) -> Search:
    improvements = [Improvement(*each) for each in found]
    return Search(cast(Run, None), "anything", seed, {}, finished, 10, evaluations, 2.0 * evaluations, improvements, ())


def _ended(values: dict[int, float]) -> list[Search]:
    return [
        _search(seed, *([] if value == -inf else [(1, 2.0, value)]), evaluations=3) for seed, value in values.items()
    ]


# -- statistics --------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.floats(0, 1))
def test_quantiles_are_numpys(values: list[float], share: float) -> None:
    assert quantile(values, share) == pytest.approx(np.quantile(values, share), abs=1e-12)


@given(st.lists(st.sampled_from([-inf, 0.25, 0.5]), min_size=1, max_size=9))
def test_a_seed_without_a_feasible_policy_never_makes_a_quartile_better(values: list[float]) -> None:
    quartiles = Quartiles.of(values)
    assert quartiles.lower <= quartiles.median <= quartiles.upper <= max(values)
    floored = Quartiles.of([max(value, 0.0) for value in values])
    assert quartiles.median <= floored.median
    if values.count(-inf) > len(values) // 2:
        assert quartiles.median == -inf


def test_an_interval_is_that_of_the_paired_bootstrap() -> None:
    generator = np.random.default_rng(3)
    ones, others = generator.normal(0.9, 0.05, 12), generator.normal(0.88, 0.02, 12)
    found = paired_difference(_ended(dict(enumerate(ones))), _ended(dict(enumerate(others))))
    peer = bootstrap((others - ones,), np.mean, method="percentile", n_resamples=10_000, rng=generator)
    assert found is not None
    assert found.mean == pytest.approx((others - ones).mean())
    assert found.pairs == 12
    assert found.low == pytest.approx(peer.confidence_interval.low, abs=0.002)
    assert found.high == pytest.approx(peer.confidence_interval.high, abs=0.002)


def test_seeds_are_paired_and_not_pooled() -> None:
    """Seeds differ a lot, the algorithms by the same on each: pooled, nobody could tell them apart."""
    ones = {seed: seed / 10 for seed in range(6)}
    found = paired_difference(_ended(ones), _ended({seed: value - 0.015625 for seed, value in ones.items()}))
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((-0.015625,) * 3)
    assert found.told_apart


@pytest.mark.parametrize(
    ("ones", "others", "pairs"),
    [
        ({0: 0.5}, {0: 0.25}, 1),  # no interval
        ({0: 0.5, 1: 0.5}, {2: 0.25, 3: 0.25}, None),
        ({0: 0.5, 1: 0.5}, {0: 0.25, 1: -inf}, None),
        ({0: 0.5, 1: 0.5, 2: 0.5}, {1: 0.25, 2: 0.5, 7: 0.9}, 2),
    ],
)
def test_what_does_not_pair_up(ones: dict[int, float], others: dict[int, float], pairs: int | None) -> None:
    found = paired_difference(_ended(ones), _ended(others))
    assert (found and found.pairs) == pairs
    if found is not None and pairs == 1:
        assert (found.low, found.told_apart) == (None, False)


def test_an_algorithm_without_seeds_stands_beside_every_seed() -> None:
    uniform = [replace(each, algorithm="uniform") for each in _ended({0: 0.25})]
    found = paired_difference(_ended({1: 0.5, 2: 0.75, 9: 1.0}), uniform)
    assert found is not None
    assert (found.mean, found.pairs) == (-0.5, 3)


def test_the_best_so_far_by_hand() -> None:
    first = _search(0, (1, 1.0, 0.5), (4, 9.0, 0.75), evaluations=6)
    second = _search(1, (2, 5.0, 0.25), evaluations=8)
    assert best_so_far([first, second], "evaluations") == [
        (1.0, Quartiles(-inf, -inf, -inf)),  # no number lies between 0.5 and nothing
        (2.0, Quartiles(0.3125, 0.375, 0.4375)),
        (4.0, Quartiles(0.375, 0.5, 0.625)),
        (8.0, Quartiles(0.375, 0.5, 0.625)),  # a search that is finished keeps its best
    ]
    assert [place for place, _ in best_so_far([first, second], "seconds")] == [1.0, 5.0, 9.0, 16.0]


def test_the_best_so_far_ends_where_a_search_is_not_finished() -> None:
    first = _search(0, (1, 1.0, 0.5), (4, 9.0, 0.75), evaluations=6)
    second = _search(1, (1, 5.0, 0.25), evaluations=3, finished=False)
    assert [place for place, _ in best_so_far([first, second], "evaluations")] == [1.0, 3.0]


# -- comparisons -------------------------------------------------------------------------------------------------------


def _rows(run: Path, search: str) -> list[tuple[float, float, bool]]:
    """(accuracy, cost, feasible) of a search, by SQL."""
    connection = sqlite3.connect(run / "trials.sqlite")
    try:
        rows = connection.execute(
            "SELECT accuracy, json_extract(cost, '$.macs'), feasible FROM evaluations WHERE search = ?", (search,)
        ).fetchall()
    finally:
        connection.close()
    return [(accuracy, cost, bool(feasible)) for accuracy, cost, feasible in rows]


def test_figures_are_those_of_the_runs(home: Path) -> None:
    found = compare([home / "runs"])
    assert [run.path.name for run in found.runs] == ["first", "more"]
    (contest,) = found.contests
    standings = {each.name: each for each in contest.standings}
    assert set(standings) == {"ddpg", "random", "uniform"}
    medians = [each.best.median for each in contest.standings]
    assert medians == sorted(medians, reverse=True)
    for algorithm in ("ddpg", "random"):
        where = {seed: home / "runs" / ("more" if seed == 2 else "first") for seed in (0, 1, 2, 4)}
        rows = {seed: _rows(run, f"{algorithm}-{seed}") for seed, run in where.items()}
        best = [max(accuracy for accuracy, _, feasible in each if feasible) for each in rows.values()]
        standing = standings[algorithm]
        assert [search.seed for search in standing.searches] == [0, 1, 2, 4]
        assert [search.best for search in standing.searches] == best
        assert standing.best.median == median(best)
        assert standing.evaluations == 12
        assert standing.seconds == pytest.approx(12 * 0.8)
        limit = FULL["macs"] / 2
        volumes = [
            hypervolume([(cost, accuracy) for accuracy, cost, feasible in each if feasible], (limit, 0.0)) / limit
            for each in rows.values()
        ]
        assert standing.hypervolume.median == pytest.approx(median(volumes))
    assert standings["ddpg"].test_accuracy == 0.9861  # the summary's
    assert standings["uniform"].test_accuracy == 0.9806
    assert contest.standings[0].difference is None
    assert found.repeated == 3  # both algorithms under seed 1, and the uniform policy


def test_the_front_is_that_of_all_runs(home: Path) -> None:
    found = compare([home / "runs"])
    names = [f"{algorithm}-{seed}" for algorithm in ("ddpg", "random") for seed in (0, 1, 2, 4)]
    every = [row for run in found.runs for name in (*names, "uniform") for row in _rows(run.path, name)]
    unbeaten = {
        (cost, accuracy)
        for accuracy, cost, _ in every
        if not any(
            other <= cost and value >= accuracy and (other, value) != (cost, accuracy) for value, other, _ in every
        )
    }
    assert {(each.point.cost, each.point.accuracy) for each in found.front} == unbeaten
    assert len(found.front) == len(unbeaten)


def test_a_run_named_twice_counts_once(home: Path) -> None:
    first = home / "runs" / "first"
    assert compare([first, home / "runs" / ".." / "runs" / "first"]).to_json() == compare([first]).to_json()


def test_a_run_that_goes_on_is_compared_by_what_it_found(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", seeds=(0, 1), evaluations=12, state="unfinished", summarised=False)
    connection = sqlite3.connect(directory.store_file)
    connection.execute("DELETE FROM evaluations WHERE search = 'ddpg-1' OR (search = 'ddpg-0' AND number > 6)")
    connection.commit()
    connection.close()
    standings = {each.name: each for each in compare([directory.path]).contests[0].standings}
    assert [search.seed for search in standings["ddpg"].searches] == [0]
    assert (standings["ddpg"].unfinished, standings["ddpg"].evaluations) == (1, 7)
    assert standings["ddpg"].test_accuracy is None
    assert [search.seed for search in standings["random"].searches] == [0, 1]


def test_settings_and_budgets_are_told_apart(tmp_path: Path) -> None:
    search = {"algorithm": "ddpg", "evaluations": 12, "seeds": [0, 1], "options": {"warmup": 9}}
    make_run(tmp_path / "usual", seeds=(0, 1), evaluations=12)
    make_run(tmp_path / "patient", seeds=(0, 1), evaluations=12, overrides={"search": search})
    make_run(tmp_path / "tight", seeds=(0, 1), evaluations=12, overrides={"budget": {"metric": "macs", "ratio": 0.25}})
    found = compare([tmp_path])
    assert sorted(contest.budget for contest in found.contests) == ["25 % of the MACs", "50 % of the MACs"]
    whole = next(contest for contest in found.contests if contest.budget.startswith("50"))
    assert {each.name for each in whole.standings} == {"ddpg, warmup 9", "ddpg, warmup 4", "random", "uniform"}
    tight = next(contest for contest in found.contests if contest.budget.startswith("25"))
    assert {each.name for each in tight.standings} == {"ddpg, warmup 4", "random", "uniform"}  # one name everywhere


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"model": {"name": "lenet5"}}, "model.name is 'resnet20' and 'lenet5'"),
        ({"data": {"name": "glyphs"}}, "data.name is 'digits' and 'glyphs'"),
        ({"data": {"name": "digits", "args": {"size": 8}}}, "data.args.size is 16 and 8"),
        ({"metric": "top5"}, "metric is 'accuracy' and 'top5'"),
        ({"budget": {"metric": "params", "ratio": 0.5}}, "budget.metric is 'macs' and 'params'"),
        ({"budget": {"metric": "latency_s", "ratio": 0.5}}, "budget.metric is 'macs' and 'latency_s'"),
        ({"baseline": {"epochs": 3}}, "baseline.epochs is 20 and 3"),
    ],
)
def test_runs_of_different_problems_are_refused_with_what_differs(
    home: Path, tmp_path: Path, overrides: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "other", evaluations=3, overrides=overrides)
    assert main(["compare", str(home / "runs" / "first"), str(tmp_path / "other")]) == 2
    assert said in _refused(capsys)


def test_one_metric_by_two_names_compares(home: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "top1", evaluations=3, overrides={"metric": "top1"})
    assert len(compare([home / "runs" / "first", tmp_path / "top1"]).runs) == 2


def test_evaluations_are_counted_by_the_images_that_were_forwarded(tmp_path: Path) -> None:
    """The first half saw a quarter of the images: it costs a quarter, and comes to nothing."""
    directory = make_run(tmp_path / "run", evaluations=12)
    _sql(
        "UPDATE evaluations SET share = 0.25, feasible = 0, accuracy = 0.999, images = images / 4 + 100 "
        "WHERE search = 'ddpg-0' AND number < 6"
    )(directory)
    found = compare([directory.path])
    standings = {each.name: each for each in found.contests[0].standings}
    (search,) = standings["ddpg"].searches
    assert standings["ddpg"].evaluations == pytest.approx(6 + 6 * (IMAGES // 4 + 100) / IMAGES)
    assert standings["random"].evaluations == 12
    assert len(search.points) == 6
    assert search.best == max(row[0] for row in _rows(directory.path, "ddpg-0") if row[0] < 0.999 and row[2])
    assert search.improvements[0].evaluations > 1 + 6 * 100 / IMAGES
    assert max(each.point.accuracy for each in found.front) < 0.999


def test_seconds_are_those_of_evaluations_and_of_thinking(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", evaluations=12)
    _sql("UPDATE evaluations SET thinking_s = 0.5 WHERE search = 'ddpg-0' AND number <> 3")(directory)
    standings = {each.name: each for each in compare([directory.path]).contests[0].standings}
    assert standings["ddpg"].seconds == pytest.approx(12 * 0.8 + 11 * 0.5)
    assert standings["random"].seconds == pytest.approx(12 * 0.8)


def test_a_search_that_stopped_by_itself_is_done_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_run(tmp_path / "run", seeds=(0, 1), evaluations=12)
    _sql("DELETE FROM evaluations WHERE search = 'ddpg-0' AND number > 7")(directory)
    _sql("UPDATE searches SET finished = 1")(directory)
    found = compare([directory.path])
    standings = {each.name: each for each in found.contests[0].standings}
    assert (standings["ddpg"].stopped, standings["ddpg"].unfinished) == (1, 0)
    assert standings["random"].stopped == 0
    ends = best_so_far(standings["ddpg"].searches, "evaluations")
    assert ends[-1][0] == 12  # the other seed goes on, and the one that stopped keeps its best
    assert main(["compare", str(directory.path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Stopped early, where no further proposal was worth its evaluation: ddpg (1 of 2 seeds)." in printed
    assert "10 of 12" in printed
    assert "not finished" not in printed
    assert "as many evaluations" not in printed


def test_several_budgets_are_one_contest_and_objectives_span_the_hypervolume(tmp_path: Path) -> None:
    overrides = {
        "budget": [{"metric": "macs", "ratio": 0.5}, {"metric": "weight_bytes", "ratio": 0.45}],
        "search": {"evaluations": 12, "seeds": [0], "objectives": ["macs", "weight_bytes", "params"]},
    }
    directory = make_run(tmp_path / "run", evaluations=12, overrides=overrides)
    found = compare([directory.path])
    (contest,) = found.contests
    assert contest.budget == "50 % of the MACs and 45 % of the bytes of weights"
    assert found.objectives == ["macs", "weight_bytes", "params"]
    for standing in contest.standings:
        (search,) = standing.searches
        points = [point for point in search.points if point.feasible]
        assert all(point.costs["weight_bytes"] <= 0.45 * FULL["weight_bytes"] for point in points)
        most = max(
            (
                point.costs["params"]
                for each in contest.standings
                for point in each.searches[0].points
                if point.feasible
            ),
            default=0.0,
        )
        reference = (FULL["macs"] / 2, 0.45 * FULL["weight_bytes"], most, 0.0)
        assert contest.reference == pytest.approx(reference)
        volume = hypervolume([point.objectives(found.objectives) for point in points], reference)
        assert standing.hypervolume.median == pytest.approx(volume / prod(reference[:3]))
    assert max(standing.hypervolume.median for standing in contest.standings) > 0.0
    assert found.to_json()["budgets"][0]["reference"]["costs"].keys() == {"macs", "weight_bytes", "params"}
    assert len(comparison_tables(found)[-1].columns) == 8


# -- files are data ----------------------------------------------------------------------------------------------------


def _sql(statement: str) -> Callable[[RunDirectory], None]:
    def damage(directory: RunDirectory) -> None:
        connection = sqlite3.connect(directory.store_file)
        connection.execute(statement)
        connection.commit()
        connection.close()

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: run.info_file.write_text("{"),
        lambda run: run.config_file.write_text("model: ["),
        lambda run: run.summary_file.write_text("[1, 2]"),
        lambda run: run.store_file.write_bytes(b"no database at all" * 400),
        lambda run: run.store_file.write_bytes(run.store_file.read_bytes()[:5000]),
        _sql("UPDATE evaluations SET cost = '[1, 2]' WHERE number = 3"),
        _sql("""UPDATE evaluations SET cost = '{"macs": "many"}' WHERE number = 3"""),
        _sql("""UPDATE evaluations SET cost = '{"macs": NaN}' WHERE number = 3"""),
        _sql("UPDATE evaluations SET accuracy = 1e999 WHERE number = 3"),
        _sql("UPDATE evaluations SET seconds = 1e999 WHERE number = 3"),
    ],
)
def test_damage_is_one_line(
    damage: Callable[[RunDirectory], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = make_run(tmp_path / "run", evaluations=6)
    damage(directory)
    assert main(["compare", str(tmp_path)]) == 2
    assert str(directory.path) in _refused(capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "is no run directory"),
        (["empty"], "is no run directory"),
        (["runs/first", "empty"], "is no run directory"),
        (["runs", "--picture", "nowhere/chart.svg"], "'nowhere/chart.svg' cannot be written"),
        (["runs", "--json", "empty"], "'empty' cannot be written"),
    ],
)
def test_wrong_paths_are_one_line(
    home: Path,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(home)
    assert main(["compare", *arguments]) == 2
    assert said in _refused(capsys)


def test_nothing_to_compare_is_said(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", evaluations=3, state="unfinished", summarised=False)
    _sql("DELETE FROM evaluations")(directory)
    with pytest.raises(InputError, match="no evaluation to compare yet"):
        compare([directory.path])


def test_failures_count_as_evaluations_and_take_time(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", evaluations=6)
    _sql("UPDATE evaluations SET error = 'out of memory', feasible = 0, accuracy = 0, cost = '{}' WHERE number < 6")(
        directory
    )
    _sql("UPDATE evaluations SET error = NULL, feasible = 1 WHERE search = 'uniform'")(directory)
    with pytest.raises(InputError, match="no evaluation"):  # the uniform one lacks its cost, too
        compare([directory.path])
    directory = make_run(tmp_path / "other", evaluations=6)
    _sql("UPDATE evaluations SET error = 'out of memory', accuracy = 0, cost = '{}' WHERE search = 'ddpg-0'")(directory)
    failed = compare([directory.path]).contests[0].standings[-1]
    assert (failed.name, failed.best.median, failed.evaluations, failed.hypervolume.median) == ("ddpg", -inf, 6, 0.0)
    assert failed.seconds == pytest.approx(6 * 0.8)


# -- what is written ---------------------------------------------------------------------------------------------------


def test_the_command_prints_and_writes(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, figures = tmp_path / "chart.svg", tmp_path / "figures.json"
    assert main(["compare", str(home / "runs"), "--picture", str(picture), "--json", str(figures)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(figures.read_text(), parse_constant=_no_constant)
    assert found == compare([home / "runs"]).to_json()
    (budget,) = found["budgets"]
    for each in budget["algorithms"]:
        assert each["name"] in printed
        assert f"{100 * each['best']['median']:.2f}" in printed
        assert f"{each['hypervolume']['median']:.4f}" in printed
    assert "50 % of the MACs" in printed
    texts = "".join(ElementTree.parse(picture).getroot().itertext())
    assert all(name in texts for name in ("ddpg", "random", "uniform", "evaluations", "seconds of evaluation"))


def _no_constant(name: str) -> NoReturn:
    raise AssertionError(name)


def _paths(chart: ElementTree.Element, class_: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, corner.split())) for corner in (each.get("d") or "")[1:].split("L")]  # type: ignore[misc]
        for each in chart.iter("{http://www.w3.org/2000/svg}path")
        if class_ in (each.get("class") or "").split()
    ]


def test_lines_of_the_picture_rise_and_lie_within_their_bands(home: Path, tmp_path: Path) -> None:
    chart = ElementTree.parse(write_comparison(compare([home / "runs"]), tmp_path / "chart.svg")).getroot()
    _, _, width, height = map(float, (chart.get("viewBox") or "").split())
    bands = _paths(chart, "band")
    assert len(bands) == 4  # two algorithms with seeds, in two panels
    lines = [line for line in _paths(chart, "best") if len({px for px, _ in line}) > 2]
    assert len(lines) == 4
    for line in lines:
        heights = [py for _, py in line]
        assert heights == sorted(heights, reverse=True)  # up is less
        assert [px for px, _ in line] == sorted(px for px, _ in line)
    for path in (*bands, *lines):
        assert all(0 <= px <= width and 0 <= py <= height and isfinite(px + py) for px, py in path)
    for line, band in zip(lines, bands, strict=True):
        half = len(band) // 2
        upper, lower = band[:half], band[half:][::-1]
        assert [px for px, _ in upper] == [px for px, _ in lower] == [px for px, _ in line]
        assert all(high <= middle <= low for (_, high), (_, middle), (_, low) in zip(upper, line, lower, strict=True))


@pytest.mark.parametrize("accuracy", [0.78, 0.1])
def test_a_level_is_drawn_where_it_is_or_told(accuracy: float, tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", seeds=(0, 1), evaluations=12)
    _sql(f"UPDATE evaluations SET accuracy = {accuracy} WHERE search = 'uniform'")(directory)
    chart = ElementTree.parse(write_comparison(compare([directory.path]), tmp_path / "chart.svg")).getroot()
    _legend, *drawn = _paths(chart, "level")
    notes = [each.text for each in chart.iter() if (each.text or "").startswith("below the axis")]
    if accuracy == 0.1:  # far below all others
        assert (drawn, notes) == ([], ["below the axis: uniform, 10.00 %"] * 2)
        return
    assert (len(drawn), notes) == (2, [])
    ticks = {each.text: float(each.get("y") or 0) - 4 for each in chart.iter() if "%" in (each.text or "")}
    below, above = ticks["75 %"], ticks["80 %"]
    for (_, start), (_, end) in drawn:
        assert start == end == pytest.approx(below + (accuracy - 0.75) / 0.05 * (above - below), abs=0.1)


def test_no_feasible_policy_anywhere_is_drawn_and_written(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", seeds=(0, 1), evaluations=6)
    _sql("UPDATE evaluations SET violation = 0.5, feasible = 0")(directory)
    found = compare([directory.path])
    assert all(each["best"]["median"] is None for each in found.to_json()["budgets"][0]["algorithms"])
    assert len(comparison_tables(found)) == 2
    ElementTree.parse(write_comparison(found, tmp_path / "chart.svg"))


def test_what_files_say_cannot_become_markup(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", evaluations=6)
    _sql("UPDATE searches SET algorithm = '[bold]</text><script>' WHERE name = 'random-0'")(directory)
    found = compare([directory.path])
    comparison_tables(found)
    chart = ElementTree.parse(write_comparison(found, tmp_path / "chart.svg")).getroot()
    assert "script" not in {each.tag.rpartition("}")[2] for each in chart.iter()}
    assert any("[bold]</text><script>" in (each.text or "") for each in chart.iter())


def _refused(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("trimtab: error: ")
    return line
