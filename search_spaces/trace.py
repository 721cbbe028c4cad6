"""A network as a normalised fx graph: what labels are read from and what pruned networks are built from."""

import copy
import warnings

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from search_spaces.errors import InputError
from search_spaces.normalise import AliasedChangeError, normalise
from search_spaces.template import Template


def trace(model: nn.Module, example_input: Tensor) -> Template:
    """Export the model with `torch.export` and normalise its graph. The model is copied, never changed.

    Args:
        model: a network of one input tensor and one output tensor, batch first.
        example_input: [N, ...].

    Raises:
        InputError: torch cannot copy, run or export it, or it does not give one tensor.
    """
    if not isinstance(example_input, Tensor) or example_input.ndim < 2 or not len(example_input):
        raise InputError("a network is captured on an example input tensor of shape [N, ...], batch first")
    with warnings.catch_warnings():  # torch's own, about its internals
        warnings.simplefilter("ignore")
        try:
            model = copy.deepcopy(model).eval()
        except Exception as error:
            raise InputError(f"the model cannot be copied: {first_line(error)}; build it of plain modules") from None
        _check_runs(model, example_input)
        program = _export(model, example_input)
        try:
            return normalise(model, program)
        except AliasedChangeError:  # torch's own functionalisation knows aliases, but forgets dropout
            return normalise(model, program.run_decompositions({}))


def _check_runs(model: nn.Module, example_input: Tensor) -> None:
    given = f"an input of shape {tuple(example_input.shape)} ({str(example_input.dtype).removeprefix('torch.')})"
    try:
        with torch.no_grad():
            output = model(example_input)
    except Exception as error:
        raise InputError(
            f"the model cannot be run on {given}: {first_line(error)}; give the input shape it was made for"
        ) from None
    if not isinstance(output, Tensor) or output.ndim < 1 or output.shape[0] != example_input.shape[0]:
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"a network gives one tensor, batch first, got {got} for {given}; wrap the model so that it does"
        )


def _export(model: nn.Module, example_input: Tensor) -> ExportedProgram:
    """With a batch of any size; where the network forbids that, of the size of the example."""
    pair = example_input if len(example_input) > 1 else torch.cat([example_input, example_input])
    try:
        program = torch.export.export(model, (pair,), dynamic_shapes=({0: Dim.AUTO},))
        if all(isinstance(node.meta["val"].shape[0], torch.SymInt) for node in _ends(program)):
            return program
    except Exception:  # whatever the reason, the second attempt tells it
        program = None
    try:
        return torch.export.export(model, (example_input,))
    except Exception as error:
        raise InputError(
            f"torch.export cannot capture the model: {first_line(error)}; see its documentation on control flow that "
            "depends on data"
        ) from None


def _ends(program: ExportedProgram) -> list[fx.Node]:
    """The nodes of the network's input and output."""
    signature = program.graph_signature
    names = {*signature.user_inputs, *signature.user_outputs}
    return [node for node in program.graph.nodes if node.name in names]


def first_line(error: Exception) -> str:
    """The first line of an exception's message, to quote in one of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".")
