"""Bias correction: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019.

Quantised weights W' = W + E give outputs that are off by E E[x] on average. As the mean input is known from the
calibration data, that is taken off the bias, and the mean output of every channel is what it was.
"""

from math import prod

import torch
from torch import Tensor

from automl.compression.quantisation.base import Quantised
from search_spaces.errors import InputError


def bias_correction(weight: Tensor, quantised: Quantised | Tensor, mean_input: Tensor) -> Tensor:
    """What to add to a layer's bias, float32 [out].

    Args:
        weight: [out, in / groups, *kernel] of a convolution, [out, in] of a linear layer.
        quantised: the same, quantised (or changed otherwise).
        mean_input: mean of each input channel [in], which is exact where there is no padding; or of each place under
            the kernel [in, *kernel], which always is.

    Raises:
        InputError: means that do not fit the weight.
    """
    values = quantised.values if isinstance(quantised, Quantised) else quantised
    outputs, inner, kernel = weight.shape[0], weight.shape[1], tuple(weight.shape[2:])
    channels = mean_input.shape[0] if mean_input.ndim else 0
    groups = channels // inner
    if groups * inner != channels or not groups or outputs % groups or mean_input.shape[1:] not in ((), kernel):
        raise InputError(
            f"the mean input of a layer with weights {list(weight.shape)} is [in] or {['in', *kernel]}, got "
            f"{list(mean_input.shape)}"
        )
    error = (values.double() - weight.detach().double()).reshape(groups, outputs // groups, inner, prod(kernel))
    mean = mean_input.double().reshape(groups, inner, -1).expand(-1, -1, prod(kernel))
    return -torch.einsum("goik,gik->go", error, mean).flatten().float()
