"""How far a latency table may be trusted: networks by the table beside the same networks by the clock.

Before a search, a few policies are compiled and measured, and what the table promises too much is held back of the
budget. After it, the best policy is measured, and passed over for the next where it is over the budget all the same.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from automl.costs.latency_budget import LatencyBudget, Probe
from automl.costs.pricing import LatencyBackend, cost_of, point_prices
from automl.costs.probes import Timed
from automl.errors import TrimtabError
from automl.run.finalists import Compiled, Finalist
from automl.searchers import make_searcher
from backends.table_backend import asked_of
from search_spaces.policy import CompressionPolicy
from search_spaces.space import SearchSpace

PROBES, TRIES = 3, 30
"""Policies that the table's error is measured on, and how many are proposed to find so many different ones."""

CANDIDATES = 3
"""Policies that are measured until one is within the budget."""


def with_margin(latency: LatencyBudget, space: SearchSpace, backend: LatencyBackend, timed: Timed) -> LatencyBudget:
    """The budget with what must be held back of it, found on policies such as a search proposes.

    Args:
        latency: the budget.
        space: what is decided.
        backend: prices by the table.
        timed: measures.

    Raises:
        InputError: nothing is left of the budget that a policy of the space could keep.
    """
    graph = space.graph
    searcher = make_searcher(
        "random",
        space=space,
        constraint=latency.constraint,
        seed=0,
        evaluations=TRIES,
        cost=cost_of(graph, backend, "latency_s"),
        prices=None if space.channels_only else point_prices(space, backend),
    )
    found: dict[str, CompressionPolicy] = {}
    for _ in range(TRIES):
        policy = searcher.ask()
        found.setdefault(policy.digest, policy)
        if len(found) == PROBES:
            break
    policies = {"baseline": CompressionPolicy()}
    policies.update((f"random-{number}", policy) for number, policy in enumerate(found.values()))
    seconds = timed(policies)
    graphs = {name: graph.apply(policy) for name, policy in policies.items()}
    probes = {name: Probe(backend.price(*asked_of(each)), seconds[name]) for name, each in graphs.items()}
    return latency.with_probes(probes).checked()


def with_chosen_limit(latency: LatencyBudget, best: Callable[[float], Finalist | None], timed: Timed) -> LatencyBudget:
    """The budget with the limit, by the table, under which the best policy was found to keep it by the clock.

    Args:
        latency: the budget.
        best: the best policy that takes at most so many seconds by the table; None where there is none.
        timed: measures.
    """
    limit = latency.limit_s
    tried: list[tuple[float, float]] = []  # share of what is allowed that the best policy takes, and its limit
    for _ in range(CANDIDATES):
        finalist = best(limit)
        if finalist is None or finalist.table_latency_s is None:
            break
        seconds = timed({"baseline": CompressionPolicy(), finalist.name: finalist.policy})
        share = seconds[finalist.name] / latency.allowed_s(seconds["baseline"])
        tried.append((share, limit))
        if share <= 1.0:
            break
        limit = finalist.table_latency_s / share  # the next one is as much within the budget as this one is over it
    return replace(latency, chosen_limit_s=min(tried)[1] if tried else limit)


def check_code(compiled: Compiled, recipes: Sequence[str], measured: Mapping[str, str]) -> None:
    """See that a network holds the very code that the table measured.

    Args:
        compiled: by TVM.
        recipes: of the operators that its policy was priced by, as often as they are called.
        measured: hash of the code that stands in the table, by recipe; of some, where others were estimated.

    Raises:
        TrimtabError: it is made of other operators, or of the same ones in other code.
    """
    other = Counter(compiled.recipes)
    other.subtract(Counter(recipes))
    if wrong := sorted(recipe for recipe, count in other.items() if count):
        raise TrimtabError(
            f"network {compiled.name!r} was priced as something else than what was compiled: operator {wrong[0]} and "
            f"{len(wrong) - 1} more are called another number of times; that is a mistake of Trimtab's, report it"
        )
    for recipe, structure in compiled.structures.items():
        if measured.get(recipe, structure) != structure:
            raise TrimtabError(
                f"operator {recipe} is other code in network {compiled.name!r} than the latency table measured; "
                "Trimtab was changed while it ran, start it again"
            )
