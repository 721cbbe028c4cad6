"""Every algorithm that `trimtab list algorithms` names, made for a space of channels and bits."""

from collections import deque

import pytest

from automl.searchers import make_searcher, searcher_names
from automl.testing.points import AdditiveAccuracy, small_space
from search_spaces.errors import InputError
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy

SPACE, PRICES = small_space()
BUDGET = Constraint("weight_bytes", 0.15 * SPACE.graph.weight_bytes)
NAMES = [name for name, _ in searcher_names() if name != "given"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gradient"])  # which knows no bits
def test_each_searches_channels_and_bits_within_the_budget(name: str) -> None:
    accuracy = AdditiveAccuracy(SPACE)
    searcher = make_searcher(name, space=SPACE, constraint=BUDGET, seed=0, evaluations=8, prices=PRICES)
    pending: deque[tuple[CompressionPolicy, float]] = deque()
    spent = 0.0
    while spent < 8 and not searcher.finished:
        pending.append((searcher.ask(), searcher.share))
        spent += searcher.share
        if len(pending) > 2:
            policy, share = pending.popleft()
            searcher.tell(policy, Evaluation(accuracy(SPACE.encode(policy)), {}, 0.0, 0.0, share=share))
    last = SPACE.graph.apply(pending[-1][0])
    assert last.weight_bytes <= BUDGET.limit
    assert last.treatments


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options_are_refused(name: str) -> None:
    if name in ("random", "uniform"):  # have none
        return
    with pytest.raises(InputError, match="has no option 'temprature'"):
        make_searcher(
            name, space=SPACE, constraint=BUDGET, seed=0, evaluations=8, prices=PRICES, options={"temprature": 1.0}
        )
