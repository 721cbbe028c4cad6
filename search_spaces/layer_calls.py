"""Layers read off the calls of ATen operators: the module that makes such a call, on tensors that are not copied."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from search_spaces.exported import each

LAYERS = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d, "linear": nn.Linear}
"""ATen's operators and the modules that call them."""

TENSORS = ("weight", "bias", "running_mean", "running_var")
"""Arguments that a module holds under the same name."""

_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def read_layer(name: str, found: Mapping[str, Any], tensors: Mapping[str, Any]) -> nn.Module:
    """A convolution or linear layer in eval mode.

    Args:
        name: of the operator, one of `LAYERS`.
        found: its arguments.
        tensors: its weight and bias, None where there is none.
    """
    weight, bias = tensors["weight"], tensors["bias"]
    options: dict[str, Any] = {"bias": bias is not None, "device": "meta"}
    outputs, inputs, *kernel = weight.shape
    if name != "linear":
        inputs *= found["groups"]
        padding = found["padding"]
        options.update(
            kernel_size=tuple(kernel),
            stride=each(found["stride"], len(kernel)),
            padding=padding if isinstance(padding, str) else each(padding, len(kernel)),
            dilation=each(found["dilation"], len(kernel)),
            groups=found["groups"],
        )
    module: nn.Module = LAYERS[name](inputs, outputs, **options)
    module._parameters.update(weight=weight, bias=bias)
    return module.eval()


def read_batch_norm(found: Mapping[str, Any], tensors: Mapping[str, Tensor | None]) -> nn.Module:
    """A batch norm in eval mode.

    Args:
        found: arguments of the operator.
        tensors: by their names in the module, None where there is none.
    """
    source = found["input"].meta["val"]
    module: nn.Module = _BATCH_NORMS[source.ndim](
        source.shape[1],
        eps=found["eps"],
        momentum=found["momentum"],
        affine=tensors["weight"] is not None,
        track_running_stats=tensors["running_mean"] is not None,
        device="meta",
    )
    module._parameters.update(weight=tensors["weight"], bias=tensors["bias"])  # type: ignore[arg-type]
    if tensors["running_mean"] is not None:
        module._buffers.update({name: tensors[name] for name in ("running_mean", "running_var", "num_batches_tracked")})
    return module.eval()
