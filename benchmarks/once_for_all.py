"""Does one supernet serve many devices as well as networks trained for each of them, and from how many on for less?

    trimtab supernet configs/glyphs_supernet.yaml --out DIR
    python benchmarks/once_for_all.py DIR [--stretch-minutes 150]

Of the supernet in DIR: the largest, a middle and the smallest sub-network, and the best one of each device. Each is
read from the supernet, fine-tuned (devices, in their runs), and trained alone from scratch for as many epochs as
its largest network and the supernet were trained together, by the recipe of the largest network. In stretches, as
`searchers.py`.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from stretches import Stop, run_jobs

from automl.cache import atomic_path, digest_of
from automl.configured import training_options
from automl.data.resized import resized
from automl.errors import RunStoppedError
from automl.once_for_all.directory import SupernetDirectory
from automl.problem import Problem
from automl.run.directory import RunDirectory
from automl.run.work import reinitialise
from automl.training import EpochReport, evaluate, train
from automl.training_state import TrainingState
from search_spaces.policy import CompressionPolicy


@cache
def problem_at(directory: Path) -> Problem:
    """The problem of a supernet's directory, its supernet read from there."""
    config = SupernetDirectory.open(directory).config().of_training()
    return Problem.outline(config, directory / "supernet.safetensors")


@dataclass(frozen=True)
class Alone:
    """An architecture trained alone: a job."""

    out: Path
    directory: Path
    name: str
    policy: CompressionPolicy = field(hash=False)

    @property
    def label(self) -> str:
        return f"{self.name}, trained alone"

    @property
    def file(self) -> Path:
        return self.out / f"alone-{self._key[:16]}.json"

    @property
    def _key(self) -> str:
        problem = problem_at(self.directory)
        config = problem.config
        assert config.supernet is not None
        return digest_of(
            {
                "policy": self.policy.digest,
                "data": problem.data.digest,
                "baseline": config.baseline.model_dump(),
                "epochs": config.supernet.training.epochs,
            }
        )

    @property
    def found(self) -> Mapping[str, Any] | None:
        """What it came to."""
        found: Mapping[str, Any] | None = json.loads(self.file.read_text()) if self.file.exists() else None
        return found

    @property
    def ended(self) -> str | None:
        return None if self.found is None else f"test accuracy {self.found['test']:.4f}"

    def run(self, stop: Stop) -> None:
        """Raises RunStoppedError where the stretch is over; it goes on from the last epoch."""
        problem = problem_at(self.directory)
        assert problem.config.supernet is not None
        options = training_options(problem.config.baseline)
        options = replace(options, epochs=options.epochs + problem.config.supernet.training.epochs)
        module = problem.compressor().apply(self.policy)
        reinitialise(module, options.seed)
        data = resized(problem.data, self.policy.resolution)
        start, state = time.perf_counter(), TrainingState(self.file.with_suffix(".pt"), self._key)

        def watch(_: EpochReport) -> None:
            if stop():
                raise RunStoppedError("the stretch is over")

        train(module, data, options, state=state, on_epoch=watch)
        found = {
            "policy": self.policy.digest,
            "epochs": options.epochs,
            "val": evaluate(module, data.val, problem.metric),
            "test": evaluate(module, data.test, problem.metric),
            "seconds": time.perf_counter() - start,
        }
        with atomic_path(self.file) as temporary:
            temporary.write_text(json.dumps(found))
        state.forget()


def architectures(directory: Path) -> dict[str, CompressionPolicy]:
    """By name: the ends of the space and its middle, and the best of every device that has been searched for."""
    problem = problem_at(directory)
    space = problem.space
    found = {
        "largest": CompressionPolicy({}, problem.graph.digest),
        "middle": space.decode((space.counts - 1) // 2),
        "smallest": space.decode(space.least),
    }
    for run in sorted((directory / "devices").iterdir()):
        policy = run / "best" / "policy.json"
        if policy.is_file():
            found[run.name] = CompressionPolicy.load(policy)
    return found


def report(directory: Path, jobs: Sequence[Alone]) -> Iterator[str]:
    """The table of architectures."""
    problem = problem_at(directory)
    compressor = problem.compressor()
    yield "| sub-network | MACs | parameters | of the supernet | fine-tuned | trained alone | supernet minus alone |"
    yield "|---|---|---|---|---|---|---|"
    for job in jobs:
        graph = problem.graph.apply(job.policy)
        data = resized(problem.data, job.policy.resolution)
        own = evaluate(compressor.apply(job.policy), data.test, problem.metric)
        alone = None if job.found is None else float(job.found["test"])
        cells = [
            job.name,
            f"{graph.macs:,}",
            f"{graph.params:,}",
            percent(own),
            percent(_summary(directory, job.name).get("best", {}).get("accuracy")),
            percent(alone),
            "" if alone is None else f"{100 * (own - alone):+.1f}",
        ]
        yield f"| {' | '.join(cells)} |"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _summary(directory: Path, device: str) -> Mapping[str, Any]:
    try:
        return RunDirectory.open(directory / "devices" / device).summary()
    except Exception:  # not a device, or not that far
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="of `trimtab supernet`")
    parser.add_argument("--stretch-minutes", type=float, default=150.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="of what is there; compute nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    directory: Path = arguments.directory.resolve()
    jobs = [Alone(directory / "alone", directory, *each) for each in architectures(directory).items()]
    if not arguments.report:
        done = run_jobs(jobs, arguments.processes, time.time() + 60.0 * arguments.stretch_minutes)
        print("Nothing is left." if done else "The stretch is over: run it again.", flush=True)
    print("\n".join(report(directory, jobs)))


if __name__ == "__main__":
    sys.exit(main())
