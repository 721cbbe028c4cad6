"""The mixed-precision environment of a config: bits under its budget, on held-out images or training ones."""

from pathlib import Path
from typing import Any

import pytest

import automl
from automl.environments import bit_price
from automl.errors import InputError
from automl.problem import Problem
from search_spaces.policy import CompressionPolicy

CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "baseline": {"epochs": 1},
    "budget": {"metric": "weight_bytes", "ratio": 0.15},
    "compression": {"calibration_images": 50},
    "fine_tune": {"epochs": 0},
    "measure": {"backend": "none"},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def episode(env: Any) -> tuple[float, dict[str, Any]]:
    env.reset(seed=0)
    env.action_space.seed(0)
    done = False
    while not done:
        _, reward, done, _, info = env.step(env.action_space.sample())
    return reward, info


def test_an_episode_keeps_the_budget_and_is_judged_by_images_of_its_kind() -> None:
    config = automl.load_config(CONFIG)
    held_out = Problem.build(config)
    whole = held_out.evaluator()(CompressionPolicy()).accuracy
    reward, info = episode(automl.make_env(config, "MixedPrecision"))
    assert info["cost"]["weight_bytes"] <= 0.15 * held_out.graph.weight_bytes
    assert reward == pytest.approx(10.0 * (info["evaluation"].accuracy - whole))
    faithful = automl.make_env(config, "MixedPrecision", faithful=True)
    evaluator: Any = faithful.unwrapped._evaluator  # type: ignore[attr-defined]
    on_training = evaluator(CompressionPolicy()).accuracy
    reward, info = episode(faithful)
    assert on_training != whole
    assert reward == pytest.approx(10.0 * (info["evaluation"].accuracy - on_training))


def test_the_bits_of_the_configs_space_are_chosen_from() -> None:
    space: dict[str, Any] = {"channels": False, "weight_bits": [2, 8], "activation_bits": [8]}
    env = automl.make_env({**CONFIG, "space": space, "search": {"algorithm": "random"}}, "MixedPrecision")
    _, info = episode(env)
    assert {layer.weight_bits for layer in info["policy"].layers.values()} <= {2, 8}
    assert {layer.activation_bits for layer in info["policy"].layers.values()} == {8}
    tied = {**CONFIG, "space": {**space, "activation_bits": [2, 8], "coupled_bits": True}}
    with pytest.raises(InputError, match="leave out tie, coupled_bits"):
        automl.make_env({**tied, "search": {"algorithm": "random"}}, "MixedPrecision")


def test_an_accelerators_budget_prices_the_bits() -> None:
    changes = {
        "budget": {"metric": "energy_j", "ratio": 0.7},
        "measure": {"backend": "none", "accelerator": "bit_fusion"},
    }
    problem = Problem.outline(automl.load_config({**CONFIG, **changes}))
    env = automl.make_env({**CONFIG, **changes}, "MixedPrecision")
    _, info = episode(env)
    bits = env.unwrapped.walk.bits()  # type: ignore[attr-defined]
    assert float(bit_price(problem)(bits)) == pytest.approx(info["cost"]["energy_j"])
    assert info["cost"]["energy_j"] <= problem.constraint.limit


def test_another_name_is_refused() -> None:
    with pytest.raises(InputError, match="there is no environment 'MixedPrecison'; did you mean 'MixedPrecision'"):
        automl.make_env(CONFIG, "MixedPrecison")
