"""MACs and parameters of the zoo against figures from outside, as torch counts them; no code of ours counts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from automl.models import build_model

IMAGENET, CIFAR = ((3, 224, 224), 1000), ((3, 32, 32), 10)


@pytest.mark.parametrize(
    ("figure", "name", "args", "task"),
    [
        ("mobilenet_v1", "mobilenet_v1", {}, IMAGENET),
        ("mobilenet_v1_x0.75", "mobilenet_v1", {"width": 0.75}, IMAGENET),
        ("mobilenet_v1_amc_0.5flops", "mobilenet_v1", {"channels": None}, IMAGENET),
        ("mobilenet_v2", "mobilenet_v2", {}, IMAGENET),
        ("resnet20_cifar_option_A", "resnet20", {}, CIFAR),
        ("resnet20_cifar_option_A", "plain20", {}, CIFAR),
        ("resnet56_cifar_option_A", "resnet56", {}, CIFAR),
    ],
)
def test_counts(
    oracles: Path, figure: str, name: str, args: dict[str, Any], task: tuple[tuple[int, int, int], int]
) -> None:
    expected = json.loads((oracles / "macs_params.json").read_text())["models"][figure]
    shape, classes = task
    if "channels" in args:
        args = {"channels": expected["channels"]}
    with torch.device("meta"):
        model = build_model(name, args, classes=classes, input_shape=shape)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *shape))
    assert counter.get_total_flops() // 2 == expected["macs"]
    assert sum(parameter.numel() for parameter in model.parameters()) == expected["params"]
