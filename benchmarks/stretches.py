"""Long benchmarks in stretches: a few processes take the jobs in turn, and each goes on where it was."""

import argparse
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from filelock import FileLock, Timeout

from automl.errors import RunStoppedError

Stop = Callable[[], bool]
"""Whether the stretch is over."""


class Job(Protocol):
    """A piece of work that writes down what it has done; it is sent to other processes."""

    @property
    def label(self) -> str:
        """For people."""

    @property
    def file(self) -> Path:
        """That it writes; a lock stands beside it."""

    @property
    def ended(self) -> str | None:
        """How it ended, in a few words; None where it has not."""

    def run(self, stop: Stop) -> None:
        """Do it, or the rest of it.

        Raises:
            RunStoppedError: the stretch is over.
        """


def parser_of(documentation: str | None, *, evaluations: int) -> argparse.ArgumentParser:
    """What every benchmark of searches may be told."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the results (default: in the cache)")
    parser.add_argument("--stretch-minutes", type=float, default=150.0)
    parser.add_argument("--evaluations", type=int, default=evaluations, help="of each search")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="of what is there; compute nothing")
    return parser


def run_jobs(jobs: Sequence[Job], processes: int, deadline: float) -> bool:
    """Work on the jobs in their order until `time.time()` is at the deadline; then stop where they can go on.

    Nothing else is lost by a kill than what was being computed. A job that raises is reported, and tried again when
    the benchmark is run again.

    Returns:
        Whether all have ended.
    """
    left = [job for job in jobs if job.ended is None]
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers' arithmetic; they import it anew
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(left, deadline, os.getpid())) for _ in range(processes) if left]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return all(job.ended is not None for job in jobs)


def _work(jobs: Sequence[Job], deadline: float, parent: int) -> None:
    """Take each job that no other process has."""
    torch.set_num_threads(1)

    def stop() -> bool:
        return time.time() > deadline or os.getppid() != parent

    for job in jobs:
        job.file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(job.file.with_suffix(".lock"), timeout=0):  # let go by the kernel where its holder dies
                if job.ended is not None or stop():
                    continue
                job.run(stop)
                print(f"{job.label}: {job.ended}", flush=True)
        except Timeout:
            continue
        except RunStoppedError:
            return
        except Exception:  # one searcher's mistake must not keep the others from being tried
            print(f"{job.label}:\n{traceback.format_exc()}", flush=True)
