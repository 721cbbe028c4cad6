"""Seconds an episode takes: the environment (walk, compress, evaluate) and the agent's update apart.

MobileNetV1 on digits at 32 px, 50 % of its MACs, 357 validation images, least-squares reconstruction from 1,000
calibration images with 10 points each, one thread. AMC's published code takes 2.0 s + 0.05 s at this setting on a
machine of the same class; its MobileNet has the ImageNet stem (stride 2), the default here. The weights are random:
what an episode costs does not depend on them. CPU time stands beside the clock's, for machines that do other work.

    OMP_NUM_THREADS=1 python benchmarks/episode.py [--stem cifar] [--episodes 30] [--parts]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch.utils.data import default_collate

from automl.compression import CompressionOptions, Compressor
from automl.compression.running import Images, RunningNetwork
from automl.data import load_data
from automl.evaluation import PolicyEvaluator
from automl.metrics import accuracy
from automl.models import build_model
from automl.searchers import Searcher, make_searcher
from backends.counting import CountingBackend
from search_spaces.capture import PrunableNetwork
from search_spaces.channel_space import ChannelSpace
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy

T = TypeVar("T")
Seconds = tuple[float, float]
"""By the clock, and of CPU time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stem", choices=("cifar", "imagenet"), default="imagenet", help="its stride: 1 or 2")
    parser.add_argument("--episodes", type=int, default=30, help="timed episodes, after the agent's warm-up of 2")
    parser.add_argument("--parts", action="store_true", help="also time the parts of an evaluation")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    data = load_data("digits", {"size": 32})
    images, _ = default_collate(list(data.train))
    model = build_model("mobilenet_v1", {"stem": arguments.stem}, classes=10, input_shape=data.input_shape)
    network = PrunableNetwork(model, images[:2])
    start = time.perf_counter()
    compressor = Compressor(network, images, CompressionOptions())
    print(
        f"{arguments.stem} stem, {network.graph.macs / 1e6:.1f} MMACs; statistics {time.perf_counter() - start:.2f} s"
    )

    constraint = Constraint("macs", network.graph.macs / 2)
    evaluator = PolicyEvaluator(compressor, data.val, [constraint], CountingBackend(), accuracy)
    space = ChannelSpace.build(network.graph)
    searcher = make_searcher(
        "ddpg", space=space, constraint=constraint, seed=0, evaluations=arguments.episodes, options={"warmup": 2}
    )
    environment, update, policies = [], [], []
    for _ in range(arguments.episodes + 3):  # the first update and what torch builds once are not counted
        (policy, evaluation), seconds = timed(lambda: episode(searcher, evaluator))
        environment.append(seconds)
        _, seconds = timed(lambda policy=policy, evaluation=evaluation: searcher.tell(policy, evaluation))
        update.append(seconds)
        policies.append(policy)
    print(f"environment  {spread(environment[3:])}\nupdate       {spread(update[3:])}")
    if arguments.parts:
        for name, times in parts(evaluator, policies[3:], default_collate(list(data.val))[0]).items():
            print(f"  {name:<12} {spread(times)}")


def episode(searcher: Searcher, evaluator: PolicyEvaluator) -> tuple[CompressionPolicy, Evaluation]:
    policy = searcher.ask()
    return policy, evaluator(policy)


def parts(
    evaluator: PolicyEvaluator, policies: Iterable[CompressionPolicy], validation: torch.Tensor
) -> dict[str, list[Seconds]]:
    """The steps of `PolicyEvaluator`, one by one."""
    compressor, images = evaluator.compressor, Images.of(validation)
    seconds: dict[str, list[Seconds]] = {}
    for policy in policies:
        module, compress = timed(lambda policy=policy: compressor.apply(policy))
        network, fold = timed(lambda module=module: RunningNetwork(module))
        _, forward = timed(lambda network=network: network.outputs(images))
        for name, value in (("compress", compress), ("fold", fold), ("forward", forward)):
            seconds.setdefault(name, []).append(value)
    return seconds


def timed(function: Callable[[], T]) -> tuple[T, Seconds]:
    start, start_cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, (time.perf_counter() - start, time.process_time() - start_cpu)


def spread(seconds: Sequence[Seconds]) -> str:
    """Median, fastest and slowest by the clock, and the median of the CPU time."""
    clock, cpu = zip(*seconds, strict=True)
    median = f"{statistics.median(clock):.3f} s (from {min(clock):.3f} to {max(clock):.3f})"
    return f"{median}, CPU {statistics.median(cpu):.3f} s"


if __name__ == "__main__":
    main()
