"""The machine's lease: whoever measures has the machine alone, whoever computes shares it with others who do.

Two lock files in the cache, held between processes and runs, and let go by the kernel when their holder dies:

- `machine.lease`: evaluators hold it shared, a measurer alone.
- `machine.gate`: measurers hold it shared from the moment they want the machine; an evaluator needs it alone for an
  instant before it starts. So once a measurer waits, the evaluators that run end and no further one begins.

The files must lie on a local disk (locks on NFS depend on its server). A lease is not reentrant: whoever holds one must
not ask for another.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from search_spaces.errors import TrimtabError

LEASE_WAIT_S = 600.0
_POLL_S = 0.001
_LONGEST_POLL_S = 0.02


def cache_root() -> Path:
    """The cache that all runs of a user share: `$TRIMTAB_CACHE` or `~/.cache/trimtab`."""
    root = os.environ.get("TRIMTAB_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "trimtab"


@contextmanager
def shared_lease(timeout_s: float = LEASE_WAIT_S) -> Iterator[None]:
    """Beside others who compute, never beside a measurement: what evaluators work under.

    Raises:
        TrimtabError: the machine was being measured on all that time, or the lock files cannot be made.
    """
    busy = f"the machine has been measuring for {timeout_s:g} s; wait for that process or stop it"
    with ExitStack() as held:
        with file_lock(cache_root() / "machine.gate", shared=False, timeout_s=timeout_s, busy=busy):
            held.enter_context(
                file_lock(cache_root() / "machine.lease", shared=True, timeout_s=timeout_s, busy=busy),
            )
        yield


@contextmanager
def exclusive_lease(timeout_s: float = LEASE_WAIT_S) -> Iterator[None]:
    """The machine alone, as soon as those who compute now have ended: what a clock is read under.

    Raises:
        TrimtabError: others kept the machine all that time, or the lock files cannot be made.
    """
    busy = f"another process has been measuring or computing for {timeout_s:g} s; wait for it or stop it"
    with (
        measuring_turn(timeout_s),
        file_lock(cache_root() / "machine.lease", shared=False, timeout_s=timeout_s, busy=busy),
    ):
        yield


@contextmanager
def measuring_turn(timeout_s: float = LEASE_WAIT_S) -> Iterator[None]:
    """Several measurements in a row: no evaluator begins within it, also between one exclusive lease and the next.

    Without it every measurement would wait for what began since the last one. The exclusive leases within may be taken
    by other processes. Seconds at a time: evaluators stand still.

    Raises:
        TrimtabError: the lock file was not to be had all that time, or cannot be made.
    """
    busy = f"other processes kept the machine for {timeout_s:g} s; wait for them or stop them"
    with file_lock(cache_root() / "machine.gate", shared=True, timeout_s=timeout_s, busy=busy):
        yield


@contextmanager
def file_lock(path: Path, *, shared: bool, timeout_s: float, busy: str) -> Iterator[None]:
    """Holds a lock file, which is made where there is none, shared or alone.

    Raises:
        TrimtabError: it was taken all that time (the message is `busy` and the path), or cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise TrimtabError(f"cannot make the lock file {path} ({error.strerror}); set TRIMTAB_CACHE") from None
    _descriptors.add(descriptor)
    try:
        _acquire(descriptor, shared, time.monotonic() + timeout_s, f"{busy} (lock {path})")
        yield
    finally:
        if descriptor in _descriptors:  # else we are a forked child, which has let go of it
            _descriptors.discard(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # at once, also where a child is just between fork and exec
            os.close(descriptor)


def _acquire(descriptor: int, shared: bool, deadline: float, busy: str) -> None:
    mode, pause = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, _POLL_S
    while True:  # flock knows no timeout
        try:
            fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
            return
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                raise TrimtabError(f"cannot lock files here ({error.strerror}); set TRIMTAB_CACHE") from None
        if time.monotonic() >= deadline:
            raise TrimtabError(busy)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_POLL_S)


_descriptors: set[int] = set()


def _forget_inherited() -> None:
    """A forked child lets go of its copies: a lock that was held must not outlive the process that took it."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_forget_inherited)
