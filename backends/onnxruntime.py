"""ONNX Runtime as a measured backend: many deploy there, and it is the yardstick for our own code."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from backends.measuring import Artefact, Measurement, measure
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph

if TYPE_CHECKING:
    import torch
    from torch import nn


class OnnxRuntimeBackend:
    """Networks exported to ONNX and timed in ONNX Runtime's CPU provider, all graph optimisations on."""

    name = "onnxruntime"

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def supports(self, graph: ModelGraph) -> tuple[str, ...]:
        """Reasons why the network cannot be measured: none is known from the graph alone."""
        return ()

    def measure(self, module: "nn.Module", example_input: "torch.Tensor") -> Measurement:
        """Exports the network in evaluation mode, checks its output against torch's, and times it.

        Raises:
            InputError: torch cannot export the network.
            TrimtabError: ONNX Runtime fails or answers wrongly.
        """
        from backends.torch_reference import reference_output

        with tempfile.TemporaryDirectory(prefix="trimtab-onnx-") as name:
            path = Path(name) / "model.onnx"
            export_onnx(module, example_input, path)
            return self.measure_file(path, example_input, reference_output(module, example_input))

    def measure_file(
        self, path: Path, example_input: "torch.Tensor", expected: npt.NDArray[Any] | None = None
    ) -> Measurement:
        """Times a model that is there already, such as one with quantised weights and activations.

        Args:
            path: of the ONNX file.
            example_input: [N, ...].
            expected: its output to 1e-4; None leaves it unchecked, as integers between layers are not that exact.

        Raises:
            TrimtabError: ONNX Runtime fails or answers wrongly.
        """
        example = example_input.detach().cpu().numpy()
        return measure([Artefact(self.name, path)], example, expected, threads=self.threads)[0]


def export_onnx(module: "nn.Module", example_input: "torch.Tensor", path: Path) -> None:
    """Writes the network in evaluation mode as ONNX, in one file.

    Raises:
        InputError: torch cannot export it.
    """
    import copy

    import torch

    from backends.torch_reference import root_cause

    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's and onnxscript's, about themselves
            torch.onnx.export(
                copy.deepcopy(module).eval(), (example_input,), path, dynamo=True, external_data=False, verbose=False
            )
    except Exception as error:  # whatever a user's module and the exporter raise
        raise InputError(f"the network cannot be exported to ONNX: {root_cause(error)}") from error


def open_session(model: Path | bytes, threads: int) -> Any:
    """A session of the CPU provider, all graph optimisations on.

    Products of float values with weights of 4 bits are computed in float32, as the model says; without being told so
    ONNX Runtime rounds the values to 8 bits.

    Args:
        model: a file; or its bytes, which cannot name weights in other files.
        threads: that it may use.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    given = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def bound_session(
    path: Path, example: npt.NDArray[Any], threads: int
) -> tuple[Callable[[], None], Callable[[], npt.NDArray[Any]]]:
    """A network ready to run again and again, input and output in place: (run, read the output)."""
    import onnxruntime as ort

    session = open_session(path, threads)
    binding = session.io_binding()
    binding.bind_ortvalue_input(session.get_inputs()[0].name, ort.OrtValue.ortvalue_from_numpy(example))
    name = session.get_outputs()[0].name
    binding.bind_output(name, "cpu")

    def run() -> None:
        session.run_with_iobinding(binding)

    def output() -> npt.NDArray[Any]:
        run()
        return np.asarray(binding.copy_outputs_to_cpu()[0])

    return run, output
