"""Every searcher of the project passes the conformance kit; `make_searcher` refuses what it does not know."""

import json
from datetime import date
from typing import Any

import pytest

from automl.searchers import Searcher, make_searcher, searcher_names
from automl.searchers.uniform import uniform_policy
from automl.testing.problems import conv_chain
from automl.testing.searchers import SearcherConformance
from search_spaces.channel_space import ChannelSpace
from search_spaces.errors import InputError
from search_spaces.objective import Constraint
from search_spaces.policy import CompressionPolicy, LayerPolicy

SMALL_AGENT = {"warmup": 4, "hidden": 24, "batch": 16}


class TestRandom(SearcherConformance):
    def make(self, space: ChannelSpace, constraint: Constraint, seed: int) -> Searcher:
        return make_searcher("random", space=space, constraint=constraint, seed=seed, evaluations=self.evaluations)


class TestUniform(SearcherConformance):
    keeps_grid = False

    def make(self, space: ChannelSpace, constraint: Constraint, seed: int) -> Searcher:
        return make_searcher("uniform", space=space, constraint=constraint, seed=seed, evaluations=self.evaluations)


class TestDDPG(SearcherConformance):
    def make(self, space: ChannelSpace, constraint: Constraint, seed: int) -> Searcher:
        return make_searcher(
            "ddpg",
            space=space,
            constraint=constraint,
            seed=seed,
            evaluations=self.evaluations,
            options=SMALL_AGENT,
        )


class TestPublishedDDPG(SearcherConformance):
    keeps_budget = False

    def make(self, space: ChannelSpace, constraint: Constraint, seed: int) -> Searcher:
        return make_searcher(
            "ddpg",
            space=space,
            constraint=constraint,
            seed=seed,
            evaluations=self.evaluations,
            faithful=True,
            options=SMALL_AGENT,
        )


class TestGiven(SearcherConformance):
    keeps_grid = False

    def make(self, space: ChannelSpace, constraint: Constraint, seed: int) -> Searcher:
        """Policies that random search proposes stand for what somebody wrote down."""
        proposer = make_searcher("random", space=space, constraint=constraint, seed=seed, evaluations=self.evaluations)
        return make_searcher(
            "given",
            space=space,
            constraint=constraint,
            seed=seed,
            evaluations=self.evaluations,
            options=written(*(proposer.ask() for _ in range(self.evaluations))),
        )


def written(*policies: CompressionPolicy) -> dict[str, Any]:
    """Options of the searcher that proposes them."""
    return {"policies": [json.loads(policy.to_json()) for policy in policies]}


def build(name: str = "random", **changes: Any) -> Searcher:
    graph = conv_chain()
    arguments = {"constraint": Constraint("macs", 0.5 * graph.macs), "seed": 0, "evaluations": 4, **changes}
    return make_searcher(name, space=ChannelSpace.build(graph), **arguments)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("rando", {}, "did you mean 'random'"),
        ("ddpg", {"options": {"warm_up": 3}}, "did you mean 'warmup'"),
        ("ddpg", {"options": {"warmup": 3.5}}, "of type int, got 3.5"),
        ("ddpg", {"options": {"warmup": True}}, "of type int, got True"),
        ("ddpg", {"options": {"tau": 0}}, r"tau lies in \(0, 1\]"),
        ("random", {"options": {"warmup": 3}}, "no option 'warmup'"),
        ("random", {"reward": "acuracy"}, "did you mean 'accuracy'"),
        ("random", {"mode": "resorce"}, "did you mean 'resource'"),
        ("random", {"mode": "accuracy"}, "use reward 'accuracy_flops'"),
        ("uniform", {"constraint": Constraint("macs", 1.0)}, "cheapest policy of the space needs"),
        ("random", {"constraint": Constraint("latency_s", 1.0)}, "got metric 'latency_s'"),
        ("ddpg", {"constraint": Constraint("params", 1e6), "faithful": True}, "published bounding counts MACs"),
        ("given", {}, "a list of at least one policy"),
        ("given", {"options": {"policies": []}}, "a list of at least one policy"),
        ("given", {"options": {"policy": {}}}, "no option 'policy'; did you mean 'policies'"),
        ("given", {"options": {"policies": [{"layers": {}}]}}, r"policies\[0\]: a policy has schema None"),
        ("given", {"options": {"policies": [{1: date(2020, 1, 1)}]}}, "not JSON serializable"),
        ("given", {"options": written(CompressionPolicy.from_keep({"conv9": 0.5}))}, "'conv9'"),
        ("given", {"options": written(CompressionPolicy({}, "0" * 64))}, "made for another model"),
    ],
)
def test_bad_input_is_refused_in_one_line(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        build(name, **changes)
    assert "\n" not in str(refusal.value)


def test_every_listed_searcher_can_be_made() -> None:
    assert {name for name, _ in searcher_names()} >= {"ddpg", "random", "uniform", "given"}
    for name, description in searcher_names():
        assert description
        searcher = build(name, options=written(CompressionPolicy()) if name == "given" else {})
        if name != "gradient":  # which has logits trained beforehand
            searcher.ask()


def test_given_policies_are_proposed_in_turns_whatever_they_do_and_cost() -> None:
    first, second = CompressionPolicy(), CompressionPolicy({"conv1": LayerPolicy(weight_bits=8, activation_bits=4)})
    searcher = build("given", options=written(first, second), constraint=Constraint("macs", 1.0))
    assert [searcher.ask() for _ in range(3)] == [first, second, first]


def test_the_uniform_policy_is_the_largest_within_the_budget() -> None:
    """Another unit for the narrowest group would need another ratio; the next ratio is over the budget."""
    space = ChannelSpace.build(conv_chain(), lower_bound=0.2)
    whole = space.graph
    for share in (0.1, 0.3, 0.5, 0.9):
        limit = share * whole.macs
        kept = whole.kept_units(uniform_policy(space, Constraint("macs", limit)))
        assert whole.with_kept(kept).macs <= limit
        ratio = min(units / group.width for units, group in zip(kept, whole.groups, strict=True))
        following = min(
            (units + 1) / group.width for units, group in zip(kept, whole.groups, strict=True) if units < group.width
        )
        assert ratio < following
        more = [
            max(units, int(following * group.width + 1e-9)) for units, group in zip(kept, whole.groups, strict=True)
        ]
        assert whole.with_kept(more).macs > limit
