"""Searches over two nodes of a cluster, one of which dies; and runs that go on elsewhere from a copy."""

import multiprocessing
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from run_processes import PATIENCE_S, evaluations, kill_after, none_left_behind, record, start, trimtab, wait_until

from automl.run.store import SearchRow, Store
from automl.testing.problems import AdditiveEvaluator, conv_chain
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy

GRAPH = conv_chain((16, 32), size=16)
BUDGET = Constraint("macs", 0.5 * GRAPH.macs)
POLICIES = [GRAPH.policy((4 + number, 8)) for number in range(10)]
SEARCH = SearchRow("random-0", "random", 0, len(POLICIES))
STORE_BYTES = 100 * 2**20

CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "metric": "my_metric:share_right",  # a user's own module, which a cluster's nodes are sent
    "baseline": {"epochs": 2, "lr": 0.05},
    "budget": {"metric": "macs", "ratio": 0.5},
    "search": {"algorithm": "random", "evaluations": 30, "evaluators": 2, "lag": 3},
    "compression": {"calibration_images": 60},
    "fine_tune": {"epochs": 1},
    "measure": {"backend": "none"},
}
METRIC = """
def share_right(outputs, labels):
    return (outputs.argmax(1) == labels).double().mean().item()
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "my_metric.py").write_text(METRIC)
    return tmp_path


class Slow:
    """An evaluator that leaves a note of all that it begins with; only the first policy is done before it is let go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found = AdditiveEvaluator(GRAPH, BUDGET)

    def ready(self) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def evaluate(self, policy: CompressionPolicy, cost: Mapping[str, float], share: float) -> Evaluation:
        (self.folder / f"{policy.digest}.{self.ready()}").touch()
        while policy.digest != POLICIES[0].digest and not (self.folder / "go").exists():
            time.sleep(0.05)
        return self.found(policy)


def _on_two_nodes(folder: Path) -> None:
    """A process: the policies are evaluated on two nodes, the second of which is killed twice, with what it does."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    import ray
    from ray.cluster_utils import Cluster

    from automl.errors import TrimtabError
    from automl.orchestration.address import at_address
    from automl.orchestration.crew import Crew, serving
    from automl.orchestration.dispatcher import DispatcherActor, RemoteEvaluators
    from automl.orchestration.pool import ray_get
    from automl.orchestration.ray_session import cpus_at_hand, ray_session

    ray.cloudpickle.register_pickle_by_value(sys.modules[Slow.__module__])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES})
    with at_address(cluster.address), ray_session(1):
        remote, actor = (ray.remote(each) for each in (Slow, DispatcherActor))
        dispatcher: Any = actor.options(num_cpus=0, resources={"node:__internal_head__": 0.01}).remote(
            folder / "trials.sqlite", folder, [SEARCH], [BUDGET]
        )

        def make(name: str, options: Mapping[str, Any]) -> Any:
            return remote.options(name=name, **options).remote(folder)

        with closing(Crew(make, 1, {"CPU": 9})) as too_large, pytest.raises(TrimtabError, match="no node has that"):
            too_large.look()
        crew = Crew(make, None, {"CPU": 1}, most=2, cluster=True)  # None: as many as there is room for
        here = RemoteEvaluators(dispatcher, SEARCH.name, lambda policy: {"macs": float(GRAPH.apply(policy).macs)})
        with serving(crew, dispatcher):
            here.submit(0, POLICIES[0], 1.0)
            here.result(0)  # by the one that has room; another waits for a node
            for number, policy in enumerate(POLICIES[1:], 1):
                here.submit(number, policy, 1.0)
            for _ in range(2):
                node = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
                while not list(folder.glob(f"*.{node.node_id}")):
                    time.sleep(0.05)
                assert cpus_at_hand() == 2
                cluster.remove_node(node, allow_graceful=False)
            (folder / "go").touch()
            found = [here.result(number) for number in range(1, len(POLICIES))]
        assert [each.error for each in found] == [None] * len(found)
        ray_get(dispatcher.close.remote())
        crew.close()
    cluster.shutdown()


def test_what_a_node_took_with_it_is_evaluated_elsewhere_and_not_held_against_it(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_on_two_nodes, args=(tmp_path,))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == 0
    attempts = [path.name.partition(".")[0] for path in tmp_path.glob("*.*") if len(path.name) > 100]
    assert len(set(attempts)) == len(POLICIES)
    assert len(attempts) > len(POLICIES)  # of which some were made on the nodes that died
    with closing(Store.read(tmp_path / "trials.sqlite")) as store:
        rows = list(store.evaluations())
    expected = AdditiveEvaluator(GRAPH, BUDGET)
    assert [row.evaluation.accuracy for row in rows] == [expected(policy).accuracy for policy in POLICIES]


def _searched_on_two_nodes(home: Path) -> None:
    """A process: a whole run on two nodes, the second of which is killed when a third of the search is done."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= {"TRIMTAB_CACHE": str(home / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
    os.chdir(home)
    from ray.cluster_utils import Cluster

    import automl

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES})
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)

    def kill() -> None:
        while evaluations(home / "spread") < 10:
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    threading.Thread(target=kill, daemon=True).start()
    assert automl.search("tiny.yaml", "spread", address=cluster.address).state == "done"
    assert node not in cluster.worker_nodes
    cluster.shutdown()


@pytest.mark.slow
def test_a_search_that_loses_a_node_finds_what_a_search_at_home_finds(home: Path) -> None:
    code, _, err = trimtab(home, "search", "tiny.yaml", "--out", "alone")
    assert code == 0, err
    process = multiprocessing.get_context("spawn").Process(target=_searched_on_two_nodes, args=(home,))
    process.start()
    process.join(2 * PATIENCE_S)
    assert process.exitcode == 0
    assert record(home / "spread") == record(home / "alone")
    for name in ("best", "from_scratch"):
        weights = [(home / run / "finalists" / name / "model.safetensors").read_bytes() for run in ("spread", "alone")]
        assert weights[0] == weights[1]


BY_HAND = """
ip link set lo up
ray start --head --node-ip-address 127.0.0.2 --port 6379 --num-cpus 1 --include-dashboard=false \
    --disable-usage-stats --object-store-memory {store} --temp-dir {temporary}
ray start --address 127.0.0.2:6379 --node-ip-address 127.0.0.3 --num-cpus 1 --disable-usage-stats \
    --object-store-memory {store}
python -m automl search tiny.yaml --address 127.0.0.2:6379 --out spread --set search.evaluations=12
"""


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None,
    reason="a network namespace takes root, unshare and ip",
)
def test_two_nodes_that_are_started_by_hand(home: Path) -> None:
    """In a network of their own, on two addresses; with a token."""
    temporary = tempfile.mkdtemp(prefix="trimtab-hand-")  # Unix sockets lie in it, and their paths are bounded
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TRIMTAB_CACHE": str(home / "cache"),
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "OMP_NUM_THREADS": "1",
    }
    script = BY_HAND.format(store=STORE_BYTES, temporary=temporary)
    try:
        found = subprocess.run(
            ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-ec", script],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
        )
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    assert found.returncode == 0, found.stderr
    code, _, err = trimtab(home, "search", "tiny.yaml", "--out", "alone", "--set", "search.evaluations=12")
    assert code == 0, err
    assert record(home / "spread") == record(home / "alone")


@pytest.mark.slow
def test_a_run_goes_on_from_its_copy_elsewhere(home: Path) -> None:
    """Where the machine that it was started on is gone, with its directory and the one it was started in."""
    import random

    code, _, err = trimtab(home, "search", "tiny.yaml", "--out", "alone")
    assert code == 0, err
    (home / "first").mkdir()
    for name in ("tiny.yaml", "my_metric.py"):
        shutil.copy(home / name, home / "first" / name)
    storage = (home / "nfs").as_uri()
    copies = ("--set", f"storage.uri={storage}", "--set", "storage.every_s=1")
    with none_left_behind() as left:
        process = start(home, "search", "tiny.yaml", "--out", "one", *copies, folder=home / "first")
        wait_until(process, lambda: evaluations(home / "first" / "one") >= 5)
        time.sleep(2.0)
        left.extend(kill_after(process, home / "first" / "one", random.Random(0), at_least=5))
    shutil.rmtree(home / "first")
    code, _, err = trimtab(home, "resume", f"{storage}/one", "--out", "two")
    assert code == 0, err
    assert record(home / "two") == record(home / "alone")
    code, _, err = trimtab(home, "resume", "nfs/two", "--out", "three")  # done, and copied as it ended
    assert code == 0, err
    assert record(home / "three") == record(home / "alone")
    assert not [each for each in psutil.Process().children(recursive=True) if "automl" in " ".join(each.cmdline())]
