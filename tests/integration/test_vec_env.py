"""Joint and low-rank environments of a config, alone and side by side on a real Ray; agents learn on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import PPO

import automl
from automl.errors import InputError

CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "baseline": {"epochs": 1},
    "space": {"weight_bits": [2, 4, 8]},
    "budget": {"metric": "weight_bytes", "ratio": 0.1},
    "search": {"algorithm": "random", "evaluators": 2},
    "compression": {"calibration_images": 50},
    "measure": {"backend": "none"},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_two_environments_are_rewarded_as_one_alone_and_an_agent_learns_on_them() -> None:
    config = automl.load_config(CONFIG)
    alone = automl.make_env(config, "Joint")
    together = automl.make_vec_env(config, "Joint", 2)
    try:
        together.seed(0)
        seen = together.reset()
        actions = np.random.default_rng(0).uniform(-1.0, 1.0, (8, 2, *together.action_space.shape)).astype(np.float32)
        done = False
        steps = 0
        while not done:
            seen, rewards, dones, infos = together.step(actions[steps])
            done = bool(dones.all())
            steps += 1
        assert infos[0]["policy"] != infos[1]["policy"]
        for index in range(2):
            assert alone.reset()[0].tolist() == seen[index].tolist()
            for action in actions[:steps, index]:
                last, reward, ended, _, info = alone.step(action)
            assert ended
            assert info["policy"] == infos[index]["policy"]
            assert reward == pytest.approx(rewards[index])
            assert last.tolist() == infos[index]["terminal_observation"].tolist()
        agent = PPO("MlpPolicy", together, n_steps=4, batch_size=4, seed=0, device="cpu")
        agent.learn(8)
        assert agent.num_timesteps == 8
    finally:
        together.close()


def test_what_other_images_judge_is_refused() -> None:
    for space, options, message in (
        ({}, {}, "for the config's space: give it weight_bits"),
        (CONFIG["space"], {"faithful": True}, "judged by training images"),
    ):
        with pytest.raises(InputError, match=message):
            automl.make_vec_env({**CONFIG, "space": space}, "MixedPrecision", **options)
    with pytest.raises(InputError, match="there is no environment 'Jiont'; did you mean 'Joint'"):
        automl.make_vec_env(CONFIG, "Jiont")


@pytest.mark.parametrize("discrete", [False, True])
def test_an_environment_of_ranks_keeps_all_budgets_of_its_config(discrete: bool) -> None:
    budgets = [{"metric": "weight_bytes", "ratio": 0.6}, {"metric": "macs", "ratio": 0.8}]
    config = {**CONFIG, "space": {"channels": False, "rank": [0.2, 0.4], "ends": True}, "budget": budgets}
    env = automl.make_env(config, "LowRank", discrete=discrete)
    graph = env.unwrapped.walk.space.graph  # type: ignore[attr-defined]
    env.reset(seed=0)
    env.action_space.seed(0)
    done = False
    while not done:
        _, reward, done, _, info = env.step(env.action_space.sample())
    applied = graph.apply(info["policy"])
    assert any(layer.rank for layer in info["policy"].layers.values())
    assert applied.weight_bytes == info["cost"]["weight_bytes"] <= 0.6 * graph.weight_bytes
    assert applied.macs <= 0.8 * graph.macs
    assert reward == info["evaluation"].accuracy


def test_a_config_that_these_environments_do_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="takes a space of ranks alone: this one has channels, weight_bits, too"):
        automl.make_env(CONFIG, "LowRank")
    with pytest.raises(InputError, match=r"keep budgets, got search\.mode 'accuracy'"):
        automl.make_env({**CONFIG, "search": {"algorithm": "ddpg", "mode": "accuracy"}, "space": {}}, "Joint")
