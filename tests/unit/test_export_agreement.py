"""When two engines' outputs count as the same."""

import numpy as np
import pytest
import torch
from torch import nn

from automl.compression.quantisation import activation_quantiser
from automl.export.agreement import MOST, compare, rounding_step
from search_spaces.number_formats import NumberFormat

OUTPUTS = np.linspace(-1.0, 3.0, 40, dtype=np.float32).reshape(4, 10)
EIGHT_BITS = 2.0**-8


def test_without_rounding_the_largest_difference_counts() -> None:
    one = np.zeros_like(OUTPUTS)
    one[2, 3] = 3.0
    assert compare(OUTPUTS + np.float32(0.9e-4) * one, OUTPUTS, 0.0).holds
    assert not compare(OUTPUTS + np.float32(1.1e-4) * one, OUTPUTS, 0.0).holds


def test_with_rounding_the_mean_square_counts_in_steps() -> None:
    one = np.zeros_like(OUTPUTS)
    one[2, 3] = 4.0  # the range
    assert compare(OUTPUTS + np.float32(0.09) * one, OUTPUTS, EIGHT_BITS).holds  # of 40 outputs
    assert not compare(OUTPUTS + np.float32(0.11) * one, OUTPUTS, EIGHT_BITS).holds
    assert compare(OUTPUTS + np.float32(0.06), OUTPUTS, EIGHT_BITS).holds
    assert not compare(OUTPUTS + np.float32(0.065), OUTPUTS, EIGHT_BITS).holds
    assert not compare(OUTPUTS + np.float32(0.065), OUTPUTS, 1.0).holds  # however coarse
    assert not compare(OUTPUTS + np.float32(0.001), OUTPUTS, 2.0**-16).holds


@pytest.mark.parametrize("step", [0.0, EIGHT_BITS])
def test_what_is_no_answer_never_agrees(step: float) -> None:
    shuffled = OUTPUTS[:, ::-1].copy()
    for wrong in (OUTPUTS[:, :1], OUTPUTS * np.float32("nan"), OUTPUTS * np.float32("inf"), shuffled, 0 * OUTPUTS):
        assert not compare(wrong, OUTPUTS, step).holds
    assert compare(0 * OUTPUTS, 0 * OUTPUTS, step).holds


@pytest.mark.parametrize(
    ("format", "step"),
    [
        (NumberFormat(8, "asymmetric", "tensor"), EIGHT_BITS),
        (NumberFormat(4, "symmetric", "tensor"), 2.0**-4),
        (NumberFormat(16, "bf16", "tensor"), 2.0**-7),
        (NumberFormat(16, "fp16", "tensor"), 2.0**-10),
        (NumberFormat(4, "power_of_two", "tensor"), 1.0),
    ],
)
def test_the_coarsest_activations_make_the_step(format: NumberFormat, step: float) -> None:
    assert rounding_step(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == 0.0
    fine = activation_quantiser(NumberFormat(16, "asymmetric", "tensor"))
    assert rounding_step(nn.Sequential(fine, nn.Linear(2, 2), activation_quantiser(format))) == step
    assert MOST == 4 * EIGHT_BITS
    assert torch.finfo(torch.bfloat16).eps == 2.0**-7
