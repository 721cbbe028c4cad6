"""The searches of a run as Optuna reads them back."""

from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from automl.cli import main
from automl.config import load_config
from automl.configured import search_space, untrained_graph
from automl.run.directory import RunDirectory
from automl.run.limits import write_limits
from automl.run.store import EvaluationRow, SearchRow, Store
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy

SPACE = {"weight_bits": [4, 8], "sparsity": ["2:4", 0.5], "resolution": [12]}
LIMITS = {"macs": 100.0, "params": 10.0}


@pytest.mark.slow  # the network is captured three times, at two resolutions
def test_optuna_reads_the_searches_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(
        {
            "model": {"name": "resnet20"},
            "data": {"name": "digits", "args": {"size": 16}},
            "space": SPACE,
            "budget": [{"metric": "macs", "limit": 100}, {"metric": "params", "limit": 10}],
            "search": {"algorithm": "nsga2", "objectives": ["params"]},
        }
    )
    directory = RunDirectory.create(tmp_path / "mine", config)
    file = tmp_path / "study.log"
    assert main(["report", str(directory.path), "--optuna", str(file)]) == 2
    assert "no evaluations yet" in capsys.readouterr().err
    write_limits(directory.path, [Constraint(metric, limit) for metric, limit in LIMITS.items()])  # type: ignore[arg-type]
    space = search_space(config, untrained_graph(config))
    policies = [space.decode(space.least), space.decode(space.greatest), CompressionPolicy({}, "another network's")]
    found = [
        Evaluation(0.5, {"macs": 50.0, "params": 5.0}, 0.0, 0.5),
        Evaluation(0.75, {"macs": 150.0, "params": 5.0}, 0.5, 0.5),
        Evaluation(0.0, {"macs": 50.0, "params": 5.0}, 0.0, 0.5, "it crashed"),
        Evaluation(0.6, {"macs": 50.0, "params": 5.0}, 0.0, 0.5, share=0.25),
    ]
    store = Store(directory.store_file)
    store.add_searches([SearchRow("nsga2-0", "nsga2", 0, 4), SearchRow("random-0", "random", 0, 4)])
    for number, each in enumerate(found):
        store.add(EvaluationRow("nsga2-0", number, policies[min(number, 2)], each))
    store.close()
    for _ in range(2):  # the second replaces the first
        assert main(["report", str(directory.path), "--optuna", str(file)]) == 0
    storage = JournalStorage(JournalFileBackend(str(file)))
    assert set(optuna.get_all_study_names(storage)) == {"mine nsga2-0", "mine random-0"}
    study = optuna.load_study(study_name="mine nsga2-0", storage=storage)
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    least, greatest, crashed = study.trials  # what saw a part of the images is left out
    assert least.values == [0.5, 5.0]
    assert least.system_attrs["constraints"] == [-0.5, -0.5]
    assert greatest.system_attrs["constraints"] == [0.5, -0.5]
    assert crashed.state.name == "FAIL"
    assert crashed.user_attrs["error"] == "it crashed"
    assert crashed.params == {}
    assert set(least.params) == {decision.name for decision in space.decisions}
    assert least.params["resolution"] == "12x12"
    for decision in space.decisions:
        assert len(least.distributions[decision.name].choices) == len(decision.choices)
    assert study.best_trials == [least]
    assert least.duration is not None
    assert least.duration.total_seconds() == pytest.approx(0.5)
