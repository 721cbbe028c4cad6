"""`trimtab profile`: measures ahead all operators that networks of a search space are made of."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from automl.config import Config
from automl.configured import search_space, untrained_graph
from automl.costs.latency import local_prices, priced_by_table
from automl.costs.pricing import LatencyBackend
from automl.errors import RunStoppedError, TrimtabError
from automl.progress import Progress
from automl.signals import StopSignal
from backends.operator_prices import RefusedOperatorError
from backends.recipes import Recipe
from search_spaces.channel_space import ChannelSpace
from search_spaces.graph import ModelGraph
from search_spaces.resolution import Resolution

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
    space, smallest = points.channels, points.cheapest().resolution
    sizes: list[Resolution | None] = [size.resolution for size in graph.resolutions] or [None]
    with local_prices(config) as prices:
        backend = priced_by_table(config.measure, graph, prices)
        recipes = recipes_of(space, lambda kept: [each for size in sizes for each in backend.recipes(kept, None, size)])
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
            least_s=_price(backend, space.least, smallest),
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


def _price(backend: LatencyBackend, kept: Sequence[int], resolution: Resolution | None = None) -> float | None:
    try:
        return backend.price(kept, None, resolution)
    except RefusedOperatorError:
        return None
