"""Policies that are written down instead of searched: the searcher of `trimtab compress`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from automl.searchers.base import Searcher, State
from search_spaces.errors import InputError, did_you_mean
from search_spaces.graph import ModelGraph
from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy


def given_policies(options: Mapping[str, Any]) -> list[CompressionPolicy]:
    """The policies of the searcher's options: `policies`, a list of what their files hold.

    Raises:
        InputError: none are given, another option is, or one is no policy.
    """
    for name in options:
        if name != "policies":
            raise InputError(f"searcher 'given' has no option {name!r}{did_you_mean(name, ['policies'])}")
    documents = options.get("policies")
    if not isinstance(documents, list) or not documents:
        raise InputError("search.options.policies is a list of at least one policy, as `trimtab compress` writes it")
    policies = []
    for index, document in enumerate(documents):
        try:
            policies.append(CompressionPolicy.from_json(json.dumps(document)))
        except (TypeError, InputError) as error:  # YAML has values that JSON lacks
            raise InputError(f"search.options.policies[{index}]: {error}") from None
    return policies


class GivenSearcher(Searcher):
    """Proposes the policies it is given in turns: as many evaluations as policies are enough.

    Args:
        graph: of the network that they are for.
        policies: at least one.

    Raises:
        InputError: one is not for this network.
    """

    def __init__(self, graph: ModelGraph, policies: Sequence[CompressionPolicy]) -> None:
        for policy in policies:
            graph.apply(policy)
        self._policies = tuple(policies)
        self._asked = 0

    def ask(self) -> CompressionPolicy:
        """The next policy."""
        policy = self._policies[self._asked % len(self._policies)]
        self._asked += 1
        return policy

    def tell(self, policy: CompressionPolicy, evaluation: Evaluation) -> None:
        """Nothing is learned, and nothing rewarded."""

    def state(self) -> State:
        """How many proposals were asked for."""
        return {}, {"asked": self._asked}

    def restore(self, arrays: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self._asked = int(values["asked"])
