"""The faithful walk reproduces AMC's budget bounding on MobileNetV1 at 224 x 224."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from automl.models import build_model
from automl.testing.problems import mobilenet_v1
from envs.channel_pruning import ChannelPruningWalk
from search_spaces.capture import PrunableNetwork
from search_spaces.channel_space import ChannelSpace
from search_spaces.graph import ModelGraph
from search_spaces.objective import Constraint


@pytest.fixture(scope="module")
def oracle(oracles: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((oracles / "amc_action_bounding.json").read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module", params=["by hand", "captured"])
def graph(request: pytest.FixtureRequest) -> ModelGraph:
    if request.param == "by hand":
        return mobilenet_v1()
    model = build_model("mobilenet_v1", {}, classes=1000, input_shape=(3, 224, 224))
    return PrunableNetwork(model, torch.zeros(1, 3, 224, 224), prove=False).graph


@pytest.mark.parametrize("through_action", [False, True], ids=["ratio", "action"])
def test_every_published_case(oracle: dict[str, Any], graph: ModelGraph, through_action: bool) -> None:
    assert graph.macs == oracle["macs_dense"]
    space = ChannelSpace.build(graph, oracle["lower_bound"], oracle["round_to"])
    for case in oracle["cases"]:
        walk = ChannelPruningWalk(space, Constraint("macs", case["budget_ratio"] * graph.macs), faithful=True)
        done = False
        while not done:
            if through_action:
                _, done = walk.step(np.array([walk.action(case["proposed"])], dtype=np.float32))
            else:
                _, done = walk.keep(case["proposed"])
        assert [3, *walk.kept()] == case["channels"]
        assert graph.with_kept(walk.kept()).macs == case["macs"]
        assert graph.apply(walk.policy()).macs == case["macs"]
