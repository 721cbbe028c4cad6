"""The interface of every search algorithm: ask for policies, tell what they were worth."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy

State = tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]
"""A searcher's whole state: arrays by name, and what JSON can hold."""


class Searcher(ABC):
    """Proposes compression policies and learns from their evaluations.

    Proposals are numbered from 0. Asked for proposal n, a searcher has been told the results 0 .. n - 1 - lag, in
    order and no others, so neither timing nor the number of evaluators changes what it proposes. Everything random
    comes from the seed given to the constructor.

    Attributes:
        share: of the validation images that the latest proposal is to be evaluated on; what is evaluated on a part of
            them costs so much less, and can teach the searcher, but is no result of the search.
        finished: whether no further proposal is worth its evaluation, by the results told so far.
    """

    share: float = 1.0
    finished: bool = False

    @abstractmethod
    def ask(self) -> CompressionPolicy:
        """The next proposal."""

    @abstractmethod
    def tell(self, policy: CompressionPolicy, evaluation: Evaluation) -> float | None:
        """Learn the result of the oldest proposal that has not been told yet.

        Returns:
            The reward the searcher made of it, None where it knows no rewards.
        """

    @abstractmethod
    def state(self) -> State:
        """All that `restore` needs to go on as if there had been no interruption, pending proposals included."""

    @abstractmethod
    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
