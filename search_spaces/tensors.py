"""The constants of a captured network by the names of its operators: what a compiler of its graph needs beside it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from search_spaces.errors import InputError
from search_spaces.operators import Operator
from search_spaces.template import BatchNorm, Template, arguments

Array = npt.NDArray[Any]


class NetworkTensors:
    """Weights, statistics and other constants of a template, as numpy arrays that nobody may change."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._nodes = {node.name: node for node in template.graph.nodes}

    def layer(self, operator: Operator) -> tuple[Array, Array | None]:
        """Weight [O, I, ...] and bias [O] of a convolution or linear layer."""
        node = self._nodes[operator.name]
        if node.op == "call_module":
            module = self._template.module(node)
            weight, bias = module._parameters["weight"], module._parameters["bias"]
        else:
            found = arguments(node)
            weight, bias = self._value(found["weight"]), self._value(found["bias"])
        return _array(weight), None if bias is None else _array(bias)

    def batch_norm(self, operator: Operator) -> tuple[Array, Array]:
        """(scale, shift) [C], float64, of a batch norm in evaluation.

        Raises:
            InputError: it keeps no statistics, and so has no constant map.
        """
        module = self._template.module(self._nodes[operator.name])
        if not isinstance(module, BatchNorm) or module.running_mean is None or module.running_var is None:
            raise InputError(
                f"batch norm {operator.layer!r} has no running statistics: its output depends on the whole batch; "
                "train it with track_running_stats"
            )
        mean, variance = (_array(tensor).astype(np.float64) for tensor in (module.running_mean, module.running_var))
        scale = 1.0 / np.sqrt(variance + module.eps)
        if module.weight is not None:
            scale = scale * _array(module.weight)
        shift = -mean * scale
        return scale, shift if module.bias is None else shift + _array(module.bias)

    def constant(self, name: str) -> Array:
        """Value of an operator that depends on no input."""
        return _array(self._value(self._nodes[name]))

    def _value(self, value: Any) -> Any:
        return constant_value(self._template, value)


def constant_value(template: Template, value: Any) -> Any:
    """What a node that does not depend on the network's input gives; anything else stands for itself.

    Raises:
        InputError: the node depends on the input.
    """
    if isinstance(value, list | tuple):
        return type(value)(constant_value(template, item) for item in value)
    if not isinstance(value, fx.Node):
        return value
    if value.op == "get_attr":
        return template.tensors[str(value.target)]
    if value.op != "call_function" or value.meta.get("fed"):
        raise InputError(f"{value.name!r} depends on the network's input and is no constant")
    with torch.no_grad():
        given = {name: constant_value(template, item) for name, item in value.kwargs.items()}
        return value.target(*(constant_value(template, item) for item in value.args), **given)  # type: ignore[operator]


def _array(tensor: Any) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array
