"""The network as ONNX (`model.onnx`), checked and run in ONNX Runtime before it counts as written."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.export import ExportedProgram

from automl.export.torch_export import check_answer
from search_spaces.errors import TrimtabError

FloatArray = npt.NDArray[np.float32]
INPUT, OUTPUT = "input", "logits"
_CHATTY = ("onnxscript", "onnx_ir", "torch.onnx")


def save_onnx(program: ExportedProgram, path: Path) -> None:
    """Translate a torch program, weights inside the one file, and compare the two on the program's example.

    Raises:
        TrimtabError: torch cannot translate the network, the result is no valid model, or it computes something else.
    """
    import onnx

    try:
        with quiet():
            converted = torch.onnx.export(
                program, (), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
            )
            if converted is None:
                raise TrimtabError("torch.onnx returned no model")
            converted.save(path, external_data=False)
            model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        images = program.example_inputs[0][0]
        outputs = load_onnx(path.read_bytes(), threads=1)(images.numpy())
        check_answer("ONNX Runtime", outputs, program.module(), images)
    except TrimtabError:
        raise
    except Exception as error:  # the exporter and the runtime raise classes of their own at every stage
        raise TrimtabError(f"the network cannot be exported to ONNX: {str(error).strip().splitlines()[0]}") from error


def load_onnx(model: bytes, threads: int) -> Callable[[FloatArray], FloatArray]:
    """A function from images [N, ...] to outputs [N, ...], computed by ONNX Runtime.

    The model is given as bytes, so that it cannot name weights in other files.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: FloatArray) -> FloatArray:
        output: FloatArray = session.run(None, {name: images})[0]
        return output

    return run


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
