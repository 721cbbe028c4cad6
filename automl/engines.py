"""What runs a network on a machine: the names that `measure.backend` takes, and what else is called after them."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs a network.

    Attributes:
        title: for people, in a few words.
        text: what it is and what it is good for, in a line.
        suffix: of the file that it runs.
    """

    title: str
    text: str
    suffix: str


ENGINES: Mapping[str, Engine] = {
    "tvm": Engine(
        "TVM",
        "machine code by TVM with our own schedules, measured here or on a remote device; latency budgets, finalists",
        ".so",
    ),
    "onnxruntime": Engine("ONNX Runtime", "ONNX Runtime on this machine's CPU; latency budgets, finalists", ".onnx"),
    "torch": Engine("torch", "torch's eager mode on this machine's CPU; latency budgets, finalists", ".pt2"),
    "torch_compiled": Engine("torch.compile", "torch.compile on this machine's CPU; finalists", ".pt2"),
    "tvm_cuda": Engine("TVM on CUDA", "machine code by TVM's own schedules on a CUDA device; finalists", ".so"),
    "torch_cuda": Engine("torch on CUDA", "torch's eager mode on a CUDA device; finalists", ".pt2"),
    "torch_cuda_compiled": Engine("torch.compile on CUDA", "torch.compile on a CUDA device; finalists", ".pt2"),
}
"""By name; `backends.table_backend.ENGINES` are those that a latency table can be made for."""
