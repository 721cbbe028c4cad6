"""One search: ask, evaluate elsewhere, tell, in an order that neither timing nor the number of evaluators changes.

Proposal n is asked for when exactly the results before n - lag are told. A search that was interrupted goes on from
its last snapshot; what was evaluated since stands in the store and is not evaluated again.
"""

import json
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from automl.errors import InputError, RunStoppedError, TrimtabError
from automl.searchers.base import Searcher
from backends.operator_prices import RefusedOperatorError
from search_spaces.objective import SHARE_ROUNDING, Evaluation
from search_spaces.policy import CompressionPolicy
from search_spaces.versions import require_version

SNAPSHOT_FORMAT = 4
REMEDY = "remove it from the run's directory 'searchers', and the search is repeated from its record"
FAILURES_IN_A_ROW = 10
SNAPSHOT_EVERY = 10
SNAPSHOT_SHARE = 0.001
"""Of its proposals that a search makes between two snapshots at least: snapshots grow, and replaying is quick."""


class SearchFailedError(TrimtabError):
    """So many evaluations failed in a row that going on makes no sense."""


class Evaluators(Protocol):
    """Whoever evaluates the proposals of one search, remembers the results, and keeps its snapshot."""

    def submit(self, number: int, policy: CompressionPolicy, share: float) -> None:
        """Have a proposal evaluated on that share of the validation images; returns at once."""

    def result(self, number: int) -> Evaluation:
        """Wait for a submitted proposal's evaluation, which is on record by then.

        Raises:
            RunStoppedError: the run is to stop.
        """

    def save(self, rewards: Mapping[int, float], snapshot: bytes | None) -> None:
        """Put rewards by proposal number on record, then replace the snapshot."""


@dataclass
class Position:
    """How far a search is: proposals before `asked` were proposed, results before `told` are told.

    Attributes:
        spent: on the proposals asked for, in whole evaluations.
        pending: the proposals told .. asked - 1, in order, each with its share of the validation images.
    """

    asked: int = 0
    told: int = 0
    spent: float = 0.0
    pending: deque[tuple[CompressionPolicy, float]] = field(default_factory=deque)


def run_search(
    searcher: Searcher,
    evaluators: Evaluators,
    *,
    evaluations: int,
    lag: int,
    snapshot: bytes | None = None,
    snapshot_every: int | None = None,
    thought: Callable[[Mapping[int, float]], None] = lambda _: None,
) -> None:
    """Run a search to its end, from the start or from a snapshot.

    Args:
        searcher: freshly made with the search's seed; it is restored where there is a snapshot.
        evaluators: see there.
        evaluations: how many proposals are evaluated at most; those on a part of the images count as such a part.
        lag: how many proposals ahead of the results the searcher is asked.
        snapshot: what `Evaluators.save` was last given by an earlier run of the same search.
        snapshot_every: proposals between two snapshots, more where a search is long (`SNAPSHOT_SHARE`). By default
            `SNAPSHOT_EVERY` or `lag`: a snapshot holds what is pending, too, of which there may be thousands.
        thought: told, before `Evaluators.save`, how many seconds the searcher took to make and to learn from each of
            the proposals since the last time, by number.

    Raises:
        RunStoppedError: the run was told to stop; a snapshot has been saved, or the last one stands.
        SearchFailedError: too many evaluations failed in a row.
        RefusedOperatorError: a proposal cannot be priced; what was found until then is on record.
    """
    position = Position() if snapshot is None else _restore(searcher, snapshot)
    for ahead, (policy, share) in enumerate(position.pending):
        evaluators.submit(position.told + ahead, policy, share)
    rewards: dict[int, float] = {}
    thinking: dict[int, float] = {}
    asking: dict[int, float] = {}  # of proposals that are not told yet
    failures = 0
    between = True  # two proposals: half way through one, the searcher is in no state to go on from
    saved_at = position.asked
    every = max(SNAPSHOT_EVERY, lag) if snapshot_every is None else snapshot_every

    def save(*, full: bool) -> None:
        nonlocal saved_at
        thought(dict(thinking))
        # Failures are told like any other result, but no snapshot contains the last ones: a resumed search may then
        # forget them and try again (see `Store.forget_failures`).
        evaluators.save(rewards, _snapshot(searcher, position) if full and not failures else None)
        saved_at = position.asked
        rewards.clear()
        thinking.clear()

    try:
        while True:
            more = position.spent < evaluations - SHARE_ROUNDING and not searcher.finished
            if more and position.asked - position.told <= lag:
                if position.asked - saved_at >= max(every, SNAPSHOT_SHARE * position.asked):
                    save(full=True)
                between = False
                started = perf_counter()
                policy = searcher.ask()
                asking[position.asked] = perf_counter() - started
                evaluators.submit(position.asked, policy, searcher.share)
                position.pending.append((policy, searcher.share))
                position.asked += 1
                position.spent += searcher.share
                between = True
                continue
            if not position.pending:
                break
            evaluation = evaluators.result(position.told)
            started = perf_counter()
            reward = searcher.tell(position.pending[0][0], evaluation)
            thinking[position.told] = asking.pop(position.told, 0.0) + perf_counter() - started
            position.pending.popleft()
            if reward is not None:
                rewards[position.told] = reward
            position.told += 1
            failures = 0 if evaluation.error is None else failures + 1
            if failures == min(FAILURES_IN_A_ROW, evaluations):
                many = f"{failures} evaluations failed in a row, the last" if failures > 1 else "its evaluation failed"
                raise SearchFailedError(f"{many} with: {evaluation.error}")
    except RunStoppedError:
        save(full=between)
        raise
    except (SearchFailedError, RefusedOperatorError):
        save(full=False)
        raise
    save(full=True)


def _snapshot(searcher: Searcher, position: Position) -> bytes:
    """The searcher's state and the position, as one safetensors file."""
    arrays, values = searcher.state()
    document = {
        "format": SNAPSHOT_FORMAT,
        "asked": position.asked,
        "told": position.told,
        "spent": position.spent,
        "pending": [policy.to_json(compact=True) for policy, _ in position.pending],
        "shares": [share for _, share in position.pending],
        "searcher": values,
    }
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    text = json.dumps(document)
    content: bytes = save(contiguous, {"trimtab": text, "sha256": _checksum(contiguous, text)})
    return content


def _checksum(arrays: Mapping[str, np.ndarray[Any, Any]], text: str) -> str:
    """Of what a snapshot says: a search that went on from a flipped bit would end elsewhere, and never say so."""
    checksum = sha256(text.encode())
    for name, array in sorted(arrays.items()):
        checksum.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return checksum.hexdigest()


def _restore(searcher: Searcher, snapshot: bytes) -> Position:
    arrays, document = read_snapshot(snapshot)
    try:
        searcher.restore(arrays, document["searcher"])
        policies = [CompressionPolicy.from_json(text) for text in document["pending"]]
        pending = deque(zip(policies, map(float, document["shares"]), strict=True))
        return Position(int(document["asked"]), int(document["told"]), float(document["spent"]), pending)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise InputError(f"the snapshot of a searcher does not fit this search: {error!r}; {REMEDY}") from None


def read_snapshot(snapshot: bytes) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """The arrays and the JSON document of a snapshot.

    Raises:
        InputError: the file is damaged, or of another version.
    """
    try:
        arrays = load(snapshot)
        header_length = int.from_bytes(snapshot[:8], "little")
        metadata = json.loads(snapshot[8 : 8 + header_length])["__metadata__"]
        document = json.loads(metadata["trimtab"])
        known = document["format"]
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"the snapshot of a searcher is damaged: {error}; {REMEDY}") from None
    require_version("the snapshot of a searcher", known, [SNAPSHOT_FORMAT], REMEDY, called="format")
    if metadata.get("sha256") != _checksum(arrays, metadata["trimtab"]):
        raise InputError(f"the snapshot of a searcher is damaged: its checksum is that of other content; {REMEDY}")
    return arrays, document
