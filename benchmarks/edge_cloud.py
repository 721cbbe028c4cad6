"""Do an edge accelerator and one in the cloud ask for other bits, and as HAQ found?

    python benchmarks/edge_cloud.py [--out DIR] [--picture docs/images/edge_cloud.svg] [--stretch-minutes 150]

MobileNetV1 on glyphs, bits of weights and of activations of every layer, priced by the models of HAQ's two accelerators
(BISMO on a Zynq-7020 and on a VU9P): no slower than with 5 bits throughout. HAQ (Wang et al., CVPR 2019) says of its
policies that on the edge depthwise layers get fewer bits for what they read, and in the cloud more bits than there, at
the expense of pointwise layers. In stretches, as `searchers.py`.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from xml.etree.ElementTree import Element

import numpy as np
import torch
from search_figures import Outcome, outcomes, percent
from search_jobs import Search, Task, prepare, problem_of
from searchers import GLYPHS
from stretches import parser_of, run_jobs

from automl.cache import cache_dir
from automl.config import load_config
from automl.costs.pricing import point_prices
from automl.problem import Problem
from automl.report import write_chart
from automl.report.axes import Frame, Scale, draw_axes
from automl.report.figures import WIDTH, chart_of
from automl.report.markup import append, tag
from automl.searchers import searcher_names
from search_spaces.layers import LayerSpec

ACCELERATORS = {"edge": "bismo_edge", "cloud": "haq_bismo"}
BITS = [2, 3, 4, 5, 6, 7, 8]
UNIFORM = 5
METRIC = "modelled_latency_s"
LEFT, RIGHT, HEAD, PANEL, FOOT = 60.0, 14.0, 58.0, 190.0, 56.0


def main() -> None:
    known = [name for name, _ in searcher_names()]
    parser = parser_of(__doc__, evaluations=200)
    parser.add_argument("--searcher", choices=known, default="auto" if "auto" in known else "evolution")
    parser.add_argument("--picture", type=Path, help="SVG file of the layers' bits")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out: Path = arguments.out or cache_dir("benchmarks", "edge_cloud")
    tasks = [task(name) for name in ACCELERATORS]
    searches = [
        Search(out, each, arguments.searcher, seed, arguments.evaluations)
        for seed in range(arguments.seeds)
        for each in tasks
    ]
    if not arguments.report:
        for each in tasks:
            prepare(each)
        done = run_jobs(searches, arguments.processes, time.time() + 60.0 * arguments.stretch_minutes)
        print("Nothing is left." if done else "The stretch is over: run it again.", flush=True)
    found = {each.name: outcomes([search for search in searches if search.task == each]) for each in tasks}
    bits = {name: mean_bits(own) for name, own in found.items() if own}
    layers = decided(problem_of(tasks[0]))
    print("\n".join(report(found, bits, layers)))
    if arguments.picture is not None and bits.keys() == ACCELERATORS.keys():
        print(f"wrote {write_chart(picture(bits, layers), arguments.picture)}")


def task(name: str) -> Task:
    """The search for one accelerator; its limit is what the network takes with few bits throughout."""
    values = {
        "model": {"name": "mobilenet_v1", "args": {"width": 0.5}},
        "data": GLYPHS,
        "baseline": {"epochs": 8, "batch_size": 128, "lr": 0.1},
        "space": {"channels": False, "weight_bits": BITS, "activation_bits": BITS},
        "budget": {"metric": METRIC, "ratio": 1.0},
        "measure": {"backend": "none", "accelerator": ACCELERATORS[name]},
    }
    problem = Problem.outline(load_config({**values, "search": {"algorithm": "random"}}))
    point = np.full((1, len(problem.space.decisions)), BITS.index(UNIFORM))
    limit = float(point_prices(problem.space, problem.backend)(point)[METRIC][0])
    return Task(name, name, {**values, "budget": {"metric": METRIC, "limit": limit}})


def decided(problem: Problem) -> list[LayerSpec]:
    """The layers whose bits are searched for, in execution order."""
    names = {target for decision in problem.space.decisions for target in decision.targets}
    return [layer for layer in problem.graph.full_layers if layer.name in names]


def mean_bits(found: Sequence[Outcome]) -> dict[str, tuple[float, float]]:
    """Layer -> bits of its weights and of what it reads, means over the seeds' best policies."""
    policies = [policy.layers for each in found if (policy := each.policy) is not None]
    return {
        name: (
            mean(layers[name].weight_bits or 32 for layers in policies),
            mean(layers[name].activation_bits or 32 for layers in policies),
        )
        for name in policies[0]
    }


def report(
    found: dict[str, list[Outcome]], bits: dict[str, dict[str, tuple[float, float]]], layers: Sequence[LayerSpec]
) -> Iterator[str]:
    """Accuracy, mean bits of each kind of layer, and whether that is what HAQ found."""
    kinds = {
        "depthwise": [layer.name for layer in layers if layer.depthwise],
        "pointwise": [layer.name for layer in layers if not layer.depthwise],
    }
    yield "| accelerator | accuracy, by seed | depthwise: weights | activations | pointwise: weights | activations |"
    yield "|---|---|---|---|---|---|"
    means: dict[tuple[str, str], tuple[float, float]] = {}
    for name, own in bits.items():
        for kind, members in kinds.items():
            weights, activations = zip(*(own[member] for member in members), strict=True)
            means[name, kind] = mean(weights), mean(activations)
        figures = [f"{value:.1f}" for kind in kinds for value in means[name, kind]]
        yield f"| {name} | {', '.join(percent(each.best) for each in found[name])} | {' | '.join(figures)} |"
    if bits.keys() != ACCELERATORS.keys():
        return
    fewer = means["edge", "depthwise"][1] < means["cloud", "depthwise"][1]
    traded = sum(means["cloud", "pointwise"]) < sum(means["edge", "pointwise"])
    yield ""
    yield f"Fewer bits for what depthwise layers read on the edge than in the cloud: {'yes' if fewer else 'NO'}."
    yield f"Fewer bits for pointwise layers in the cloud than on the edge: {'yes' if traded else 'NO'}."


def picture(bits: dict[str, dict[str, tuple[float, float]]], layers: Sequence[LayerSpec]) -> Element:
    """A panel for each accelerator: bits of weights upwards and of activations downwards, as in HAQ's figures."""
    chart = chart_of(WIDTH, len(bits) * (HEAD + PANEL + FOOT), "bits of each layer on the edge and in the cloud")
    for index, (name, own) in enumerate(bits.items()):
        append(chart, _panel(name, own, layers, index * (HEAD + PANEL + FOOT)))
    return chart


def _panel(name: str, own: dict[str, tuple[float, float]], layers: Sequence[LayerSpec], top: float) -> Element:
    frame = Frame(LEFT, top + HEAD, WIDTH - RIGHT, top + HEAD + PANEL)
    x = Scale(-0.5, len(layers) - 0.5, frame.left, frame.right)
    y = Scale(-max(BITS), max(BITS), frame.bottom, frame.top)
    heights = [-8.0, -4.0, 0.0, 4.0, 8.0]
    group = draw_axes(
        frame,
        x,
        y,
        x_ticks=list(range(len(layers))),
        y_ticks=heights,
        x_texts=[str(number + 1) for number in range(len(layers))],
        y_texts=[f"{abs(height):.0f}" for height in heights],
        x_title="layer, in execution order (first and last have 8 bits and are left out)",
        y_title=f"{name}: bits of weights above the line, of what is read below it; means over seeds",
    )
    for position, (kind, text) in zip(
        (LEFT, LEFT + 110), (("agent", "depthwise"), ("random", "pointwise")), strict=True
    ):
        append(group, tag("rect", class_=kind, x=position, y=top + 8, width=10, height=10))
        append(group, tag("text", text, x=position + 16, y=top + 17))
    half = (x(1) - x(0)) * 0.36
    for number, layer in enumerate(layers):
        weights, activations = own[layer.name]
        hint = f"{layer.name}: {weights:.1f} bits of weights, {activations:.1f} of what it reads"
        for low, high in ((0.0, weights), (-activations, 0.0)):
            bar = tag("rect", tag("title", hint), class_="agent" if layer.depthwise else "random")
            for key, value in (
                ("x", x(number) - half),
                ("y", y(high)),
                ("width", 2 * half),
                ("height", y(low) - y(high)),
            ):
                bar.set(key, f"{value:.1f}")
            append(group, bar)
    return group


if __name__ == "__main__":
    sys.exit(main())
