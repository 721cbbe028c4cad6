"""Which sub-networks a predictor learns from and is judged by, and what is on record of them."""

from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from automl.config import load_config
from automl.configured import search_space, untrained_graph
from automl.errors import TrimtabError
from automl.once_for_all.sampling import drawn, samples_of
from automl.predictors.samples import HELD_OUT, TRAIN
from automl.run.store import EvaluationRow, SearchRow, Store
from search_spaces.objective import Evaluation
from search_spaces.policy import CompressionPolicy
from search_spaces.space import SearchSpace


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    document = {
        "model": {"name": "lenet5"},
        "data": {"name": "digits", "args": {"size": 16}},
        "budget": {"metric": "macs", "ratio": 0.5},
        "space": {"weight_bits": [4, 8]},
    }
    config = load_config(document)
    return search_space(config, untrained_graph(config))


def test_they_are_distinct_seeded_and_of_the_supernets_decisions_alone(space: SearchSpace) -> None:
    first, again, other = (drawn(space, 40, 20, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert {split: len(policies) for split, policies in first.items()} == {TRAIN: 40, HELD_OUT: 20}
    digests = Counter(policy.digest for policies in first.values() for policy in policies)
    assert set(digests.values()) == {1}
    assert not any(layer.weight_bits for each in first.values() for policy in each for layer in policy.layers.values())
    macs = [space.graph.apply(policy).macs for policy in first[TRAIN]]
    assert macs[0] == min(macs)
    assert macs[1] == max(macs) == space.graph.macs


def test_a_space_with_fewer_is_drawn_from_to_the_end() -> None:
    document = {
        "model": {"name": "resnet20"},
        "data": {"name": "digits", "args": {"size": 16}},
        "budget": {"metric": "macs", "ratio": 0.5},
        "space": {"channels": False, "resolution": [8, 12]},
    }
    config = load_config(document)
    small = search_space(config, untrained_graph(config))
    found = drawn(small, 20, 10, 0)
    assert small.size == 3
    assert {split: len(policies) for split, policies in found.items()} == {TRAIN: 2, HELD_OUT: 1}


def test_what_failed_is_no_sample_and_nothing_else_is_an_error(tmp_path: Path) -> None:
    cost = {"macs": 1.0}
    rows = [(TRAIN, 0.5, None), (TRAIN, 0.0, "it broke"), (HELD_OUT, 0.75, None)]
    with closing(Store(tmp_path / "samples.sqlite")) as store:
        store.add_searches([SearchRow(split, "sample", 0, 2) for split in (TRAIN, HELD_OUT)])
        for number, (split, accuracy, error) in enumerate(rows):
            policy = CompressionPolicy.from_keep({f"conv{number}": 0.5})
            store.add(EvaluationRow(split, number, policy, Evaluation(accuracy, cost, 0.0, 0.1, error)))
    samples = samples_of(tmp_path / "samples.sqlite")
    assert {(each.accuracy, each.held_out) for each in samples} == {(0.5, False), (0.75, True)}
    with closing(Store(tmp_path / "failed.sqlite")) as store:
        store.add_searches([SearchRow(TRAIN, "sample", 0, 1)])
        broken = Evaluation(0.0, cost, 0.0, 0.1, "it broke")
        store.add(EvaluationRow(TRAIN, 0, CompressionPolicy(), broken))
    with pytest.raises(TrimtabError, match="no sub-network could be evaluated: it broke"):
        samples_of(tmp_path / "failed.sqlite")
