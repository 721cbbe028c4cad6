"""`search.init_from`: an agent begins with what another one has learnt, on another budget or network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from automl.config import load_config
from automl.config_sections import SearchSection
from automl.orchestration.search_loop import run_search
from automl.orchestration.searches import make_search
from automl.orchestration.transfer import agent_file, initial_agent
from automl.run.directory import RunDirectory, write_atomically
from automl.run.store import SearchRow
from automl.searchers import make_searcher
from automl.searchers.agent_options import AGENTS
from automl.searchers.agents import AgentSearcher
from automl.searchers.base import State
from automl.testing.problems import AdditiveEvaluator, conv_chain
from search_spaces.channel_space import ChannelSpace
from search_spaces.errors import InputError
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy
from search_spaces.space import SearchSpace

SMALL = {"hidden": 16, "batch": 8, "step_code": False}
CHAIN, LONGER = conv_chain((16, 32, 32)), conv_chain((16, 16, 32, 32, 64))


def searcher(
    name: str, graph: Any = CHAIN, agent: State | None = None, ratio: float = 0.5, **options: Any
) -> AgentSearcher:
    found = make_searcher(
        name,
        space=ChannelSpace.build(graph),
        constraint=Constraint("macs", ratio * graph.macs),
        seed=1,
        evaluations=20,
        options={**SMALL, **options},
        agent=agent,
    )
    assert isinstance(found, AgentSearcher)
    return found


class Kept:
    """Evaluates at once, and keeps the last snapshot."""

    def __init__(self, graph: Any = CHAIN) -> None:
        self.policies: list[CompressionPolicy] = []
        self.snapshot = b""
        self._evaluate = AdditiveEvaluator(graph, Constraint("macs", graph.macs))

    def submit(self, number: int, policy: CompressionPolicy, share: float) -> None:
        self.policies.append(policy)

    def result(self, number: int) -> Evaluation:
        return self._evaluate(self.policies[number])

    def save(self, rewards: Any, snapshot: bytes | None) -> None:
        self.snapshot = snapshot or self.snapshot


def trained(name: str, **options: Any) -> bytes:
    """The last snapshot of a search, which stands for its end."""
    kept = Kept()
    run_search(searcher(name, **options), kept, evaluations=20, lag=2)
    return kept.snapshot


def state_of(content: bytes) -> State:
    length = int.from_bytes(content[:8], "little")
    document = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["trimtab"])
    assert document["told"] == 20
    return load(content), document["searcher"]


@pytest.mark.parametrize("name", list(AGENTS))
def test_another_network_begins_with_the_networks_of_the_agent_alone(name: str) -> None:
    state = state_of(trained(name))
    begun = searcher(name, LONGER, agent=state, ratio=0.3)
    mine, values = begun.state()
    for key, array in mine.items():
        if key.split("/")[0] in begun._agent.NETWORKS:
            assert (array == state[0][key]).all(), key
    assert not any("_adam/" in key for key in mine)
    assert (values["asked"], values["told"], values["begun"]) == (0, 0, True)
    assert len(mine["proposed"]) == 0

    fresh = searcher(name, LONGER, ratio=0.3)
    evaluate = AdditiveEvaluator(LONGER, Constraint("macs", LONGER.macs))
    proposals = []
    for each in (begun, fresh):
        policies = []
        for _ in range(4):
            policies.append(each.ask())
            each.tell(policies[-1], evaluate(policies[-1]))
        proposals.append(policies)
    assert proposals[0] != proposals[1]
    resumed = searcher(name, LONGER, agent=state, ratio=0.3)
    resumed.restore(*begun.state())
    assert resumed.ask() == begun.ask()


def test_a_begun_agent_acts_at_once_with_little_noise() -> None:
    state = state_of(trained("ddpg"))
    begun = searcher("ddpg", agent=state)
    assert (begun._options.sigma, begun._options.warmup) == (0.15, 1)  # type: ignore[attr-defined]  # DDPG's
    seen = np.repeat(np.random.default_rng(0).random((1, 11), dtype=np.float32), 500, 0)
    with torch.no_grad():
        mean = begun._agent.actor(torch.tensor(seen[:1])).item()
    off = begun._agent.explore(seen, episode=0)[:, 0] - mean
    assert np.sqrt(np.mean(off**2)) < 0.35  # uniformly random actions: 0.58 or more


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    arrays, values = state_of(trained("ddpg"))
    broken = {**arrays, "actor/mu.0.weight": np.full_like(arrays["actor/mu.0.weight"], np.nan)}
    coded = state_of(trained("ddpg", step_code=True))
    for name, agent, options, said in (
        ("sac", (arrays, values), {}, "the agent in it is 'ddpg'; take the snapshot of a search by 'sac'"),
        ("ddpg", (arrays, {}), {}, "no agent is in it"),
        ("ddpg", (arrays, values), {"hidden": 8}, r"actor/mu.0.bias of shape \[16\], this search needs \[8\]"),
        ("ddpg", ({}, values), {}, "of shape None"),
        ("ddpg", (broken, values), {}, "is damaged: actor/mu.0.weight is not finite"),
        ("ddpg", coded, {"step_code": True}, "step_code false"),
        ("random", (arrays, values), {}, r"search.init_from is for agents \(ddpg, td3, sac, ppo\), got .* 'random'"),
    ):
        with pytest.raises(InputError, match=said) as refusal:
            searcher(name, LONGER, agent=agent, **options)
        assert "\n" not in str(refusal.value)


def section(path: Path | str, algorithm: str = "ddpg") -> SearchSection:
    return SearchSection(algorithm=algorithm, init_from=str(path))


def test_a_file_or_the_first_seed_of_a_run_is_taken(tmp_path: Path) -> None:
    content = trained("ddpg")
    folder = tmp_path / "searchers"
    folder.mkdir()
    for name in ("ddpg-10", "random-0", "ddpg-x"):
        (folder / f"{name}.safetensors").write_bytes(b"")
    (folder / "ddpg-2.safetensors").write_bytes(content)
    for path in (tmp_path, folder / "ddpg-2.safetensors"):
        assert agent_file(section(path)) == content
        state = initial_agent(section(path))
        assert state is not None
        assert state[1]["agent"] == "ddpg"
    assert initial_agent(SearchSection()) is None


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    content = trained("ddpg")
    (tmp_path / "half").write_bytes(content[: len(content) // 2])
    (tmp_path / "other").write_bytes(save({"x": np.zeros(3)}))
    unlike = save({"x": np.zeros(3)}, {"trimtab": json.dumps({"format": 1, "searcher": 7})})
    (tmp_path / "unlike").write_bytes(unlike)
    with pytest.raises(InputError, match=r"search.init_from is for agents .*, got algorithm 'evolution'"):
        initial_agent(section(tmp_path, "evolution"))
    for name, said in (
        ("none", "No such file"),
        ("half", "is damaged"),
        ("other", "is damaged"),
        ("unlike", "cannot be read"),
        ("", "has no search by 'ddpg'"),
    ):
        with pytest.raises(InputError, match=said) as refusal:
            initial_agent(section(tmp_path / name))
        assert "search.init_from" in str(refusal.value)
        assert "\n" not in str(refusal.value)


def test_a_run_keeps_the_agent_that_it_began_with(tmp_path: Path) -> None:
    """Its config file tells where that came from, its config where it is now."""
    document = {
        "model": {"name": "resnet20"},
        "data": {"name": "digits"},
        "budget": {"metric": "macs", "ratio": 0.5},
        "search": {"algorithm": "ddpg", "init_from": "elsewhere"},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(document))
    config = load_config(tmp_path / "config.yaml")
    assert config.search.init_from == str(tmp_path / "elsewhere")
    directory = RunDirectory.create(tmp_path / "run", config)
    assert directory.config() == config
    write_atomically(directory.agent_file, trained("ddpg"))
    assert directory.config().search.init_from == str(directory.agent_file.resolve())
    assert str(tmp_path / "elsewhere") in directory.config_file.read_text()

    state = initial_agent(directory.config().search)
    space = SearchSpace.of_channels(ChannelSpace.build(CHAIN))
    constraints = [Constraint("macs", 0.5 * CHAIN.macs)]
    small = config.model_copy(update={"search": config.search.model_copy(update={"options": SMALL})})
    begun = make_search(small, space, constraints, SearchRow("ddpg-0", "ddpg", 0, 9), agent=state)
    assert isinstance(begun, AgentSearcher)
    assert begun._agent.begun
    make_search(small, space, constraints, SearchRow("random-0", "random", 0, 9), agent=state)  # its own business
