"""Which Ray a process is to use: what `RAY_ADDRESS` names, as for Ray itself, or else one of its own."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from automl.errors import InputError

ADDRESS = "RAY_ADDRESS"
LOCAL = "local"


def cluster_address() -> str | None:
    """The cluster that runs here are to use; None for a local Ray of their own."""
    address = os.environ.get(ADDRESS, "").strip()
    return None if address in ("", LOCAL) else address


@contextmanager
def at_address(address: str | None) -> Iterator[None]:
    """Have sessions, those of child processes too, use a cluster for as long as the block lasts.

    Args:
        address: "host:port" of its head, "auto" for the cluster that this machine is a node of, "local" for none; None
            for what `RAY_ADDRESS` says.

    Raises:
        InputError: the address of a Ray client, whose driver would not run on a node.
    """
    if address is not None and "://" in address:
        raise InputError(
            f"an address is host:port or 'auto', got {address!r}; a run is driven on a node of the cluster: submit it "
            "as a job from elsewhere"
        )
    if address is None or (address == "auto" and cluster_address() is not None):
        yield
        return
    with environment({ADDRESS: address}):
        yield


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for Ray's processes; ours are as before when it ends."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
