"""The actor that evaluates policies and finishes networks.

Whoever is handed one imports this module, so what it does (`automl.run.work`), and torch, are loaded by itself alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from automl.orchestration.placement import this_node

if TYPE_CHECKING:
    from automl.costs.expected import ExpectedCosts
    from automl.run.finalist_folder import Trained
    from automl.run.finalists import Compiled, Finalist
    from automl.run.work import Told
    from automl.searchers.prior import Prior
    from search_spaces.objective import Evaluation
    from search_spaces.policy import CompressionPolicy


class Worker:
    """An actor; see `automl.run.work.Work`, and there for the methods.

    Args:
        given: of `Work`.
    """

    def __init__(self, *given: Any) -> None:
        from automl.run.work import Work

        self._work = Work(*given)

    def ready(self) -> str:
        """Answer when there is a worker: with the node that it is on."""
        return this_node()

    def evaluate(self, policy: "CompressionPolicy", cost: Mapping[str, float], share: float = 1.0) -> "Evaluation":
        """See `Work`."""
        return self._work.evaluate(policy, cost, share)

    def prior(self, costs: Optional["ExpectedCosts"]) -> "Prior":
        """See `Work`."""
        return self._work.prior(costs)

    def compile(self, policy: "CompressionPolicy", name: str, scratch: Path) -> "Compiled":
        """See `Work`."""
        return self._work.compile(policy, name, scratch)

    def train(self, finalist: "Finalist", unfinished: bytes | None, folder: "Told") -> "Trained":
        """See `Work`."""
        return self._work.train(finalist, unfinished, folder)

    def compile_finalist(self, finalist: "Finalist", folder: Path, scratch: Path) -> tuple["Compiled", str | None]:
        """See `Work`."""
        return self._work.compile_finalist(finalist, folder, scratch)
