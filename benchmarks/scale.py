"""What a search of a thousand evaluators would need.

    python benchmarks/scale.py [--actors 8 16 32 64] [--evaluators 1000]

The real loop, dispatcher and store with evaluators that sleep (see `scaling.py`), as many as fit here. What is measured
is the CPU time that each process takes for an evaluation: it is what remains when the machine is shared, and what a
cluster of any size adds up at the same few places. A search has one process that proposes, one that hands out and
records, and Ray has one `gcs_server` for all and one `raylet` a node; evaluators come and go beside them. So with E
evaluators of t seconds each a process that takes c seconds an evaluation is busy for E c / t of the time, and the first
to reach 1 is the bound. Whether c itself grows with the number of evaluators is what the rows of the table are for.
"""

import argparse
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import psutil
from scaling import SIGMA, Engine

from automl.orchestration.pool import ray_get
from automl.orchestration.ray_session import ray_session

PROCESSES = ("search", "dispatcher", "gcs_server", "raylet", "an evaluator")
SERIAL = PROCESSES[:-1]
"""Of which there is one, whatever the number of evaluators; of raylets one a node, here for all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--each", type=int, default=50, help="evaluations of an evaluator")
    parser.add_argument("--mean", type=float, default=0.5, help="seconds of an evaluation here")
    parser.add_argument("--evaluators", type=int, default=1000, help="to extrapolate to")
    arguments = parser.parse_args()
    print(f"CPU milliseconds an evaluation\n\n| evaluators | {' | '.join(PROCESSES)} | MiB an evaluator |")
    print("|---|" + "---|" * (len(PROCESSES) + 1))
    found = [measured(number, arguments.each, arguments.mean) for number in arguments.actors]
    print("\n".join(extrapolated(arguments.actors, found, arguments.evaluators)))


def measured(actors: int, each: int, mean_s: float) -> Mapping[str, float]:
    """CPU seconds an evaluation, of each process."""
    count = actors * each
    with ray_session(1), Engine.started(actors, count, mean_s, SIGMA) as engine:
        processes = dict(own(engine))
        sleepers = [psutil.Process(pid) for pid in engine.sleeping()]
        before = {name: cpu(process) for name, process in processes.items()}
        slept = sum(map(cpu, sleepers))
        engine.search(4 * actors)
        spent = {name: (cpu(process) - before[name]) / count for name, process in processes.items()}
        spent["an evaluator"] = (sum(map(cpu, sleepers)) - slept) / count
        size = np.mean([process.memory_full_info().uss for process in sleepers]) / 2**20
    cells = [str(actors), *(f"{1e3 * spent[name]:.2f}" for name in PROCESSES), f"{size:.0f}"]
    print(f"| {' | '.join(cells)} |", flush=True)
    return spent


def own(engine: Engine) -> Iterator[tuple[str, psutil.Process]]:
    """The processes that there is one of."""
    yield "search", psutil.Process()
    yield "dispatcher", psutil.Process(ray_get(engine.dispatcher.__ray_call__.remote(lambda _: os.getpid())))
    for child in psutil.Process().children(recursive=True):
        name = Path(child.exe()).name
        if name in ("gcs_server", "raylet"):
            yield name, child


def cpu(process: psutil.Process) -> float:
    """Seconds, user and system."""
    times = process.cpu_times()
    return float(times.user + times.system)


def extrapolated(actors: list[int], found: list[Mapping[str, float]], evaluators: int) -> Iterator[str]:
    """What bounds a search of so many evaluators."""
    yield f"\n| process | ms an evaluation, {evaluators} evaluators | an evaluation takes at least, s |\n|---|---|---|"
    for name in SERIAL:
        each = grown(actors, [spent[name] for spent in found], evaluators)
        yield f"| {name} | {1e3 * each:.2f} | {evaluators * each:.1f} |"
    yield (
        "\nBy a straight line through the logarithm of the number where the time rises with it, else by the mean: what "
        "an evaluation takes must not depend on how many wait, but Ray's own bookkeeping may."
    )


def grown(actors: list[int], seconds: list[float], evaluators: int) -> float:
    """Seconds at another number of evaluators."""
    if len(actors) < 2:
        return float(np.mean(seconds))
    slope, start = np.polyfit(np.log2(actors), seconds, 1)
    return float(max(np.mean(seconds), start + slope * np.log2(evaluators)))


if __name__ == "__main__":
    main()
