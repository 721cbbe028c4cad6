"""The sub-networks that a predictor learns from and is judged by: drawn at random, evaluated side by side."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from automl.costs.pricing import price
from automl.errors import TrimtabError
from automl.predictors.samples import HELD_OUT, TRAIN, Sample
from automl.problem import Problem
from automl.run.store import EvaluationRow, SearchRow, Store
from automl.supernet.network import elastic_space
from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy
from search_spaces.space import Point, SearchSpace

TRIES = 1000
"""Points that were drawn before, one after the other, until the space counts as drawn from to the end."""

Watch = Callable[[int, int], None]


def drawn(space: SearchSpace, samples: int, held_out: int, seed: int) -> dict[str, list[CompressionPolicy]]:
    """Distinct sub-networks for each split, fewer where the space has no more.

    The smallest and the largest are to learn from; all others are uniform over the points of the space.

    Args:
        space: of the supernet; decisions on bits, zeros and ranks are left alone.
        samples, held_out: how many to learn from, and to be judged by.
        seed: of what is drawn.
    """
    elastic = elastic_space(space)
    points: list[Point] = []
    known: set[bytes] = set()
    for point in _points(elastic, np.random.default_rng(seed)):
        if len(points) == samples + held_out:
            break
        canonical = elastic.canonical(point)
        if canonical.tobytes() not in known:
            known.add(canonical.tobytes())
            points.append(canonical)
        elif len(known) >= elastic.size:
            break
    policies = [elastic.decode(point) for point in points]
    kept = round(len(policies) * held_out / max(samples + held_out, 1))  # a small space is split as asked for, too
    return {TRAIN: policies[: len(policies) - kept], HELD_OUT: policies[len(policies) - kept :]}


def _points(space: SearchSpace, generator: np.random.Generator) -> Iterator[Point]:
    yield space.least
    yield space.greatest
    for _ in range(TRIES * max(space.size, 1)):
        yield space.sample(generator)


def evaluate_samples(
    problem: Problem,
    policies: Mapping[str, Sequence[CompressionPolicy]],
    crew: Any,
    file: Path,
    watch: Watch,
) -> None:
    """Evaluate what is not on record yet; each evaluation is committed before the next is asked for.

    Args:
        problem: whose supernet it is.
        policies: by split.
        crew: see `automl.orchestration.crew.evaluators`.
        file: of the record.
        watch: told how many of how many are evaluated, several times a second.

    Raises:
        TrimtabError: an evaluator died of a sub-network, twice.
    """
    from automl.orchestration.crew import spread

    with closing(Store(file)) as store:
        store.add_searches([SearchRow(split, "sample", 0, len(each)) for split, each in policies.items()])
        done = {(row.search, row.number) for row in store.evaluations()}
        todo = {
            f"{split} {number}": (split, number, policy)
            for split, each in policies.items()
            for number, policy in enumerate(each)
            if (split, number) not in done
        }
        total = len(done) + len(todo)
        kept: set[str] = set()

        def keep(running: Sequence[str], results: Mapping[str, Evaluation]) -> None:
            for name in results.keys() - kept:
                store.add(EvaluationRow(*todo[name], results[name]))
                kept.add(name)
            watch(len(done) + len(kept), total)

        jobs = {
            name: lambda worker, policy=policy: worker.evaluate.remote(
                policy, price(problem.graph, policy, problem.backend)
            )
            for name, (_, _, policy) in todo.items()
        }
        spread(jobs, crew, keep)
        for split in policies:
            store.finish(split)


def samples_of(file: Path) -> list[Sample]:
    """What was evaluated; what failed is left out.

    Raises:
        TrimtabError: everything failed.
    """
    with closing(Store.read(file)) as store:
        rows = list(store.evaluations())
    found = [
        Sample(row.policy, row.evaluation.accuracy, row.search == HELD_OUT) for row in rows if not row.evaluation.error
    ]
    if rows and not found:
        raise TrimtabError(f"no sub-network could be evaluated: {rows[0].evaluation.error}")
    return found
