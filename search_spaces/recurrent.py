"""Recurrent layers: their weight matrices by name, and the same layer on other tensors.

`nn.LSTM`, `nn.GRU` and `nn.RNN` keep several matrices in one module. For each direction of each of their layers
"weight_ih" reads the sequence, "weight_hh" the hidden state of the step before; both give all gates at once, one block
of `hidden_size` rows a gate. With a projection (`proj_size`) "weight_hr" makes the state out of what the gates give.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Recurrent = nn.LSTM | nn.GRU | nn.RNN

_Module = TypeVar("_Module", bound=nn.Module)

OPERATORS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}
"""ATen's operators and the modules that call them."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """One weight matrix of a recurrent layer.

    Attributes:
        weight: name of its parameter in the module.
        bias: that of its bias, None where it has none.
        layer: index of the layer in the stack.
        reads: "input", "state" or, of a projection, "gates".
    """

    weight: str
    bias: str | None
    layer: int
    reads: str


def kind(module: Recurrent) -> str:
    """ "lstm", "gru" or "rnn"."""
    return type(module).__name__.lower()


def gates(module: Recurrent) -> int:
    """Blocks of rows in each of its matrices."""
    return {"lstm": 4, "gru": 3, "rnn": 1}[kind(module)]


def directions(module: Recurrent) -> int:
    """2 where it reads the sequence from both ends."""
    return 2 if module.bidirectional else 1


def matrices(module: Recurrent) -> Iterator[Matrix]:
    """The weight matrices, in the order of their parameters."""
    for layer in range(module.num_layers):
        for direction in ("", "_reverse")[: directions(module)]:
            place = f"_l{layer}{direction}"
            for side, reads in (("ih", "input"), ("hh", "state")):
                yield Matrix(f"weight_{side}{place}", f"bias_{side}{place}" if module.bias else None, layer, reads)
            if module.proj_size:
                yield Matrix(f"weight_hr{place}", None, layer, "gates")


def read_call(name: str, found: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Recurrent | None:
    """The module that makes such a call of an ATen operator; None where the tensors are not named as a module's.

    Args:
        name: of the operator.
        found: its arguments.
        tensors: its weights and biases by their names in the module, in the operator's order.
    """
    layers, both, bias = found["num_layers"], found["bidirectional"], found["has_biases"]
    if f"weight_ih_l{layers - 1}" not in tensors or "weight_hh_l0" not in tensors:
        return None
    projection = tensors.get("weight_hr_l0")
    options: dict[str, Any] = {} if projection is None else {"proj_size": projection.shape[0]}
    if name.startswith("rnn"):
        options["nonlinearity"] = name.removeprefix("rnn_")
    blocks = {"lstm": 4, "gru": 3}.get(name, 1)
    module: Recurrent = OPERATORS[name](
        tensors["weight_ih_l0"].shape[1],
        tensors["weight_ih_l0"].shape[0] // blocks,
        layers,
        bias=bias,
        batch_first=found["batch_first"],
        dropout=found["dropout"] if layers > 1 else 0.0,
        bidirectional=both,
        device="meta",
        **options,
    )
    if list(tensors) != module._flat_weights_names:
        return None
    return with_parameters(module, tensors)


def with_parameters(module: Recurrent, tensors: Mapping[str, Any]) -> Recurrent:
    """The same layer on other tensors, which are not copied, in eval mode; its sizes are read off them."""
    new = shell(module)
    new._parameters.update(tensors)
    new.input_size = tensors["weight_ih_l0"].shape[1]
    new.hidden_size = tensors["weight_ih_l0"].shape[0] // gates(module)
    new.training = False
    with torch.no_grad():
        new._init_flat_weights()  # the list of tensors that forward reads
    return new


def shell(module: _Module) -> _Module:
    """A copy of a module that shares nothing with it but its tensors."""
    new = copy.copy(module)
    for key, value in module.__dict__.items():
        if isinstance(value, dict | set):  # hooks, parameters, buffers
            new.__dict__[key] = value.copy()
    return new
