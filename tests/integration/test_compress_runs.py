"""`trimtab compress`: a policy of every treatment as a run, in processes of its own, with a real Ray."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from run_processes import PATIENCE_S, none_left_behind, start, trimtab, wait_until

from automl.config import load_config
from automl.configured import untrained_graph
from automl.run.directory import RunDirectory
from automl.run.store import EvaluationRow, Store
from automl.searchers import given_policies
from search_spaces.policy import CompressionPolicy, LayerPolicy

CONFIG: dict[str, Any] = {
    "model": {"name": "resnet20"},
    "data": {"name": "digits", "args": {"size": 16}},
    "baseline": {"epochs": 1},
    "search": {"evaluators": 1},
    "compression": {"calibration_images": 60},
    "fine_tune": {"epochs": 2},
    "measure": {"backend": "none"},
}
POLICY = CompressionPolicy(
    {
        "blocks.0.conv1": LayerPolicy(keep=0.5, sparsity=0.5, weight_bits=4, activation_bits=8),
        "blocks.3.conv1": LayerPolicy(rank=(8, 16), factorisation="tucker2"),
        "blocks.6.conv2": LayerPolicy(pattern="2:4", weight_bits=8),
        "blocks.7.conv1": LayerPolicy(keep=0.25),
        "blocks.8": LayerPolicy(remove=True),
    }
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and a policy, whose runs share a cache."""
    folder: Path = tmp_path_factory.mktemp("compress")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "mixed.json").write_text(POLICY.to_json())
    return folder


@pytest.fixture(scope="module", autouse=True)
def families() -> Iterator[list[psutil.Process]]:
    """Processes of killed drivers."""
    with none_left_behind() as left:
        yield left


@pytest.fixture(scope="module")
def finished(home: Path) -> RunDirectory:
    """A run that was never interrupted."""
    code, out, err = trimtab(home, "compress", "tiny.yaml", "mixed.json", "--out", "whole")
    assert code == 0, err
    assert "given" in out
    return RunDirectory.open(home / "whole")


def evaluations(directory: RunDirectory) -> list[EvaluationRow]:
    store = Store.read(directory.store_file)
    try:
        return list(store.evaluations())
    finally:
        store.close()


def test_the_policy_stands_beside_its_controls_at_its_own_cost(finished: RunDirectory) -> None:
    summary = finished.summary()
    graph = untrained_graph(load_config(CONFIG, ["search.algorithm=given"]))
    compressed = graph.apply(POLICY)
    assert summary["state"] == "done"
    assert summary["random"] is None
    assert summary["budget"] == {"metric": "macs", "limit": None, "unit": "MACs"}
    for name in ("best", "from_scratch"):
        found = summary[name]
        counted = (compressed.macs, compressed.params, compressed.weight_bytes)
        assert (found["macs"], found["params"], found["weight_bytes"]) == counted
        assert found["feasible"]
    assert 0.95 * compressed.macs <= summary["uniform"]["macs"] <= compressed.macs
    assert summary["baseline"]["macs"] == graph.macs
    given, uniform = evaluations(finished)
    assert (given.search, given.policy.digest, given.evaluation.error) == ("given", POLICY.digest, None)
    assert (uniform.search, uniform.evaluation.error) == ("uniform", None)


def test_the_run_directory_holds_the_policy_and_tells_what_it_does(finished: RunDirectory, home: Path) -> None:
    config = finished.config()
    assert [policy.digest for policy in given_policies(config.search.options)] == [POLICY.digest]
    assert CompressionPolicy.load(finished.best / "policy.json").digest == POLICY.digest
    treatments = {each["name"]: each for each in finished.summary()["treatments"]}
    assert list(treatments) == ["blocks.0.conv1", "blocks.3.conv1", "blocks.6.conv2", "blocks.8"]
    assert treatments["blocks.8"]["weight_bytes"] == 0
    kept = {each["name"]: each["kept"] for each in finished.summary()["layers"]}
    assert (kept["blocks.0.conv1"], kept["blocks.7.conv1"], kept["blocks.8.conv1"]) == (8, 16, 0)
    report = finished.report_file.read_text()
    for text in ("8 × 16 tucker2", "50 % 2:4", "4 bits symmetric, channel", "left out", "the policy given"):
        assert text in report
    code, out, _ = trimtab(home, "status", "whole", "--json")
    status = json.loads(out)
    assert (code, status["state"]) == (0, "done")
    assert set(status["finalists"]) == {"baseline", "best", "uniform", "from_scratch"}


@pytest.mark.slow
def test_killed_while_it_trains_and_resumed_without_the_policys_file(
    finished: RunDirectory, home: Path, families: list[psutil.Process]
) -> None:
    run = home / "killed"
    (home / "moved.json").write_text(POLICY.to_json())
    process = start(home, "compress", "tiny.yaml", "moved.json", "--out", "killed")
    wait_until(process, lambda: any(run.glob("finalists/*/progress.json")))
    families.extend(psutil.Process(process.pid).children(recursive=True))
    process.kill()
    process.communicate()
    (home / "moved.json").unlink()
    process = start(home, "resume", "killed")
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    first, second = finished.summary(), RunDirectory.open(run).summary()
    assert {**first, "wall_s": None} == {**second, "wall_s": None}


@pytest.mark.slow
def test_a_budget_that_the_policy_misses_is_told(finished: RunDirectory, home: Path) -> None:
    budget = "budget={metric: latency_s, limit: 1.0e-7}"
    code, out, err = trimtab(
        home, "compress", "tiny.yaml", "mixed.json", "--out", "slow", "--set", budget, "--set", "measure.backend=torch"
    )
    assert code == 0, err
    assert "above the budget" in out
    summary = RunDirectory.open(home / "slow").summary()
    assert summary["budget"]["measured_limit"] == 1e-7
    for name in ("baseline", "best", "uniform", "from_scratch"):
        assert summary[name]["latency_measured"]
        assert summary[name]["feasible"] is False
    assert 0.95 * summary["best"]["macs"] <= summary["uniform"]["macs"] <= summary["best"]["macs"]
    assert "The policy is above the budget" in (home / "slow" / "report.html").read_text()
    code, out, err = trimtab(home, "verify", "slow/best")
    assert code == 0, out + err
