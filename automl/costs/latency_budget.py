"""A latency budget in figures: what the whole network takes, what is allowed, and what is held back of it.

The figures stand in the run directory, so that a resumed run goes on with the same ones, whatever the table has become.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from automl.config import Config
from automl.errors import InputError, UnreachableError
from automl.run.directory import write_json
from search_spaces.objective import Constraint

LEAST_MARGIN = 0.01
"""Two measurements of one network differ by about as much."""


@dataclass(frozen=True)
class Probe:
    """One network, by the table and by the clock.

    Attributes:
        table_s: sum of the latencies of its operators.
        measured_s: of the whole network, compiled, measured beside the others.
    """

    table_s: float
    measured_s: float


@dataclass(frozen=True)
class LatencyBudget:
    """The budget of a search whose policies are priced by a latency table.

    Attributes:
        baseline_s: seconds that the uncompressed network takes by the table.
        least_s: seconds of the cheapest policy of the space, by the table.
        limit_s: seconds that a policy may take by the table.
        ratio: share of the uncompressed network's latency that is allowed; None where the limit was given in seconds.
        margin: how far measured latencies may lie above the table's; the search holds that much back. None until known.
        probes: networks that the margin was found with, by name.
        chosen_limit_s: what the networks chosen in the end may take by the table, once the best has been measured.
    """

    baseline_s: float
    least_s: float
    limit_s: float
    ratio: float | None = None
    margin: float | None = None
    probes: Mapping[str, Probe] = field(default_factory=dict)
    chosen_limit_s: float | None = None

    @classmethod
    def of(cls, config: Config, baseline_s: float, least_s: float) -> Self:
        """The budget of a config; what is held back of it is known where the config says so, or nothing has to be."""
        if config.budget is None:
            raise InputError("a latency budget is a 'budget' with the metric latency_s")
        ratio = config.budget.ratio
        limit = config.budget.limit if ratio is None else ratio * baseline_s
        margin = 0.0 if config.search.mode == "accuracy" else config.measure.margin
        return cls(baseline_s, least_s, float(limit or 0.0), ratio, margin)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """What `write` wrote; None where there is nothing yet.

        Raises:
            InputError: the file is damaged.
        """
        try:
            values = json.loads(path.read_bytes())
            probes = {name: Probe(**probe) for name, probe in values["probes"].items()}
            budget = cls(**{**values, "probes": probes})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"{str(path)!r} is damaged: {error}") from None
        figures = [budget.baseline_s, budget.least_s, budget.limit_s]
        figures += [figure for figure in (budget.ratio, budget.margin, budget.chosen_limit_s) if figure is not None]
        # JSON's whole numbers have no bounds
        if not all(isinstance(figure, float | int) and abs(figure) <= sys.float_info.max for figure in figures):
            raise InputError(f"{str(path)!r} is damaged: it holds {figures}")
        return budget

    def write(self, path: Path) -> None:
        """Replace the file, atomically."""
        write_json(path, asdict(self))

    @property
    def constraint(self) -> Constraint:
        """What makes a policy feasible, by the table."""
        return Constraint("latency_s", self.limit_s)

    @property
    def held_back(self) -> Constraint:
        """What the searchers keep to: less than what is allowed, so that a measured network is still within it."""
        return Constraint("latency_s", self.limit_s / (1.0 + (self.margin or 0.0)))

    def checked(self) -> Self:
        """The budget as it is.

        Raises:
            UnreachableError: with its margin held back, no policy of the space can keep it.
        """
        amount, margin = self.constraint.amount, self.margin or 0.0
        if self.least_s > self.held_back.limit:
            raise UnreachableError(
                f"no policy meets the budget of {amount(self.limit_s)} once {margin:.1%} is held back for the table's "
                f"error: the cheapest takes {amount(self.least_s)}; raise the budget, lower space.lower_bound or "
                "space.keep, or set measure.margin"
            )
        return self

    def with_probes(self, probes: Mapping[str, Probe]) -> Self:
        """With the margin that these networks ask for; the uncompressed one is among them, as "baseline"."""
        excesses = [self.excess(probe, probes["baseline"]) for name, probe in probes.items() if name != "baseline"]
        return replace(self, margin=max([LEAST_MARGIN, *excesses]), probes=probes)

    def excess(self, probe: Probe, baseline: Probe) -> float:
        """How far a network's latency by the clock lies above what its latency by the table promises, as a share.

        Under a ratio the promise is a share of the uncompressed network's latency: what the table misses of both alike
        makes no difference.
        """
        missed = 1.0 if self.ratio is None else baseline.measured_s / baseline.table_s
        return probe.measured_s / (missed * probe.table_s) - 1.0

    def allowed_s(self, baseline_measured_s: float) -> float:
        """What a network may take by the clock, where the uncompressed one, measured beside it, takes so long."""
        return self.limit_s if self.ratio is None else self.ratio * baseline_measured_s
