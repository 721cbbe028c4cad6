"""`trimtab profile`: measures ahead all operators that networks of a search space are made of."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from automl.config import Config
from automl.configured import search_space, untrained_graph
from automl.costs.latency import local_prices, priced_by_table
from automl.costs.pricing import LatencyBackend
from automl.errors import RunStoppedError, TrimtabError
from automl.progress import Progress
from automl.signals import StopSignal
from backends.cuts import Cuts
from backends.operator_prices import RefusedOperatorError
from backends.recipes import Recipe
from backends.table_backend import asked_of
from search_spaces.channel_space import ChannelSpace
from search_spaces.depth import DEPTH
from search_spaces.graph import ModelGraph
from search_spaces.resolution import Resolution
from search_spaces.space import Point, SearchSpace

Recipes = Callable[[Sequence[int]], Sequence[Recipe]]
"""The operators of the network where group i keeps kept[i] units."""

PAIR = 2


@dataclass(frozen=True)
class Profile:
    """What a latency table knows of a search space.

    Attributes:
        whole_s: seconds of the uncompressed network; None where one of its operators is refused.
        least_s: seconds of the cheapest policy; None where one of its operators is refused.
        operators: that networks of the space are made of.
        measured: how many of them were missing, and are in the table now.
        refused: those that cannot be measured.
        table: the file.
        entries: operators that it holds in all.
    """

    whole_s: float | None
    least_s: float | None
    operators: int
    measured: int
    refused: Sequence[RefusedOperatorError]
    table: Path
    entries: int


def profile(config: Config, progress: Progress) -> Profile:
    """Fill the latency table for a config's search space. What is measured is on disk at once.

    Raises:
        InputError: the config cannot work, or its backend cannot run the network.
        TrimtabError: stopped (SIGINT, SIGTERM) before the end, or the table cannot be written.
    """
    with StopSignal() as stop:
        return _profiled(config, progress, stop)


def _profiled(config: Config, progress: Progress, stop: StopSignal) -> Profile:
    def watch(done: int, total: int, left_s: float) -> None:
        progress.operators(done, total, left_s)
        stop.check()

    graph = untrained_graph(config)
    points = search_space(config, graph)
    space = points.channels
    least = asked_of(graph.apply(points.cheapest()))
    sizes: list[Resolution | None] = [size.resolution for size in graph.resolutions] or [None]
    variants = [(size, cuts) for size in sizes for cuts in _cuts(points)]
    with local_prices(config) as prices:
        backend = priced_by_table(config.measure, graph, prices)
        recipes = recipes_of(
            space, lambda kept: [each for variant in variants for each in backend.recipes(kept, None, *variant)]
        )
        missing = prices.prices.missing(recipes)
        progress.stage(f"Latency table: {len(recipes)} operators, {len(missing)} of them to be measured")
        try:
            stop.check()
            refused = prices.prices.fill(missing, watch)
        except RunStoppedError:
            left = len(prices.prices.missing(missing))
            raise TrimtabError(
                f"stopped with {left} of {len(recipes)} operators left to be measured; the same command goes on"
            ) from None
        table = prices.prices.table
        return Profile(
            whole_s=_price(backend, graph.kept),
            least_s=_price(backend, *least),
            operators=len(recipes),
            measured=len(missing) - len(refused),
            refused=refused,
            table=table.path,
            entries=len(table.entries()),
        )


def recipes_of(space: ChannelSpace, recipes: Recipes) -> list[Recipe]:
    """The operators of all networks of the space, each once; those of the whole and of the cheapest network first.

    An operator's shape follows from the groups that it reads and writes, mostly one or two: these are varied together
    over all that the space allows, the others left whole. Of operators on which more groups meet (behind a
    concatenation), only those are found that varying one group at a time gives; the rest is measured when it is needed.
    """
    found: dict[str, Recipe] = {}
    for kept in _networks(space):
        for recipe in recipes(kept):
            found.setdefault(recipe.recipe, recipe)
    return list(found.values())


def _cuts(space: SearchSpace) -> list[Cuts]:
    """What may be gone of blocks and kernels, so that operators are seen: each row of blocks at every depth, and all
    kernels at each width, with all blocks and with the fewest."""
    depths, kernels = (
        [number for number, each in enumerate(space.decisions) if each.dimension == dimension]
        for dimension in (DEPTH, "kernel")
    )
    points = [space.greatest]
    for number in depths:
        points += _with_choices(space, space.greatest, [number])
    fewest = space.greatest
    fewest[depths] = 0
    for blocks in (space.greatest, fewest):
        points += _with_choices(space, blocks, kernels)
    return list(dict.fromkeys(Cuts.of(space.graph.apply(space.decode(point))) for point in points))


def _with_choices(space: SearchSpace, point: Point, numbers: Sequence[int]) -> Iterator[Point]:
    """The point with every choice of some decisions, taken down together."""
    for choice in range(max((int(space.counts[number]) for number in numbers), default=0)):
        changed = point.copy()
        changed[list(numbers)] = np.minimum(choice, space.counts[list(numbers)] - 1)
        yield changed


def _networks(space: ChannelSpace) -> Iterator[tuple[int, ...]]:
    """Numbers of units to look at, so that every operator is seen."""
    whole = space.graph.kept
    yield whole
    yield space.least
    for groups in _meetings(space.graph):
        if len(groups) <= PAIR:
            yield from _varied(whole, groups, [space.choices(group) for group in groups])
            continue
        for rest in (whole, space.least):
            for group in groups:
                yield from _varied(rest, (group,), [space.choices(group)])


def _varied(kept: Sequence[int], groups: Sequence[int], choices: Sequence[Sequence[int]]) -> Iterator[tuple[int, ...]]:
    """The numbers of units with those of some groups replaced by every combination of choices."""
    for units in product(*choices):
        changed = list(kept)
        for group, count in zip(groups, units, strict=True):
            changed[group] = count
        yield tuple(changed)


def _meetings(graph: ModelGraph) -> list[tuple[int, ...]]:
    """Sets of groups that one operator reads and writes, each once; subsets of another one left out."""
    written = {operator.name: {group for group, _ in operator.extent.terms} for operator in graph.full_operators}
    sets: dict[frozenset[int], None] = {}
    for operator in graph.full_operators:
        met = set(written[operator.name]).union(*(written[name] for name in operator.inputs))
        sets[frozenset(met)] = None
    for layer in graph.full_layers:
        sets[frozenset(group for group, _ in (*layer.in_extent.terms, *layer.out_extent.terms))] = None
    return [tuple(sorted(met)) for met in sets if met and not any(met < other for other in sets)]


def _price(backend: LatencyBackend, kept: Sequence[int], *rest: Any) -> float | None:
    try:
        return backend.price(kept, *rest)
    except RefusedOperatorError:
        return None
