"""The stages of a run, in order. One that has ended is not repeated: a resumed run passes over it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from automl.configured import example_input
from automl.costs.latency import open_prices, priced_by_table, table_key
from automl.costs.pricing import price
from automl.costs.probes import Timed, remembered
from automl.costs.table_error import check_code, with_chosen_limit, with_margin
from automl.errors import TrimtabError
from automl.orchestration.announcing import announced
from automl.orchestration.ray_session import cpus_of, modules_of, ray_session
from automl.orchestration.searches import searches, wants_prior
from automl.problem import Problem
from automl.progress import Progress
from automl.run.directory import RunClock, RunDirectory, write_atomically, write_json
from automl.run.explaining import explain_best
from automl.run.explanation import Explanation
from automl.run.exporting import export_best
from automl.run.finalists import Compiled, Finalist, choose_finalists, measure_all, read_progress, training_of
from automl.run.known import known_samples
from automl.run.limits import write_limits
from automl.run.priors import costs_for_prior, kept_prior
from automl.run.store import Store
from automl.run.summary import accelerator_usage, budget_text, build_summary
from automl.searchers.prior import Prior
from automl.signals import StopSignal
from backends.table_backend import asked_of
from search_spaces.objective import Constraint
from search_spaces.policy import CompressionPolicy

POLL_S = 0.25


class InfeasibleError(TrimtabError):
    """The searches ended without a policy within the budget."""


@dataclass
class Run:
    """A run being driven: its directory and everything that its stages share."""

    directory: RunDirectory
    problem: Problem
    progress: Progress
    clock: RunClock
    stop: StopSignal
    compiled: dict[str, Compiled] = field(default_factory=dict)
    """Networks compiled to be timed before they are fine-tuned, by the digest of their policy."""

    def drive(self) -> dict[str, Any]:
        """All stages; returns the summary.

        Raises:
            RunStoppedError: told to stop; to be resumed.
            InfeasibleError: nothing within the budget was found; the summary says so.
            TrimtabError: a stage failed.
        """
        self._keep_latency()
        self._baseline()
        if self._searched():
            self._choose()
        latencies = self._read_latencies()
        if latencies is None or not self._searched():
            latencies = self._search_and_finish()
        finalists = self._choose()
        self._export(self._summary("running", finalists, latencies))
        return self._summary("done", finalists, latencies)

    def _stage(self, name: str, text: str) -> None:
        self.stop.check()
        self.clock.set("running", name)
        self.progress.stage(text)

    def _baseline(self) -> None:
        config = self.problem.config
        if not self.problem.trained:
            self._stage("baseline", f"Baseline: training {config.model.name} on {config.data.name}")
            self.problem = self.problem.with_baseline(self._on_epoch, self._alive)
        if not self.directory.baseline_file.exists():
            write_atomically(self.directory.baseline_file, self.problem.saved())

    def _on_epoch(self, report: Any) -> None:
        self.progress.epoch("baseline", report)
        self._alive()

    def _alive(self) -> None:
        self.clock.beat()
        self.stop.check()

    def _search_and_finish(self) -> dict[str, Any]:
        """The stages that need workers; returns the latencies."""
        config = self.problem.config
        imports_from = self.directory.info().working_directory
        session = ray_session(
            cpus_of(config.search), dashboard=config.search.dashboard, modules=modules_of(config, imports_from)
        )
        with session as scratch, announced(self.directory, self.progress, scratch):
            from automl.orchestration.crew import (
                evaluators,  # Ray reads its environment when it is imported: not earlier
            )

            with evaluators(config, self.directory.baseline_file, imports_from, self.problem.constraints) as crew:
                with self._prices() as prices:
                    self._hold_back(crew, prices, scratch)
                    self._search(crew, prices, scratch)
                self._check_best(crew, scratch)
                finalists = self._choose()
                self._explain(finalists, crew)
                compiled, errors = self._finish(finalists, crew, scratch)
                self._check_code([network for network in compiled if network.name not in errors], finalists)
            return self._measure(compiled, errors)

    def _searched(self) -> bool:
        """Whether all searches have ended as they should."""
        if not self.directory.store_file.exists():
            return False
        store = Store.read(self.directory.store_file)
        try:
            ended = {row.name for row in store.searches() if row.finished and row.error is None}
        finally:
            store.close()
        return ended >= {row.name for row in searches(self.problem.config)}

    @contextmanager
    def _prices(self) -> Iterator[Any]:
        """The process that prices operators, while a search under a latency budget needs it; else None."""
        if self.problem.latency is None or self._searched():
            yield None
            return
        from automl.orchestration.price_actor import price_actor
        from automl.orchestration.tune import ask

        measure = self.problem.config.measure
        estimates = self.directory.estimates_file if measure.estimate_missing else None
        opened, wait = partial(open_prices, measure), partial(ask, stop=self.stop)
        with price_actor(opened, estimates, wait, self.directory.path.resolve().name) as (prices, error):
            if error is not None:
                self.progress.say(f"Operators that the latency table lacks are estimated, {error:.1%} off on average")
            yield prices
            for notice in wait(prices.notices.remote()):
                self.progress.say(notice)

    def _keep_latency(self) -> None:
        """Keep the figures of a latency budget in the run directory."""
        if self.problem.latency is not None:
            self.problem.latency.write(self.directory.budget_file)

    def _hold_back(self, crew: Any, prices: Any, scratch: Path) -> None:
        """Find out what must be held back of a latency budget, where the config does not say."""
        from automl.orchestration.price_actor import RemotePrices
        from automl.orchestration.tune import ask

        problem, config, latency = self.problem, self.problem.config, self.problem.latency
        if latency is None or latency.margin is not None:
            return
        self._stage("table error", "Latency table: its error against a few networks, compiled and measured")
        remote = RemotePrices(prices, partial(ask, stop=self.stop))
        backend = priced_by_table(config.measure, problem.graph, remote)
        latency = with_margin(latency, problem.space, backend, self._timed(crew, scratch))
        self.problem = replace(problem, latency=latency)
        self._keep_latency()

    def _check_best(self, crew: Any, scratch: Path) -> None:
        """See that the best policy keeps a latency budget by the clock, before time goes into fine-tuning it."""
        latency, config = self.problem.latency, self.problem.config
        if latency is None or latency.chosen_limit_s is not None or config.search.mode == "accuracy":
            return
        self._choose()
        self._stage("check", "Latency: the best policy, compiled and measured")

        def best(limit: float) -> Finalist | None:
            finalists = choose_finalists(self.problem, self.directory, limit)
            return next((finalist for finalist in finalists if finalist.name == "best"), None)

        latency = with_chosen_limit(latency, best, self._timed(crew, scratch))
        self.problem = replace(self.problem, latency=latency)
        self._keep_latency()

    def _check_code(self, compiled: Sequence[Compiled], finalists: Sequence[Finalist]) -> None:
        """See that the networks which are measured are made of what their policies were priced by."""
        graph, measure = self.problem.graph, self.problem.config.measure
        if self.problem.latency is None or measure.backend != "tvm":
            return
        policies = {finalist.name: finalist.policy for finalist in finalists}
        with open_prices(measure) as prices:
            backend = priced_by_table(measure, graph, prices)
            for network in compiled:
                asked = asked_of(graph.apply(policies[network.name]))
                recipes = [each.recipe for each in backend.recipes(*asked)]
                known = prices.table.get(set(recipes))
                check_code(network, recipes, {recipe: entry.structure for recipe, entry in known.items()})

    def _timed(self, crew: Any, scratch: Path) -> Timed:
        """What compiles the networks of policies and measures them side by side."""
        from automl.orchestration.crew import spread

        config = self.problem.config

        watch = self._counts("networks compiled")

        def timed(policies: Mapping[str, CompressionPolicy]) -> dict[str, float]:
            jobs = {
                name: lambda worker, policy=policy: worker.compile.remote(policy, policy.digest, scratch)
                for name, policy in policies.items()
                if policy.digest not in self.compiled
            }
            made = spread(jobs, crew, lambda _, finished: watch(len(finished), len(jobs)), here=True)
            for name, compiled in made.items():
                self.compiled[policies[name].digest] = compiled
            networks = [self.compiled[policy.digest] for policy in policies.values()]
            found = measure_all(
                networks, example_input(self.problem.data), config.measure.threads, config.measure.remote
            )
            return {
                name: found[policy.digest][config.measure.backend]["latency_s"] for name, policy in policies.items()
            }

        return remembered(timed, self.problem.graph.digest, table_key(config.measure))

    def _search(self, crew: Any, prices: Any, scratch: Path) -> None:
        from automl.orchestration.tune import run_searches

        if self._searched():
            return
        problem, config = self.problem, self.problem.config
        rows, given = searches(config), config.search.given
        prior = self._prior(crew, prices)
        known = known_samples(config, problem.graph.digest, self.directory.samples_file)
        write_limits(self.directory.path, problem.constraints)
        text = f"Search: {budget_text(problem)}, {config.search.evaluations} evaluations a search"
        self._stage("search", "Evaluation: what is given, and the uniform policy that costs as much" if given else text)

        def run(rows: list[Any], constraints: Sequence[Constraint] | None = None) -> None:
            run_searches(
                problem,
                rows,
                crew,
                self.directory,
                self.progress,
                self.clock,
                self.stop,
                scratch,
                constraints,
                prices,
                prior,
                known,
            )

        if config.search.mode == "resource" and not given:
            run(rows, problem.held_back)
            return
        # Without a hard budget, the uniform policy to compare with is the one of the best policy's cost.
        run([row for row in rows if row.algorithm != "uniform"])
        best = next(finalist for finalist in self._choose() if finalist.name == "best")
        metric = problem.constraint.metric
        cost = best.table_latency_s or price(problem.graph, best.policy, problem.backend)[metric]
        if given:  # it may cost less than channels alone can come to
            cost = max(cost, price(problem.graph, problem.space.cheapest(), problem.backend)[metric])
        run([row for row in rows if row.algorithm == "uniform"], [Constraint(metric, cost)])

    def _prior(self, crew: Any, prices: Any) -> Prior | None:
        """What the searches want to know before they start; kept in the run directory."""
        from automl.orchestration.crew import spread
        from automl.orchestration.price_actor import RemotePrices
        from automl.orchestration.tune import ask

        problem, measure = self.problem, self.problem.config.measure
        if not wants_prior(problem.config.search):
            return None

        def compute() -> Prior:
            self._stage("prior", "Before the search: what there is to know of each choice")
            backend: Any = problem.backend
            if problem.latency is not None:
                backend = priced_by_table(measure, problem.graph, RemotePrices(prices, partial(ask, stop=self.stop)))
            costs = costs_for_prior(problem, backend)
            found: dict[str, Prior] = spread(
                {"prior": lambda worker: worker.prior.remote(costs)}, crew, lambda *_: self.stop.check()
            )
            return found["prior"]

        return kept_prior(self.directory.prior_file, compute)

    def _choose(self) -> list[Finalist]:
        """The finalists; a run without a best one ends here."""
        finalists = choose_finalists(self.problem, self.directory)
        if all(finalist.name != "best" for finalist in finalists):
            self._summary("infeasible", finalists, {})
            raise InfeasibleError(
                f"no policy that the {self.problem.config.search.algorithm!r} searches evaluated is within the budget "
                f"({budget_text(self.problem)}); raise the budget, or search longer"
            )
        return finalists

    def _explain(self, finalists: Sequence[Finalist], crew: Any) -> None:
        """Find out what each layer of the best policy loses and costs, unless that is known."""
        best = next(finalist for finalist in finalists if finalist.name == "best")
        known = Explanation.read(self.directory.explanation_file)
        if known is None or known.policy != best.policy.digest:
            self._stage("explanation", "Explanation: each layer compressed as in the best policy, alone")
            found = explain_best(self.problem, self.directory, best.policy, crew, self._counts("networks evaluated"))
            write_json(self.directory.explanation_file, found.to_json())

    def _counts(self, what: str) -> Callable[[int, int], None]:
        """What is told how many of how many jobs are done."""

        def watch(done: int, total: int) -> None:
            self.progress.update(what, done, total)
            self.clock.beat()
            self.stop.check()

        return watch

    def _finish(self, finalists: Sequence[Finalist], crew: Any, scratch: Path) -> tuple[list[Compiled], dict[str, str]]:
        """Fine-tune, test and compile; returns what can be measured, and why some cannot be in the config's backend."""
        from automl.orchestration.finishing import compile_finalists, train_finalists

        config, folder = self.problem.config, self.directory.finalists
        epochs = {finalist.name: training_of(finalist.name, config).epochs for finalist in finalists}
        text = f"Finalists: {config.fine_tune.epochs} epochs of fine-tuning each, test accuracy, machine code"
        self._stage("finalists", text)

        def watch(running: Sequence[str], finished: Mapping[str, Any]) -> None:
            for name in finished:
                self.progress.update(name, epochs[name], epochs[name], "finished")
            for name in running:
                self.progress.update(name, read_progress(folder / name) or 0, epochs[name])
            self.clock.beat()
            self.stop.check()

        train_finalists(finalists, folder, crew, watch)
        if config.measure.backend == "none":
            return [], {}
        compiles = self._counts("networks compiled")
        made = compile_finalists(finalists, folder, crew, scratch, lambda _, done: compiles(len(done), len(finalists)))
        compiled = [code for code, _ in made.values() if code.artefacts]
        return compiled, {name: error for name, (_, error) in made.items() if error is not None}

    def _read_latencies(self) -> dict[str, Any] | None:
        """What an earlier session measured; None where nothing was."""
        try:
            found = json.loads(self.directory.latency_file.read_bytes())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def _measure(self, compiled: list[Compiled], errors: dict[str, str]) -> dict[str, Any]:
        config = self.problem.config
        latencies: dict[str, Any] = {"networks": {}, "errors": errors}
        if compiled:
            self._stage("measure", f"Latency: {len(compiled)} networks in turns, {config.measure.threads} thread(s)")
            example = example_input(self.problem.data)
            latencies["networks"] = measure_all(compiled, example, config.measure.threads, config.measure.remote)
        write_json(self.directory.latency_file, latencies)
        return latencies

    def _summary(self, state: str, finalists: list[Finalist], latencies: dict[str, Any] | None) -> dict[str, Any]:
        summary = build_summary(self.problem, self.directory, state, finalists, latencies or {}, self.clock.wall_s)
        write_json(self.directory.summary_file, summary)
        if (usage := accelerator_usage(self.problem, finalists)) is not None:
            write_json(self.directory.accelerator_file, usage)
        return summary

    def _export(self, summary: dict[str, Any]) -> None:
        if (self.directory.best / "manifest.json").exists():
            return
        self._stage("export", "Export: policy, weights, torch, ONNX and TVM files")
        export_best(self.problem, self.directory, summary)
