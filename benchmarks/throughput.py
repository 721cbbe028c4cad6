"""Policies evaluated per second and core.

    OMP_NUM_THREADS=1 python benchmarks/throughput.py [evaluations] [batches] [--policies 30]

Evaluations: an evaluator that has warmed up on policies like those timed, against the plain way in the same run: deep
copy the network, compress it, run all validation images through it as `automl.training.evaluate` does. "From scratch"
that also gathers from 1,000 calibration images what the compressor needs, for every policy; "prepared" has it from
before. CPU time of one thread, so that other work on the machine counts little; both ways take turns. Networks have
random weights: what an evaluation costs does not depend on them.

Batches: the convolutions of eight policies that keep the same channels, 256 images, at once and one after another.

What the engine adds to that is in `scaling.py`.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from automl.compression import Compressor
from automl.compression.held import Held
from automl.config import load_config
from automl.metrics import accuracy
from automl.problem import Problem
from automl.training import evaluate
from search_spaces.policy import CompressionPolicy
from search_spaces.space import Point, SearchSpace

DATA: dict[str, dict[str, Any]] = {"digits": {"size": 16}, "glyphs": {"size": 16, "images": 2560}}
SPACES: dict[str, dict[str, Any]] = {
    "channels": {},
    "channels, bits": {"weight_bits": [4, 6, 8], "activation_bits": [4, 6, 8]},
}


def random_points(space: SearchSpace, count: int, rng: np.random.Generator) -> list[Point]:
    return [space.sample(rng) for _ in range(count)]


def single_changes(space: SearchSpace, count: int, rng: np.random.Generator) -> list[Point]:
    """The whole network with one decision changed, decision after decision, as sensitivities are measured."""
    points = []
    for decision in np.sort(rng.integers(0, len(space.decisions), count)):
        point = space.greatest.copy()
        point[decision] = rng.integers(0, space.counts[decision] - 1)
        points.append(point)
    return points


def neighbours(space: SearchSpace, count: int, rng: np.random.Generator) -> list[Point]:
    """One or two decisions of a member of a small population changed; the child takes the oldest one's place."""
    population, points = random_points(space, 4, rng), []
    for number in range(count):
        point = population[rng.integers(len(population))].copy()
        for decision in rng.integers(0, len(point), 1 + number % 2):
            point[decision] = rng.integers(0, space.counts[decision])
        points.append(point)
        population = [*population[1:], point]
    return points


SEQUENCES: dict[str, Callable[[SearchSpace, int, np.random.Generator], list[Point]]] = {
    "single changes": single_changes,
    "neighbours": neighbours,
    "random": random_points,
}


def evaluations(networks: Sequence[str], count: int) -> None:
    print(f"{'':52}{'evaluations a':>15}{'times plain':>26}")
    print(
        f"{'network, data, space':36}{'policies':16}{'second and core':>15}{'prepared':>12}{'from scratch':>14}",
        flush=True,
    )
    for name in networks:
        for data in DATA:
            for space in SPACES:
                time_rows(name, data, space, count)


def time_rows(name: str, data_name: str, space_name: str, count: int) -> None:
    problem = subject(name, data_name, space_name)
    compressor = problem.compressor()
    statistics_s = cpu(problem.compressor)
    for sequence, make in SEQUENCES.items():
        policies = [problem.space.decode(point) for point in make(problem.space, 2 * count, np.random.default_rng(0))]
        evaluator = problem.evaluator()
        for policy in policies[:count]:
            evaluator(policy)
        ours, prepared = [], []
        for number, policy in enumerate(policies[count:]):
            ours.append(cpu(partial(evaluator, policy)))
            if number % 3 == 0:  # the plain way takes long, and hardly varies
                prepared.append(cpu(partial(plainly, problem, compressor, policy)))
        mean, before = statistics.mean(ours), statistics.mean(prepared)
        print(
            f"{f'{name}, {data_name}, {space_name}':36}{sequence:16}{1 / mean:15.1f}{before / mean:12.1f}"
            f"{(statistics_s + before) / mean:14.1f}",
            flush=True,
        )


def plainly(problem: Problem, compressor: Compressor, policy: CompressionPolicy) -> float:
    """The plain way: a copy, compressed by what holds nothing of earlier policies, on all images."""
    fresh = copy.copy(compressor)
    fresh._corrected, fresh._observed = Held(0), Held(0)
    copy.deepcopy(problem.model)
    return evaluate(fresh.apply(policy), problem.data.val, accuracy)


def subject(name: str, data_name: str, space_name: str) -> Problem:
    config = load_config(
        {
            "model": {"name": name},
            "data": {"name": data_name, "args": DATA[data_name]},
            "space": SPACES[space_name],
            "baseline": {"epochs": 0},
            "budget": {"metric": "macs", "ratio": 0.5},
            "search": {"algorithm": "random"},
        }
    )
    return Problem.build(config)


def cpu(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def batches(policies: int = 8, images: int = 256) -> None:
    """ResNet-20's three kinds of convolutions at 16 px, channels last."""
    print(f"\n{f'convolutions of {policies} policies':30}{'one by one':>12}{'grouped':>12}{'by vmap':>12}")
    for channels, size in ((16, 16), (32, 8), (64, 4)):
        maps = torch.randn(policies, images, channels, size, size)
        taken = batch_times(maps, torch.randn(policies, channels, channels, 3, 3))
        row = "".join(f"{each / taken[0]:12.2f}" for each in taken)
        print(f"{f'{channels} channels, {size} px':30}{row}", flush=True)


@torch.no_grad()
def batch_times(maps: torch.Tensor, weights: torch.Tensor) -> list[float]:
    """Seconds of CPU time for convolutions [K, ...] one by one, as a grouped one and by vmap; the least of six."""
    each = [one.contiguous(memory_format=torch.channels_last) for one in maps]
    together = torch.cat(each, 1).contiguous(memory_format=torch.channels_last)
    ways: tuple[Callable[[], object], ...] = (
        lambda: [F.conv2d(one, weight, padding=1) for one, weight in zip(each, weights, strict=True)],
        lambda: F.conv2d(together, weights.flatten(0, 1), padding=1, groups=len(weights)),
        lambda: torch.vmap(partial(F.conv2d, padding=1))(maps, weights),
    )
    return [min(cpu(way) for _ in range(6)) for way in ways]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="evaluations, batches; both where none is named")
    parser.add_argument("--policies", type=int, default=30, help="timed, after as many to warm up on")
    parser.add_argument("--networks", nargs="+", default=["resnet20", "mobilenet_v2"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    what = arguments.what or ["evaluations", "batches"]
    if "evaluations" in what:
        evaluations(arguments.networks, arguments.policies)
    if "batches" in what:
        batches()


if __name__ == "__main__":
    main()
