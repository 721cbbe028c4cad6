"""The config of a tuning, what its options are drawn from, and the records of its trials."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automl.config import load_config
from automl.errors import InputError
from automl.tuning.config import Range, TuningConfig
from automl.tuning.records import TrialRecord, TuningDirectory, ranked

CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "budget": {"metric": "macs", "ratio": 0.5},
    "search": {"algorithm": "ddpg", "evaluations": 40, "options": {"hidden": 16, "sigma": 0.3}},
    "tune": {
        "trials": 5,
        "options": {
            "actor_lr": {"low": 1e-5, "high": 1e-3, "log": True},
            "updates": [1, 2, 4],
            "warmup": {"low": 5, "high": 9},
        },
    },
}


def tuning(**changes: Any) -> TuningConfig:
    return load_config({**CONFIG, "tune": {**CONFIG["tune"], **changes}}, kind=TuningConfig)


def test_options_are_drawn_from_their_ranges_and_by_the_seed() -> None:
    drawn = tuning(trials=300).tune.drawn()
    rates = np.log10([each["actor_lr"] for each in drawn])
    assert rates.min() >= -5.0
    assert rates.max() <= -3.0
    assert np.histogram(rates, bins=4, range=(-5.0, -3.0))[0].min() > 50  # evenly on the logarithm
    assert {each["updates"] for each in drawn} == {1, 2, 4}
    assert {each["warmup"] for each in drawn} == {5, 6, 7, 8, 9}
    assert tuning().tune.drawn() == drawn[:5]
    assert tuning(seed=1).tune.drawn() != drawn[:5]


def test_perturbed_options_stay_in_their_ranges_and_near() -> None:
    generator = np.random.default_rng(0)
    number, whole = Range(low=0.1, high=0.5), Range(low=4, high=40)
    moved = [number.perturb(0.3, generator) for _ in range(200)]
    assert min(moved) >= 0.1
    assert max(moved) <= 0.5
    assert sum(each == pytest.approx(0.24) or each == pytest.approx(0.36) for each in moved) > 100
    assert {number.perturb(0.5, generator) for _ in range(100)} >= {0.5, 0.4}  # no further up
    steps = [whole.perturb(10, generator) for _ in range(100)]
    assert all(type(each) is int for each in steps)
    assert {8, 12} <= set(steps)
    listed = Range(choices=(1, 2, 4, 8))
    assert {listed.perturb(1, generator) for _ in range(100)} == {1, 2, 4, 8}
    assert listed.perturb(3, generator) in listed.choices  # of a list that was another


def test_the_config_of_its_searches_has_their_options_beside_its_own() -> None:
    config = tuning()
    search = config.of_search({"sigma": 0.5, "updates": 2})
    assert search.search.options == {"hidden": 16, "sigma": 0.5, "updates": 2}
    assert load_config(json.loads(json.dumps(search.model_dump()))) == search
    assert search.budget == config.budget


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"options": {}}, "tune.options: .*at least 1 item"),
        ({"options": {"tau": 0.1}}, "option 'tau' has a list of values, or low, high and log of a range, got 0.1"),
        ({"options": {"tau": {"low": 1}}}, "got a mapping"),
        ({"options": {"tau": {"low": 0.2, "high": 0.1}}}, "low of option 'tau' is below high"),
        ({"options": {"tau": {"low": 0, "high": 0.1, "log": True}}}, "and above 0 where log is true"),
        ({"options": {"tau": {"low": "a", "high": 0.1}}}, "are numbers"),
        ({"scheduler": "grid"}, "tune.scheduler: "),
        ({"grace": 5}, r"tune.grace lies from tune.every \(10\) to below search.evaluations \(40\), got 5"),
        ({"scheduler": "pbt", "perturb": 40}, "tune.perturb lies from"),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(tune: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        tuning(**tune)
    assert "\n" not in str(refusal.value)


def test_what_cannot_be_tuned_is_refused() -> None:
    for changes, message in (
        ({"search": {"algorithm": "given"}}, "no options to tune where policies are given"),
        ({"budget": {"metric": "latency_s", "ratio": 0.5}}, "too many searches for a budget that is measured"),
    ):
        with pytest.raises(InputError, match=message):
            load_config({**CONFIG, **changes}, kind=TuningConfig)
    with pytest.raises(InputError, match="unknown key 'tune'"):
        load_config(CONFIG)


@pytest.fixture
def directory(tmp_path: Path) -> TuningDirectory:
    return TuningDirectory.create(tmp_path / "tuning", tuning())


def test_a_record_and_its_snapshot_are_replaced_together(directory: TuningDirectory) -> None:
    fresh = directory.records()
    assert [each.name for each in fresh] == [f"trial-00{number}" for number in range(5)]
    assert [each.options for each in fresh] == tuning().tune.drawn()
    first = directory.write(fresh[1].reported(10.0, None), b"first")
    second = directory.write(first.reported(20.0, 0.5), b"second")
    assert directory.records()[1] == second
    assert directory.read_snapshot(second) == b"second"
    assert [each.name for each in directory.trials.glob("*.safetensors")] == [second.snapshot]
    directory.mark_stopped(second.name)
    assert directory.records()[1] == replace(second, state="stopped")
    directory.write(replace(second, state="finished"))
    assert directory.records()[1].state == "finished"


@pytest.mark.parametrize(
    "change",
    [{"state": "gone"}, {"snapshot": "../../etc/passwd"}, {"name": "trial-002"}, {"reports": 3}, {"unknown": 1}],
    ids=lambda change: next(iter(change)),
)
def test_a_damaged_record_is_refused(directory: TuningDirectory, change: dict[str, Any]) -> None:
    record = directory.write(directory.records()[1].reported(10.0, 0.5))
    file = directory.trials / f"{record.name}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match=r"is damaged: .*remove it, and the trial begins anew"):
        directory.records()


def test_the_best_made_all_its_evaluations_where_one_did() -> None:
    def trial(name: str, state: Any, *reports: tuple[float, float | None]) -> TrialRecord:
        return TrialRecord(name, {}, reports, state=state)

    trials = [
        trial("lucky", "stopped", (10.0, 0.9)),
        trial("waiting", "running"),
        trial("good", "finished", (10.0, 0.6), (40.0, 0.8)),
        trial("nothing", "finished", (40.0, None)),
        trial("better", "finished", (40.0, 0.85)),
    ]
    assert [each.name for each in ranked(trials)] == ["better", "good", "nothing", "lucky"]


def test_what_is_no_tuning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no tuning: it has no tuning\.json"):
        TuningDirectory.open(tmp_path)
