"""The network as ONNX (`model.onnx`), checked and run in ONNX Runtime before it counts as written."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.export import ExportedProgram

from automl.export.agreement import check_answer
from automl.export.torch_export import Batch
from backends.measuring import FloatArray
from backends.onnxruntime import open_session
from search_spaces.errors import TrimtabError

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT = "input", "logits"
_CHATTY = ("onnxscript", "onnx_ir", "torch.onnx")


def to_onnx(program: ExportedProgram, opset: int | None = None) -> "onnx.ModelProto":
    """Translate a torch program.

    Args:
        program: with an example of its input.
        opset: of the model; None for torch's own.

    Raises:
        TrimtabError: torch cannot translate it.
    """
    try:
        with _quiet():
            converted = torch.onnx.export(
                program,
                (),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=opset,
            )
    except Exception as error:  # the exporter raises classes of its own at every stage
        raise _failure(error) from error
    if converted is None:
        raise TrimtabError("torch.onnx returned no model")
    model: onnx.ModelProto = converted.model_proto
    return model


def save_onnx(model: "onnx.ModelProto", path: Path, module: nn.Module, images: torch.Tensor, batch: Batch) -> None:
    """Write a model, weights inside the one file, and compare it with the network that it is of.

    Args:
        model: to write.
        path: of the file.
        module: the network.
        images: [N, ...] to compare on.
        batch: how many of them the model takes at a time.

    Raises:
        TrimtabError: it is no valid model, or it computes something else.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
        content = model.SerializeToString()
        check_answer("ONNX Runtime", load_onnx(content, threads=1), module, images, batch)
    except TrimtabError:
        raise
    except Exception as error:  # so does the runtime
        raise _failure(error) from error
    path.write_bytes(content)


def load_onnx(model: bytes, threads: int) -> Callable[[FloatArray], FloatArray]:
    """A function from images [N, ...] to outputs [N, ...], computed by ONNX Runtime.

    The model is given as bytes, so that it cannot name weights in other files.
    """
    session = open_session(model, threads)
    name = session.get_inputs()[0].name

    def run(images: FloatArray) -> FloatArray:
        output: FloatArray = session.run(None, {name: images})[0]
        return output

    return run


def _failure(error: Exception) -> TrimtabError:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return TrimtabError(f"the network cannot be exported to ONNX: {first}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about itself: it prints, warns and logs on the way to a good model."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
