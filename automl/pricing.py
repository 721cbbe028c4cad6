"""What every policy of a search costs, by arithmetic alone."""

from backends.counting import CountingBackend
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy

BACKEND = CountingBackend()


def price(graph: ModelGraph, policy: CompressionPolicy | None = None) -> dict[str, float]:
    """What the network costs under a policy (None: as it is), by metric.

    Raises:
        InputError: the policy is not one for this network.
    """
    return BACKEND.estimate(graph if policy is None else graph.apply(policy)).as_metrics()
