"""The evaluator processes of a run: who is up, who waits for room, and who takes the place of one that died.

Evaluators run on any node. One that finds no room yet is no error while another is up, and takes part once there is
some. What a dead process worked on is done again by another; only where the process died, and its node did not, is that
held against the work.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from automl.config import Config
from automl.config_sections import AUTO, EvaluatorSection
from automl.errors import TrimtabError
from automl.orchestration.address import cluster_address
from automl.orchestration.placement import free_name, node_lives, nodes, on_this_node, this_node
from automl.orchestration.pool import AGAIN_S, ATTEMPTS, POLL_S, Evaluator, EvaluatorPool, last_line, ray_get
from automl.orchestration.ray_session import THREADS
from automl.orchestration.searches import searches
from automl.orchestration.worker import Worker
from automl.run.directory import trimtab_version
from search_spaces.objective import Constraint

Job = Callable[[Any], Any]
"""Given an evaluator's handle, the reference of what it is to do."""

Watch = Callable[[Sequence[str], Mapping[str, Any]], None]
"""Told of the names that are being worked on and of what those gave that are finished."""

FINALISTS = 5

ROOM_S = 120.0
"""How long a cluster may take to come up with a node that has room for an evaluator at all."""


@dataclass(frozen=True)
class _Starting:
    """An evaluator that is not up yet; `extra` where it reserves nothing, on the driver's node."""

    number: int
    handle: Any
    extra: bool


class Crew:
    """The evaluators of a run.

    Args:
        make: starts an actor under a name and with options of Ray's; its method `ready` gives the node that it is on.
        wanted: how many; None for as many as there is room for.
        needs: what each reserves, as Ray names it: "CPU", "GPU", "memory" in bytes.
        most: how many have something to do at once, where there is room for more.
        cluster: whether nodes may join.
    """

    def __init__(
        self,
        make: Callable[[str, Mapping[str, Any]], Any],
        wanted: int | None,
        needs: Mapping[str, float],
        *,
        most: int = 1,
        cluster: bool = False,
    ) -> None:
        self._make = make
        self._wanted = wanted
        self._needs = {name: amount for name, amount in needs.items() if amount}
        self._most = most
        self._cluster = cluster
        self._count = 0
        self._starting: dict[Any, _Starting] = {}
        self._up: dict[Evaluator, bool] = {}  # -> whether it is an extra one
        self._early_deaths = 0
        self._had_room = time.monotonic()
        self._here = this_node()
        for _ in range(self._room() if wanted is None else wanted):
            self._recruit()

    @property
    def starting(self) -> list[Any]:
        """References that are there when another evaluator is up, or has failed to come up."""
        return list(self._starting)

    def look(self, *, here: bool = False) -> list[Evaluator]:
        """The evaluators that are up; called again and again by whoever has work for them.

        Args:
            here: those on the driver's node alone. A cluster that has none there gets one that reserves nothing.

        Raises:
            TrimtabError: one cannot start, or no node has room for one and none has joined for a while.
        """
        ready, _ = ray.wait(self.starting, num_returns=len(self._starting), timeout=0) if self._starting else ([], [])
        for reference in ready:
            self._started(reference)
        if here:
            found = [each for each in self._up if each.node == self._here]
            if self._cluster and not found and not any(each.extra for each in self._starting.values()):
                self._recruit(extra=True)
            return found
        found = [each for each, extra in self._up.items() if not extra]
        if self._wanted is None and self._cluster and not self._starting:
            for _ in range(min(self._room() + 1, self._most - len(found))):  # one waits for a node that joins
                self._recruit()
        if not found:
            self._check_room()
        return found

    def died(self, evaluator: Evaluator) -> bool:
        """See what became of an evaluator that did not answer; another takes the place of one that is dead.

        Returns:
            Whether its process died while its node lives.
        """
        while True:
            try:
                ray.get(evaluator.handle.ready.remote())
                return False  # it was out of reach, and is not any more
            except ActorUnavailableError:
                time.sleep(AGAIN_S)
            except RayActorError:
                self.replace(evaluator)
                return node_lives(evaluator.node)

    def replace(self, evaluator: Evaluator) -> None:
        """Start another in the place of one that is dead."""
        if not self._up.pop(evaluator, True):
            self._recruit()

    def close(self) -> None:
        """End all processes."""
        for handle in [*(each.handle for each in self._up), *(each.handle for each in self._starting.values())]:
            ray.kill(handle)
        self._up, self._starting = {}, {}

    def _recruit(self, *, extra: bool = False) -> None:
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": on_this_node()}
        if not extra:
            options = {"num_cpus": self._needs.get("CPU", 0), "num_gpus": self._needs.get("GPU", 0)}
            options["memory"] = self._needs.get("memory")
        handle = self._make(free_name(f"evaluator-{self._count}"), options)
        self._starting[handle.ready.remote()] = _Starting(self._count, handle, extra)
        self._count += 1

    def _started(self, reference: Any) -> None:
        one = self._starting.pop(reference)
        try:
            node = ray_get(reference)
        except ActorUnavailableError:
            self._starting[one.handle.ready.remote()] = one
        except RayActorError as death:
            self._early_deaths += 1
            if death.actor_init_failed or self._early_deaths > ATTEMPTS * len(self._starting) + ATTEMPTS:
                raise TrimtabError(f"an evaluator cannot start: {_why(death)}") from None
            self._recruit(extra=one.extra)
        except RayError as error:
            raise TrimtabError(f"an evaluator cannot start: {_why(error)}") from None
        else:
            self._early_deaths = 0
            self._up[Evaluator(one.number, node, one.handle)] = one.extra

    def _room(self) -> int:
        """For how many more evaluators; at least one, which then waits."""
        free: Any = ray.available_resources()  # type: ignore[no-untyped-call]
        fits = min((floor(free.get(name, 0.0) / amount) for name, amount in self._needs.items()), default=1)
        return max(1, min(fits, self._most))

    def _check_room(self) -> None:
        """TrimtabError where no node, were it idle, has room for an evaluator, and none that has it joined in time."""
        found = [node["Resources"] for node in nodes() if node["Alive"]]
        if any(all(node.get(name, 0.0) >= amount for name, amount in self._needs.items()) for node in found):
            self._had_room = time.monotonic()
        elif time.monotonic() - self._had_room >= (ROOM_S if self._cluster else 0.0):
            most = {name: max((node.get(name, 0.0) for node in found), default=0.0) for name in self._needs}
            raise TrimtabError(
                f"an evaluator reserves {_amounts(self._needs)} (search.evaluator), and no node has that; the most of "
                f"each that one has is {_amounts(most)}: lower it, or add a node"
            )


@contextmanager
def evaluators(config: Config, baseline: Path, imports_from: str, constraints: Sequence[Constraint]) -> Iterator[Crew]:
    """The evaluators of a config, each with what `search.evaluator` reserves.

    Args:
        config: says how many.
        baseline: file of the baseline's weights; evaluators get them from Ray.
        imports_from, constraints: see `Worker`.

    Raises:
        TrimtabError: they are to run on a GPU, and Ray has none.
    """
    how, cluster = config.search, cluster_address() is not None
    wanted = None if how.evaluators == AUTO else int(how.evaluators)
    weights = ray.put(baseline.read_bytes())
    remote: Any = ray.remote(Worker)
    given: dict[str, Any] = {"runtime_env": {"env_vars": THREADS}} if cluster else {}
    version = trimtab_version()

    def make(name: str, options: Mapping[str, Any]) -> Any:
        return remote.options(name=name, **given, **options).remote(config, weights, imports_from, constraints, version)

    crew = Crew(make, wanted, reserved(config, wanted), most=busy_at_most(config), cluster=cluster)
    try:
        yield crew
    finally:
        crew.close()


def reserved(config: Config, wanted: int | None) -> dict[str, float]:
    """What an evaluator of a config reserves, as Ray names it.

    Raises:
        TrimtabError: as `gpu_share`.
    """
    each: EvaluatorSection = config.search.evaluator
    gpus = each.gpus
    if gpus is None:
        gpus = 0.0
        if config.search.device == "cuda":
            resources: Any = ray.cluster_resources()  # type: ignore[no-untyped-call]
            gpus = gpu_share(wanted or 1, int(resources.get("GPU", 0)))
    return {"CPU": each.cpus, "GPU": gpus, "memory": float(each.memory or 0)}


def busy_at_most(config: Config) -> int:
    """Evaluators that have something to do at once: searches ask for lag + 1 proposals ahead, finalists are few."""
    return max((config.search.lag + 1) * len(searches(config)), FINALISTS)


def gpu_share(evaluators: int, gpus: int) -> float:
    """The part of a GPU that each evaluator reserves, so that all of them find room.

    Raises:
        TrimtabError: there is no GPU; Ray would wait for one for ever.

    >>> gpu_share(3, 1), gpu_share(3, 2), gpu_share(2, 4)
    (0.3333, 0.5, 1.0)
    """
    if gpus < 1:
        raise TrimtabError("search.device is 'cuda', and the Ray that runs here has no GPU; start it with one")
    return 10_000 // ceil(evaluators / gpus) / 10_000  # Ray counts ten-thousandths


@contextmanager
def evaluator_pool(
    config: Config, baseline: Path, imports_from: str, constraints: Sequence[Constraint]
) -> Iterator[Any]:
    """The actor that hands policies to evaluators of its own; see `evaluators` and `EvaluatorPool`."""
    with evaluators(config, baseline, imports_from, constraints) as crew:
        actor: Any = ray.remote(EvaluatorPool)
        options = {"num_cpus": 0, "max_concurrency": 10_000, "scheduling_strategy": on_this_node()}
        pool = actor.options(name=free_name("pool"), **options).remote(constraints)
        try:
            with serving(crew, pool):
                yield pool
        finally:
            ray.kill(pool)


@contextmanager
def serving(crew: Crew, pool: Any) -> Iterator[None]:
    """Tell an actor that hands out work who is up, and replace those that it finds dead, as long as the block lasts.

    Args:
        crew: whose evaluators; nobody else looks at it meanwhile.
        pool: handle of an `EvaluatorPool`, or of what has one.
    """
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                for dead in ray.get(pool.exchange.remote(crew.look())):
                    crew.replace(dead)
            except TrimtabError as error:  # whoever waits for an evaluation raises it
                with suppress(RayError):
                    ray.get(pool.fail.remote(str(error)))
                return
            except RayError:  # the pool itself is gone, which those who ask it notice
                return
            ended.wait(POLL_S)

    thread = threading.Thread(target=serve, name="crew", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def spread(
    jobs: Mapping[str, Job],
    crew: Crew,
    watch: Watch,
    *,
    here: bool = False,
) -> dict[str, Any]:
    """Have the evaluators do jobs side by side; one whose process dies is done again, once.

    Args:
        jobs: by name, each given to the evaluator that does it.
        crew: of the run.
        watch: told how far they are several times a second, and before an evaluator is given its next.
        here: by evaluators on the driver's node, for what concerns that machine.

    Returns:
        What each job gave, in the order of the jobs.

    Raises:
        TrimtabError: a job failed, its process died again, or no evaluator can start.
    """
    waiting = list(jobs)
    running: dict[Any, tuple[str, Evaluator]] = {}
    deaths: Counter[str] = Counter()
    results: dict[str, Any] = {}
    while waiting or running:
        busy = {evaluator for _, evaluator in running.values()}
        for evaluator in crew.look(here=here):
            if waiting and evaluator not in busy:
                name = waiting.pop(0)
                running[jobs[name](evaluator.handle)] = (name, evaluator)
        awaited = [*running, *crew.starting]
        ready, _ = ray.wait(awaited, timeout=POLL_S) if awaited else ([], [])
        for reference in ready:
            if reference not in running:
                continue
            name, evaluator = running.pop(reference)
            try:
                results[name] = ray_get(reference)
            except RayActorError as death:
                waiting.append(name)
                deaths[name] += crew.died(evaluator)
                if deaths[name] == ATTEMPTS:
                    raise TrimtabError(f"the process that makes network {name!r} died: {last_line(death)}") from death
        watch([name for name, _ in running.values()], results)
    return {name: results[name] for name in jobs}


def _why(error: Exception) -> str:
    """What kept an evaluator from starting."""
    text = str(error)
    if "failed to import" in text or "No module named 'automl'" in text:
        return "a node of the cluster lacks Trimtab or a module of the run; install the same on every node"
    return last_line(error)


def _amounts(needs: Mapping[str, float]) -> str:
    """Resources for people."""
    return ", ".join(
        f"{amount / 2**30:.3g} GiB of memory" if name == "memory" else f"{amount:g} {name}"
        for name, amount in needs.items()
    )
