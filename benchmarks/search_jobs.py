"""Searches, and fine-tunings of what they found, as jobs of a benchmark that go on where they were killed.

A search has two files in OUT/TASK: `SEARCHER-SEED-EVALUATIONS.jsonl` gains a line with every evaluation, and
`.snapshot` beside it holds the searcher's state (see `automl.orchestration.search_loop`). OUT/evaluations.sqlite
remembers what every policy was worth, so that no searcher and no seed evaluates one again; it is then charged the
seconds of the first time.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from search_records import Journal, Recorded, SharedEvaluations
from stretches import Stop

from automl.cache import atomic_path, digest_of
from automl.compression import Compressed, fine_tune
from automl.config import Config, load_config
from automl.configured import training_options
from automl.costs.latency import local_prices
from automl.costs.pricing import point_prices
from automl.errors import InputError
from automl.orchestration.search_loop import SearchFailedError, run_search
from automl.orchestration.searches import make_search
from automl.predictors.samples import Sample
from automl.problem import Problem
from automl.run.store import SearchRow
from automl.training import evaluate, train
from search_spaces.policy import CompressionPolicy
from search_spaces.space import SearchSpace


@dataclass(frozen=True)
class Task:
    """What is searched: a network under a budget.

    Attributes:
        name: of its folder.
        title: for people.
        config: of everything but the searcher.
        warming: random policies whose operators are measured before anything is searched under a measured latency.
    """

    name: str
    title: str
    config: Mapping[str, Any] = field(hash=False)
    warming: int = 3000

    @cached_property
    def checked(self) -> Config:
        """The config, for a searcher that knows every space."""
        return load_config({**self.config, "search": {"algorithm": "random"}})


@cache
def problem_of(task: Task) -> Problem:
    """Once for each process; the trained baseline comes from the cache, a latency from its table."""
    config = task.checked
    return Problem.build(config, prices=local_prices(config) if config.priced_by_table else None)


def prepare(task: Task) -> Problem:
    """Its problem, with all that searches would else wait for: a trained network, and operators that were measured."""
    problem = problem_of(task)
    if task.checked.priced_by_table:
        generator = np.random.default_rng(0)
        points = np.array([problem.space.sample(generator) for _ in range(task.warming)])
        point_prices(problem.space, problem.backend)(points)
    return problem


@dataclass(frozen=True)
class Search:
    """One search: a job."""

    out: Path
    task: Task
    searcher: str
    seed: int
    evaluations: int

    @property
    def label(self) -> str:
        return f"{self.task.name}, {self.searcher}, seed {self.seed}"

    @property
    def file(self) -> Path:
        return self.out / self.task.name / f"{self.searcher}-{self.seed}-{self.evaluations}.jsonl"

    @property
    def ended(self) -> str | None:
        end = self.journal.end
        return None if end is None else f"{end['ended']} {end.get('reason', '')}".strip()

    @property
    def config(self) -> Config:
        """Of the task, with this searcher."""
        config = self.task.checked
        return config.model_copy(update={"search": config.search.model_copy(update={"algorithm": self.searcher})})

    def space(self, problem: Problem) -> SearchSpace:
        """What it decides."""
        return problem.space

    def known(self, problem: Problem) -> Sequence[Sample]:
        """Sub-networks that its algorithm learns from."""
        return ()

    @property
    def key(self) -> str:
        """Of all that decides what it finds, but for the program."""
        search = [self.searcher, self.seed, self.evaluations]
        return digest_of({"config": self.task.config, "search": search})

    @property
    def journal(self) -> Journal:
        """As it stands now."""
        return Journal(self.file, self.key)

    def run(self, stop: Stop) -> None:
        """Search, or go on.

        Raises:
            RunStoppedError: the stretch is over.
        """
        journal, problem, config = self.journal, problem_of(self.task), self.config
        row = SearchRow(self.label, self.searcher, self.seed, self.evaluations)
        try:
            searcher = make_search(
                config, self.space(problem), problem.held_back, row, problem.backend, known=self.known(problem)
            )
        except InputError as error:  # channels are all that some decide on
            journal.add({"ended": "refused:", "reason": str(error)})
            return
        memory = SharedEvaluations(self.out / "evaluations.sqlite", problem)
        try:
            run_search(
                searcher,
                Recorded(journal, problem, memory, stop),
                evaluations=self.evaluations,
                lag=config.search.lag,
                snapshot=journal.read_snapshot(),
                thought=journal.thought,
            )
        except SearchFailedError as error:
            journal.add({"ended": "failed:", "reason": str(error)})
        else:
            journal.add({"ended": "finished"})


@dataclass(frozen=True)
class FineTuning:
    """A policy fine-tuned and tested, as its task says: a job."""

    out: Path
    task: Task
    policy: CompressionPolicy = field(hash=False)

    @property
    def label(self) -> str:
        return f"{self.task.name}, fine-tuning of {self.policy.digest[:8]}"

    @property
    def file(self) -> Path:
        tuned = digest_of({"config": self.task.config, "policy": self.policy.digest})
        return self.out / self.task.name / f"tuned-{tuned[:16]}.json"

    @property
    def ended(self) -> str | None:
        return None if self.accuracy is None else f"test accuracy {self.accuracy:.4f}"

    @property
    def accuracy(self) -> float | None:
        """On the test split; None where it is not known."""
        return float(json.loads(self.file.read_text())["test_accuracy"]) if self.file.exists() else None

    def run(self, stop: Stop) -> None:
        tuned = tuned_network(problem_of(self.task), self.policy)
        problem = problem_of(self.task)
        accuracy = evaluate(tuned.module, problem.data.test, problem.metric)
        with atomic_path(self.file) as temporary:
            temporary.write_text(json.dumps({"policy": self.policy.digest, "test_accuracy": accuracy}))


def tuned_network(problem: Problem, policy: CompressionPolicy) -> Compressed:
    """The network of a policy, trained further as the config says with all that the policy does in force."""
    options = training_options(problem.config.fine_tune)
    found = problem.compressor().compress(policy)
    return fine_tune(found, lambda module: train(module, problem.data, options))
