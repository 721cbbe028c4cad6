"""Where actors run: what owns state on the driver's node, for files and locks are there; all else anywhere."""

from time import time_ns
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def this_node() -> str:
    """The id of the node that this process runs on."""
    node: str = ray.get_runtime_context().get_node_id()
    return node


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """What an actor's `scheduling_strategy` is to be for it to run here, or not at all."""
    return NodeAffinitySchedulingStrategy(this_node(), soft=False)


def nodes() -> list[dict[str, Any]]:
    """The nodes that the cluster's head knows of, dead ones too, as Ray describes them."""
    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return found


def node_lives(node: str) -> bool:
    """Whether a node is part of the cluster, as far as its head knows."""
    return any(each["NodeID"] == node and each["Alive"] for each in nodes())


def free_name(name: str) -> str:
    """The name for an actor, as the dashboard shows it; with a number behind it where another has it by now."""
    try:
        ray.get_actor(name)
    except ValueError:
        return name
    return f"{name}-{time_ns()}"
