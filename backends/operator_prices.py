"""What operators cost on this device: looked up in its latency table, measured first where that knows nothing."""

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass

from backends.latency_table import Entry, LatencyTable
from backends.lease import measuring_turn
from backends.recipes import OperatorFailure, Recipe, SharedTimer, Timer
from backends.regression import LatencyRegression
from search_spaces.errors import TrimtabError

Progress = Callable[[int, int, float], None]
"""Told after each operator: how many of those missing are done, how many were missing, seconds left at this pace."""

_ATTEMPTS = 2
_TURN_S = 10.0
_PAUSE_S = 0.1
"""Evaluators who wait for the machine get in between two turns of measuring."""


class RefusedOperatorError(TrimtabError):
    """An operator that could not be measured, again and again, and so has no price.

    Attributes:
        kind, recipe: of the operator.
        reasons: what went wrong at each attempt.
    """

    def __init__(self, kind: str, recipe: str, reasons: Sequence[str]) -> None:
        self.kind, self.recipe, self.reasons = kind, recipe, tuple(reasons)
        told = "; ".join(dict.fromkeys(" ".join(reason.split()) for reason in self.reasons))
        super().__init__(
            f"operator {recipe} is refused: measuring it failed {len(self.reasons)} times ({told}); "
            "keep the layer's channels as they are or take another backend; a new run tries it again"
        )

    def __reduce__(self) -> tuple[type, tuple[str, str, tuple[str, ...]]]:
        return type(self), (self.kind, self.recipe, self.reasons)


@dataclass(frozen=True, slots=True)
class Estimate:
    """An operator's latency in seconds, and whether it was measured or predicted from others that were."""

    latency_s: float
    measured: bool


class OperatorPrices:
    """The latencies of operators on one kind of device. What is missing is measured and published operator by operator:
    a kill loses at most those at hand.

    An operator whose measurement fails twice is refused for as long as this object lives; refusals are not written
    down, since their cause may be gone tomorrow.

    Args:
        table: what is known, and where new entries go.
        timer: measures on the same device; on this machine one operator after the other, in turns with those who
            compute there.
    """

    def __init__(self, table: LatencyTable, timer: Timer) -> None:
        self.table = table
        self._timer = timer
        self._publishing = threading.Lock()
        self._refused: dict[str, RefusedOperatorError] = {}

    @property
    def notices(self) -> list[str]:
        """What became known of the table and the devices meanwhile, in a line each."""
        return [*self.table.notices, *(self._timer.notices if isinstance(self._timer, SharedTimer) else [])]

    @property
    def refused(self) -> Mapping[str, RefusedOperatorError]:
        """What has been refused so far, by recipe."""
        return dict(self._refused)

    def missing(self, recipes: Sequence[Recipe]) -> list[Recipe]:
        """Those without an entry, each once, in the order given."""
        unique = {recipe.recipe: recipe for recipe in recipes}
        known = self.table.get(unique)
        return [recipe for text, recipe in unique.items() if text not in known]

    def latencies(self, recipes: Sequence[Recipe], on_progress: Progress | None = None) -> dict[str, float]:
        """Seconds of each operator, by recipe; measures what is missing, in the order given.

        Raises:
            RefusedOperatorError: one of them is refused; what was measured before it stands in the table.
            TrimtabError: the table cannot be written, or the machine is not to be had.
        """
        texts = list(dict.fromkeys(recipe.recipe for recipe in recipes))
        known = self.table.get(texts)
        if len(known) < len(texts):
            for text in texts:
                if text in self._refused and text not in known:  # before time goes into the others
                    raise self._refused[text]
            self._measure_all(self.missing(recipes), on_progress, stop=True)
            known = self.table.get(texts)
        return {text: entry.latency_s for text, entry in known.items()}

    def fill(self, recipes: Sequence[Recipe], on_progress: Progress | None = None) -> list[RefusedOperatorError]:
        """Measures all that is missing, in the order given, and returns the refusals among them.

        Raises:
            TrimtabError: the table cannot be written, or the machine is not to be had.
        """
        missing = self.missing(recipes)
        self._measure_all([recipe for recipe in missing if recipe.recipe not in self._refused], on_progress, stop=False)
        return [self._refused[recipe.recipe] for recipe in missing if recipe.recipe in self._refused]

    def estimates(self, recipes: Sequence[Recipe], regression: LatencyRegression) -> dict[str, Estimate]:
        """Like `latencies` where time presses: nothing is measured, what is missing is predicted, and marked so."""
        known = self.table.get({recipe.recipe for recipe in recipes})
        return {
            recipe.recipe: Estimate(known[recipe.recipe].latency_s, measured=True)
            if recipe.recipe in known
            else Estimate(regression.predict(recipe), measured=False)
            for recipe in recipes
        }

    def _measure_all(self, missing: Sequence[Recipe], on_progress: Progress | None, *, stop: bool) -> None:
        """Measures and publishes; `stop`: raises the first refusal."""
        start = time.monotonic()
        with closing(self._measured(missing)) as measured:
            for done, refusal in enumerate(measured, 1):
                if on_progress is not None:
                    on_progress(done, len(missing), (time.monotonic() - start) / done * (len(missing) - done))
                if refusal is not None and stop:
                    raise refusal

    def _measured(self, missing: Sequence[Recipe]) -> Generator[RefusedOperatorError | None]:
        """The refusal, where it is one, of each operator, as soon as it is measured."""
        if isinstance(self._timer, SharedTimer):
            return self._together(missing, self._timer.width() if missing else 1)
        return self._one_by_one(missing)

    def _one_by_one(self, missing: Sequence[Recipe]) -> Generator[RefusedOperatorError | None]:
        """In turns with those who compute on this machine."""
        waiting = deque(missing)
        while waiting:
            with measuring_turn():
                turn_ends = time.monotonic() + _TURN_S
                while waiting:
                    yield self._measure(waiting.popleft())
                    if time.monotonic() >= turn_ends:
                        break
            if waiting:
                time.sleep(_PAUSE_S)

    def _together(self, missing: Sequence[Recipe], width: int) -> Generator[RefusedOperatorError | None]:
        """So many at once. What is under way is finished and published, also where nobody waits for the rest."""
        with ThreadPoolExecutor(width) as pool:
            try:
                for future in as_completed([pool.submit(self._measure, recipe) for recipe in missing]):
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _measure(self, recipe: Recipe) -> RefusedOperatorError | None:
        if self._known(recipe):
            return None  # another process has measured it meanwhile
        reasons = []
        for _ in range(_ATTEMPTS):
            try:
                entry = self._timed(recipe)
            except OperatorFailure as failure:
                reasons.append(failure.reason)
            else:
                with self._publishing:
                    self.table.publish(recipe.recipe, entry)
                return None
        self._refused[recipe.recipe] = RefusedOperatorError(recipe.kind, recipe.recipe, reasons)
        return self._refused[recipe.recipe]

    def _known(self, recipe: Recipe) -> bool:
        with self._publishing:
            return bool(self.table.get([recipe.recipe]))

    def _timed(self, recipe: Recipe) -> Entry:
        timing = self._timer.measure(recipe)
        try:
            return Entry(
                latency_s=float(timing.latency_s),
                p10_s=float(timing.p10_s),
                p90_s=float(timing.p90_s),
                runs=int(timing.runs),
                error=float(timing.error),
                structure=timing.structure,
                kind=recipe.kind,
                work=float(recipe.work),
                traffic=float(recipe.traffic),
                pace_s=float(timing.pace_s),
            )
        except ValueError as error:
            raise OperatorFailure(str(error)) from None
