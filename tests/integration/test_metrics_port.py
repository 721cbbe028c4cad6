"""What a run exports, read from the metrics port and the dashboard of a real Ray."""

import json
import os
import re
import stat
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import latency_fakes
import pytest
import ray
from latency_fakes import LayerBackend, fake_prices
from rich.console import Console

from automl.costs.pricing import price
from automl.orchestration import metrics, pool, ray_session
from automl.orchestration.announcing import announced
from automl.orchestration.dispatcher import DispatcherActor, RemoteEvaluators
from automl.orchestration.pool import ray_get
from automl.orchestration.price_actor import RemotePrices, price_actor
from automl.progress import Progress
from automl.run.directory import RunDirectory
from automl.run.store import SearchRow
from automl.run.whereabouts import Whereabouts
from automl.testing.problems import AdditiveEvaluator, cifar_resnet, conv_chain
from automl.testing.runs import make_run
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy

GRAPH = conv_chain((16, 32), size=16)
BUDGET = Constraint("macs", 0.5 * GRAPH.macs)
POLICIES = [GRAPH.policy((width, 8)) for width in (4, 6, 12, 16)]
FAILS = 1
SEARCH = SearchRow("random-0", "random", 0, 8)
SAMPLE = re.compile(r"^(ray_trimtab_\w+)\{(.*)\} (\S+)$")
PATIENCE_S = 60.0


class Evaluator:
    """Knows what every policy is worth, but for one."""

    def __init__(self) -> None:
        self.evaluate_well = AdditiveEvaluator(GRAPH, BUDGET)

    def ready(self) -> None:
        pass

    def evaluate(self, policy: CompressionPolicy, cost: Mapping[str, float], share: float) -> Evaluation:
        if policy.digest == POLICIES[FAILS].digest:
            return Evaluation(0.0, cost, 0.0, 0.0, "it crashed")
        return self.evaluate_well(policy)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a Ray with a dashboard, that exports its metrics twice a second."""
    modules = (sys.modules[__name__], latency_fakes)
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)  # Ray's workers cannot import a test module
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "500")
        patch.setenv("TRIMTAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        with ray_session.ray_session(1, dashboard=True) as folder:
            yield folder
    for module in modules:
        ray.cloudpickle.unregister_pickle_by_value(module)


def samples(addresses: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Name and labels of ours -> value, as Prometheus would scrape them."""
    found: dict[str, dict[str, Any]] = {}
    for address in addresses:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if matched := SAMPLE.match(line):
                    labels = dict(re.findall(r'(\w+)="([^"]*)"', matched[2]))
                    found.setdefault(matched[1], {})[labels.get("search", ""), labels.get("metric", "")] = (
                        labels["run"],
                        float(matched[3]),
                    )
    return found


def test_the_metrics_port_and_the_dashboard_of_a_run(scratch: Path, tmp_path: Path) -> None:
    run = RunDirectory(make_run(tmp_path / "mine", evaluations=8).path)
    run.store_file.unlink()
    said = StringIO()
    with announced(run, Progress(Console(file=said, width=500)), scratch):
        where = Whereabouts.read(run.path)
        assert where is not None
        targets = json.loads(next(Path(os.environ["TRIMTAB_CACHE"], "metrics").glob("*.json")).read_bytes())
        assert targets == [{"targets": list(where.metrics), "labels": {"job": "trimtab"}}]
        check_metrics(run, where)
        check_dashboard(where, said.getvalue())
    assert Whereabouts.read(run.path) is None
    assert not list(Path(os.environ["TRIMTAB_CACHE"], "metrics").iterdir())


def check_metrics(run: RunDirectory, where: Whereabouts) -> None:
    remote: Any = ray.remote(DispatcherActor)
    evaluator: Any = ray.remote(Evaluator)
    dispatcher = remote.options(num_cpus=0, max_concurrency=100).remote(
        run.store_file, run.searchers, [SEARCH], [BUDGET]
    )
    ray_get(dispatcher.exchange.remote([pool.Evaluator(0, "", evaluator.remote())]))
    search = RemoteEvaluators(dispatcher, SEARCH.name, lambda policy: price(GRAPH, policy))
    found = []
    for number, policy in enumerate(POLICIES):
        search.submit(number, policy, 1.0)
        found.append(search.result(number))
    search.save({0: 0.25, 2: 0.75}, None)
    graph = cifar_resnet(8)
    with price_actor(partial(fake_prices, run.path / "table.sqlite"), run="mine") as (prices, _):
        backend = LayerBackend(graph, RemotePrices(prices))
        operators = {recipe.recipe for recipe in backend.recipes(graph.kept)}
        backend.price(graph.kept)
        LayerBackend(graph, RemotePrices(prices)).price(graph.kept)
        best = max((item for item in found if item.feasible), key=lambda item: item.accuracy)
        own = (SEARCH.name, "")
        expected = {
            "trimtab_best_reward": {own: 0.75},
            "trimtab_best_accuracy": {own: best.accuracy},
            "trimtab_feasible_share": {own: sum(item.feasible for item in found) / 3},
            "trimtab_progress": {own: 0.5},
            "trimtab_best_budget_share": {(SEARCH.name, "macs"): best.cost["macs"] / BUDGET.limit},
            "trimtab_last_budget_share": {(SEARCH.name, "macs"): found[-1].cost["macs"] / BUDGET.limit},
            "trimtab_evaluations": {own: 4.0},
            "trimtab_failures": {own: 1.0},
            "trimtab_evaluators_up": {("", ""): 1.0},
            "trimtab_table_hits": {("", ""): float(len(operators))},
            "trimtab_table_misses": {("", ""): float(len(operators))},
        }
        wanted = {
            metrics.exported(name): {labels: ("mine", pytest.approx(value)) for labels, value in series.items()}
            for name, series in expected.items()
        }
        give_up = time.monotonic() + PATIENCE_S
        while not wanted.keys() <= (seen := samples(where.metrics)).keys() and time.monotonic() < give_up:
            ray_get(dispatcher.progress.remote())  # as the driver does, which shows them
            time.sleep(0.5)
        rate = seen.pop("ray_trimtab_evaluations_per_second")
        assert rate[("", "")][1] >= 0.0
        assert seen == wanted
        assert {metrics.exported(name) for name in metrics.SERIES} == {*seen, "ray_trimtab_evaluations_per_second"}
    ray_get(dispatcher.close.remote())
    ray.kill(dispatcher)


def check_dashboard(where: Whereabouts, said: str) -> None:
    """It answers to whoever has the token, which stands in a private file and nowhere else."""
    assert where.token_file is not None
    token_file = Path(where.token_file)
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    token = token_file.read_text()
    assert str(where.dashboard) in said
    assert str(token_file) in said
    assert token not in said
    url = f"{where.dashboard}/api/version"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, timeout=10)
    assert refused.value.code in (401, 403)
    refused.value.close()
    asked = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        assert json.loads(answer.read())["ray_version"] == ray.__version__
