"""Loggers fed from a run's record: what stands in the end in real event files and a real MLflow database."""

import importlib.util
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from automl import loggers
from automl.config import load_config
from automl.config_sections import LoggersSection, MlflowSection
from automl.errors import InputError
from automl.loggers.base import Logger
from automl.loggers.mlflow import MlflowLogger
from automl.loggers.recorder import Recorder
from automl.loggers.steps import REWARDS_LATE, Follower, Step
from automl.loggers.tensorboard import TensorBoardLogger
from automl.run.directory import RunDirectory
from automl.run.store import EvaluationRow, SearchRow, Store
from automl.testing.runs import make_run
from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy

SEARCH = "ddpg-0"
Points = dict[tuple[str, str, int], float]

needs_tensorboard = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="no tensorboard")
needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="no mlflow")
others_warn = pytest.mark.filterwarnings("ignore")  # of their own imports


class Listener:
    """A logger that remembers, and fails on demand."""

    name = "Listener"

    def __init__(self) -> None:
        self.points: Points = {}
        self.told: Counter[tuple[str, str, int]] = Counter()
        self.broken = False
        self.state: str | None = None

    def log(self, search: str, steps: Sequence[Step], anew: bool) -> None:
        if anew:
            self.points = {point: value for point, value in self.points.items() if point[0] != search}
        for step in steps:
            for key, value in step.values.items():
                self.points[search, key, step.number] = value
                self.told[search, key, step.number] += 1

    def flush(self) -> None:
        if self.broken:
            raise OSError("no route to host")

    def close(self, state: str, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        self.flush()
        self.state = state


class Growing:
    """A run whose record grows."""

    def __init__(self, folder: Path) -> None:
        self.directory = make_run(folder, evaluations=6, state="running")
        self.directory.store_file.unlink()
        self.store = Store(self.directory.store_file)
        self.store.add_searches([SearchRow(SEARCH, "ddpg", 0, 6)])
        self.expected: Points = {}
        self.best = 0.0

    def add(self, number: int, accuracy: float, error: str | None = None) -> None:
        found = Evaluation(accuracy, {"macs": 10.0 + number}, 0.0, 0.1, error)
        self.store.add(EvaluationRow(SEARCH, number, CompressionPolicy({}, str(number)), found))
        self.best = max(self.best, accuracy)
        values = {"cost/macs": 10.0 + number, "failed": float(error is not None), "feasible": float(error is None)}
        values |= {"best_accuracy": self.best, **({"accuracy": accuracy} if error is None else {})}
        self.expected |= {(SEARCH, key, number): value for key, value in values.items()}

    def reward(self, number: int, reward: float) -> None:
        self.store.set_rewards(SEARCH, {number: reward})
        self.expected[SEARCH, "reward", number] = reward


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Growing]:
    run = Growing(tmp_path / "run")
    yield run
    run.store.close()


def session(run: RunDirectory, logger: Logger, times: int = 1) -> None:
    """Deliver what is on record as a driver's session would, which is then killed."""
    follower = Follower(lag=2)
    store = Store.read(run.store_file)
    for _ in range(times):
        for search, steps, anew in follower.news(store):
            logger.log(search, steps, anew)
        logger.flush()
    store.close()


def test_every_step_comes_once_and_in_order_and_rewards_when_they_are_known(growing: Growing) -> None:
    follower, listener = Follower(lag=2), Listener()
    store = Store.read(growing.directory.store_file)

    def read() -> list[tuple[int, tuple[str, ...]]]:
        found = []
        for search, steps, anew in follower.news(store):
            listener.log(search, steps, anew)
            found += [(step.number, tuple(sorted(step.values))) for step in steps]
        return found

    everything = ("accuracy", "best_accuracy", "cost/macs", "failed", "feasible")
    assert read() == []
    growing.add(0, 0.5)
    growing.add(2, 0.25)
    assert read() == [(0, everything)]
    assert read() == []
    growing.add(1, 0.75)
    growing.reward(0, 5.0)
    assert read() == [(0, ("reward",)), (1, everything), (2, everything)]
    growing.expected[SEARCH, "best_accuracy", 2] = 0.75  # of those before it, whatever was found first
    growing.reward(2, 7.0)
    growing.add(3, 0.0, "boom")
    assert read() == [(2, ("reward",)), (3, ("best_accuracy", "cost/macs", "failed", "feasible"))]
    growing.add(4, 0.8)
    growing.reward(4, 9.0)
    assert read() == [(4, (*everything[:2], *everything[2:], "reward"))]
    assert listener.points == growing.expected
    assert set(listener.told.values()) == {1}
    store.close()


def test_searches_without_rewards_do_not_make_each_look_longer(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", evaluations=REWARDS_LATE * 2)
    connection = sqlite3.connect(run.store_file)
    connection.execute("UPDATE evaluations SET reward = NULL")
    connection.commit()
    connection.close()
    follower, asked = Follower(lag=4), []
    store = Store.read(run.store_file)
    list(follower.news(store))
    figures = store.figures
    store.figures = lambda search, since: asked.append(since) or figures(search, since)  # type: ignore
    list(follower.news(store))
    assert REWARDS_LATE * 2 - min(asked[:1]) == 4 + REWARDS_LATE
    store.close()


def test_failures_that_a_resumed_run_forgot_are_told_anew(growing: Growing) -> None:
    growing.add(0, 0.5)
    for number in (1, 2, 3):
        growing.add(number, 0.0, "boom")
    growing.store.finish(SEARCH, "3 evaluations failed in a row")
    listener, follower = Listener(), Follower(lag=2)
    store = Store.read(growing.directory.store_file)

    def read() -> None:
        for search, steps, anew in follower.news(store):
            listener.log(search, steps, anew)

    read()
    assert listener.points == {}  # a resumed run is about to forget them
    growing.store.forget_failures(SEARCH, 3)
    read()
    assert {number for _, _, number in listener.points} == {0}
    growing.add(1, 0.0, "boom")
    growing.add(2, 0.7)
    read()
    growing.store.forget_failures(SEARCH, 1)
    growing.expected = {point: value for point, value in growing.expected.items() if point[2] == 0}
    growing.best = 0.5
    read()
    assert listener.points == growing.expected
    store.close()


def test_a_logger_that_fails_is_a_notice_and_catches_up(growing: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automl.loggers.recorder.EVERY_S", 0.01)
    listener, healthy = Listener(), Listener()
    healthy.name = "other"
    listener.broken = True
    said: list[str] = []
    recorder = Recorder(growing.directory, [listener, healthy], 2, said.append)
    growing.add(0, 0.5)
    recorder.start()
    for number in range(1, 6):
        growing.add(number, 0.5)
    recorder.finish()
    assert len(said) == 1
    assert "no route to host" in said[0]
    assert listener.state is None
    assert healthy.state == "running"
    assert healthy.points == growing.expected
    listener.broken = False
    again = Recorder(growing.directory, [listener], 2, said.append)
    again.start()
    again.finish()
    assert listener.state == "running"
    assert len(said) == 1


def read_events(folder: Path) -> Points:
    """As TensorBoard reads them; every file may hold a point once."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: Points = {}
    for search in folder.iterdir():
        files = list(search.iterdir())
        assert len(files) == 1
        accumulator = EventAccumulator(str(files[0]), size_guidance={"scalars": 0})
        accumulator.Reload()
        for key in accumulator.Tags()["scalars"]:
            events = accumulator.Scalars(key)
            assert len({event.step for event in events}) == len(events)
            found |= {(search.name, key, event.step): event.value for event in events}
    return found


@needs_tensorboard
@others_warn
def test_tensorboard_has_every_step_once_after_a_kill(growing: Growing) -> None:
    run = growing.directory
    growing.add(0, 0.5)
    growing.reward(0, 1.0)
    growing.add(1, 0.75)
    session(run, TensorBoardLogger(run.path))  # killed: never closed
    growing.reward(1, 2.0)
    growing.add(2, 0.25)
    second = TensorBoardLogger(run.path)
    session(run, second, times=3)
    second.close("done", {}, [])
    assert read_events(run.path / "tensorboard") == growing.expected


@needs_tensorboard
@others_warn
def test_tensorboard_forgets_what_is_told_anew(growing: Growing) -> None:
    run = growing.directory
    logger = TensorBoardLogger(run.path)
    logger.log(SEARCH, [Step(0, 0.0, {"accuracy": 0.5}), Step(1, 0.0, {"accuracy": 0.25})], anew=False)
    logger.flush()
    logger.log(SEARCH, [Step(0, 0.0, {"accuracy": 0.75})], anew=True)
    logger.close("done", {}, [])
    assert read_events(run.path / "tensorboard") == {(SEARCH, "accuracy", 0): 0.75}


def mlflow_logger(run: RunDirectory, database: Path) -> MlflowLogger:
    return MlflowLogger(run.path, run.config(), MlflowSection(uri=f"sqlite:///{database}", experiment="tiny"))


def read_mlflow(database: Path) -> tuple[Any, Points]:
    """The parent run, and the points of its children, each of which stands there once."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    found: Points = {}
    for run in runs:
        if run is parent:
            continue
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        for key in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, key)
            assert len({each.step for each in history}) == len(history)
            found |= {(run.info.run_name, key, each.step): each.value for each in history}
    return parent, found


@pytest.mark.slow  # MLflow takes twenty seconds to make a database
@needs_mlflow
@others_warn
def test_mlflow_has_every_step_once_after_kills_and_lost_answers(
    growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run, database = growing.directory, tmp_path / "mlflow.db"
    growing.add(0, 0.5)
    growing.reward(0, 1.0)
    session(run, mlflow_logger(run, database))  # killed
    growing.add(1, 0.75)
    logger = mlflow_logger(run, database)
    put = logger._put

    def put_and_lose_the_answer(*arguments: Any) -> None:
        put(*arguments)
        raise ConnectionError("the answer was lost")

    logger._put = put_and_lose_the_answer  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        session(run, logger)
    logger._put = put  # type: ignore[method-assign]
    logger.flush()
    growing.reward(1, 2.0)
    last = mlflow_logger(run, database)
    session(run, last, times=2)
    artefact = tmp_path / "report.html"
    artefact.write_text("<!DOCTYPE html>")
    summary = {"best": {"accuracy": 0.9, "feasible": True, "weights": "w"}, "wall_s": 12.5}
    for _ in range(2):  # a resumed run ends a second time
        last.close("done", summary, [artefact])
    parent, points = read_mlflow(database)
    assert points == growing.expected
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "run"
    assert parent.data.params["search.algorithm"] == "ddpg"
    assert parent.data.params["data.args.size"] == "16"
    assert parent.data.metrics == {"best/accuracy": 0.9, "wall_s": 12.5}


@pytest.mark.slow  # MLflow takes twenty seconds to make a database
@needs_mlflow
@others_warn
def test_mlflow_runs_that_hold_what_was_forgotten_are_made_anew(
    growing: Growing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    database = tmp_path / "mlflow.db"
    first = mlflow_logger(growing.directory, database)
    first.log(SEARCH, [Step(0, 0.0, {"accuracy": 0.5}), Step(1, 0.0, {"accuracy": 0.0})], anew=False)
    first.flush()
    second = mlflow_logger(growing.directory, database)
    second.log(SEARCH, [Step(0, 0.0, {"accuracy": 0.5}), Step(1, 0.0, {"accuracy": 0.75})], anew=False)
    second.flush()
    assert read_mlflow(database)[1] == {(SEARCH, "accuracy", 0): 0.5, (SEARCH, "accuracy", 1): 0.75}


def test_a_missing_package_is_one_line_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("automl.loggers.requirements.find_spec", lambda name: None)
    loggers.require_loggers(LoggersSection())
    with pytest.raises(InputError, match=r"pip install 'trimtab\[tensorboard\]'"):
        loggers.require_loggers(LoggersSection(tensorboard=True))
    with pytest.raises(InputError, match=r"pip install 'trimtab\[mlflow\]'"):
        loggers.require_loggers(LoggersSection(mlflow=MlflowSection(uri="sqlite:///x.db")))


@pytest.mark.parametrize(
    ("where", "told"),
    [("http://me:secret@host:5000", "password"), ("mlruns", "scheme"), ("", "at least 1")],
)
def test_a_wrong_address_of_mlflow_is_refused(where: str, told: str) -> None:
    document = {
        "model": {"name": "lenet5"},
        "data": {"name": "digits"},
        "budget": {"metric": "macs", "ratio": 0.5},
        "loggers": {"mlflow": {"uri": where}},
    }
    with pytest.raises(InputError, match=told) as refusal:
        load_config(document)
    assert "secret" not in str(refusal.value)
