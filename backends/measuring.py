"""Latency read off a clock: compiled networks timed side by side in a process that is thrown away.

An artefact is code, and code can crash or hang; so it is loaded in a child with bounded threads and a timeout, never
here. Within one call the artefacts take turns, so a busy machine slows all of them alike and ratios stay true.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from backends.lease import exclusive_lease
from search_spaces.errors import TrimtabError
from search_spaces.graph import ModelGraph

if TYPE_CHECKING:
    import torch
    from torch import nn

FloatArray = npt.NDArray[np.float32]

TOLERANCE = 1e-4
"""Largest max|a-b| / max|a| between an artefact's output and the expected one; a wrong answer has no latency."""

_UNSUPPORTED = {"lstm", "gru", "rnn"}


@dataclass(frozen=True, slots=True)
class Measurement:
    """Time of one inference.

    Attributes:
        latency_s: median seconds of one call.
        p10_s, p90_s: percentiles; far apart where the machine was busy.
        runs: calls that were timed.
        threads: threads the engine was allowed.
        engine: "tvm", "onnxruntime" or "torch"; with "_cuda" behind it where a CUDA device ran the network.
        max_error: max|a-b| / max|a| against the expected output; None where none was given.
        pace_s: the processor's pace meanwhile (see `backends.clock`); latencies of another time compare where they are
            brought to the same.
        details: the processor, the engine's version, and the target where it was compiled here.
    """

    latency_s: float
    p10_s: float
    p90_s: float
    runs: int
    threads: int
    engine: str
    max_error: float | None = None
    pace_s: float = 0.0
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Artefact:
    """A network in a file, and what runs it: "tvm" (.so), "onnxruntime" (.onnx) or "torch" (.pt2); for a CUDA device
    "tvm_cuda" or "torch_cuda"."""

    engine: str
    path: Path


def measure(
    artefacts: Sequence[Artefact],
    example: npt.NDArray[Any] | Sequence[npt.NDArray[Any]],
    expected: npt.NDArray[Any] | None = None,
    *,
    threads: int = 1,
    rounds: int = 100,
    timeout_s: float = 120.0,
) -> list[Measurement]:
    """Times the artefacts in turns: in each round a sample of about a millisecond of each.

    With several threads only those of one engine take turns. A pool's threads spin for a while when their work is done,
    on the very processors that another engine needs next.

    Args:
        artefacts: what to time.
        example: [N, ...] the input, float32; or a list of one for each artefact.
        expected: the output each must give, to `TOLERANCE`; None to leave the outputs unchecked.
        threads: threads each engine may use.
        rounds: samples of each artefact, at least one.
        timeout_s: after which the process is killed.

    Raises:
        TrimtabError: an artefact crashes, hangs, fails or answers wrongly (it is named), or another process keeps the
            machine busy measuring.
    """
    examples = [example] * len(artefacts) if isinstance(example, np.ndarray) else example
    found: dict[int, Measurement] = {}
    with exclusive_lease():
        for party in _parties(artefacts, threads):
            chosen = [artefacts[index] for index in party]
            inputs = [examples[index] for index in party]
            measured = _measure_in_turns(chosen, inputs, expected, threads, rounds, timeout_s)
            found.update(zip(party, measured, strict=True))
    return [found[index] for index in range(len(artefacts))]


def _parties(artefacts: Sequence[Artefact], threads: int) -> list[list[int]]:
    """Which artefacts share a process."""
    if threads == 1:
        return [list(range(len(artefacts)))]
    parties: dict[str, list[int]] = {}
    for index, artefact in enumerate(artefacts):
        pool = f"{artefact.engine} {index}" if artefact.engine == "onnxruntime" else artefact.engine  # one a session
        parties.setdefault(pool, []).append(index)
    return list(parties.values())


def _measure_in_turns(
    artefacts: Sequence[Artefact],
    examples: Sequence[npt.NDArray[Any]],
    expected: npt.NDArray[Any] | None,
    threads: int,
    rounds: int,
    timeout_s: float,
) -> list[Measurement]:
    """See `measure`; all in one process."""
    with tempfile.TemporaryDirectory(prefix="trimtab-measure-") as name:
        folder = Path(name)
        for index, example in enumerate(examples):
            np.save(folder / f"example{index}.npy", np.ascontiguousarray(example, dtype=np.float32))
        job = {
            "artefacts": [[a.engine, str(a.path.resolve())] for a in artefacts],
            "threads": threads,
            "rounds": rounds,
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        _run_worker(folder, artefacts, threads, timeout_s)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        outputs = [np.load(folder / f"output{i}.npy", allow_pickle=False) for i in range(len(artefacts))]
    errors = [None if expected is None else _checked(a, o, expected) for a, o in zip(artefacts, outputs, strict=True)]
    return [
        _measurement(artefact, timing, error, threads, report["details"])
        for artefact, timing, error in zip(artefacts, report["timings"], errors, strict=True)
    ]


def relative_error(output: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """max|output - expected| / max|expected|; infinite where shapes differ or a value is not finite."""
    if output.shape != expected.shape or not np.isfinite(output).all():
        return float("inf")
    output, expected = output.astype(np.float64), expected.astype(np.float64)  # truth values cannot be subtracted
    scale = float(np.abs(expected).max(initial=0.0))
    return float(np.abs(output - expected).max(initial=0.0)) / (scale or 1.0)


class TvmBackend:
    """Networks compiled by TVM and timed.

    Args:
        threads: on the CPU.
        device: "cpu", by Trimtab's own schedules; or "cuda", by TVM's default ones (see `backends.tvm.cuda`), where the
            device is waited for after every call.
    """

    def __init__(self, threads: int = 1, device: Literal["cpu", "cuda"] = "cpu") -> None:
        self.threads = threads
        self.device = device
        self.name = "tvm" if device == "cpu" else "tvm_cuda"

    def supports(self, graph: ModelGraph) -> tuple[str, ...]:
        """Reasons why the network cannot be measured; empty where it can. It refuses rather than flatters."""
        recurrent = tuple(
            f"operator '{operator.name}' is recurrent ({operator.kind}): this release of TVM computes it wrongly"
            for operator in graph.operators
            if operator.kind in _UNSUPPORTED
        )
        reason = self._lacking()
        return (reason, *recurrent) if reason else recurrent

    def measure(self, module: "nn.Module", example_input: "torch.Tensor") -> Measurement:
        """Compiles the network in evaluation mode, checks its output against torch's, and times it.

        Raises:
            InputError: torch cannot export the network, or the machine lacks the device.
            TrimtabError: it cannot be compiled, or the compiled code fails or answers wrongly.
        """
        from backends.torch_reference import reference_output

        with tempfile.TemporaryDirectory(prefix="trimtab-tvm-") as name:
            library = Path(name) / "model.so"
            target = self._compile(module, example_input, library)
            expected = reference_output(module, example_input)
            example = example_input.detach().cpu().numpy()
            (found,) = measure([Artefact(self.name, library)], example, expected, threads=self.threads)
        return replace(found, details={**found.details, "target": target})

    def _compile(self, module: "nn.Module", example_input: "torch.Tensor", path: Path) -> str:
        """Writes the network's code to the file; returns the processor it is for."""
        if self.device == "cuda":
            from backends.tvm.cuda import export_for_cuda

            return export_for_cuda(module, example_input, path)
        from backends.tvm import compile_module

        compiled = compile_module(module, example_input, threads=self.threads)
        compiled.export(path)
        return compiled.cpu.mcpu

    def _lacking(self) -> str:
        """What the machine does not have, "" where it has everything."""
        if self.device == "cpu":
            return ""
        from backends.tvm.cuda import lacking

        return lacking()


def _run_worker(folder: Path, artefacts: Sequence[Artefact], threads: int, timeout_s: float) -> None:
    """Runs the child on the job in the folder; what it was at when it failed stands in the file `current`."""
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "TVM_NUM_THREADS": str(threads),
        "TVM_USE_RUNTIME_LIB": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_source_root()), os.environ.get("PYTHONPATH", "")])),
    }
    command = [
        sys.executable,
        "-P",
        "-m",
        "backends.measuring_worker",
        str(folder),
    ]  # -P: nothing from the folder we stand in
    try:
        child = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TrimtabError(
            f"{_current(folder, artefacts)} did not finish within {timeout_s:g} s and was stopped"
        ) from error
    if child.returncode == 0:
        return
    reason = child.stderr.strip().splitlines()[-1:] or ["no message"]
    ending = f"was killed by signal {-child.returncode}" if child.returncode < 0 else f"failed ({reason[0]})"
    raise TrimtabError(f"{_current(folder, artefacts)} {ending} while it was measured; compile or export it again")


def _current(folder: Path, artefacts: Sequence[Artefact]) -> str:
    try:
        artefact = artefacts[int((folder / "current").read_text(encoding="utf-8"))]
    except (OSError, ValueError):
        return "the measuring process"
    return f"artefact {artefact.path} ({artefact.engine})"


def _checked(artefact: Artefact, output: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    error = relative_error(output, expected)
    if error > TOLERANCE:
        raise TrimtabError(
            f"artefact {artefact.path} ({artefact.engine}) answers wrongly: relative error {error:.3g} against torch, "
            f"at most {TOLERANCE:g} allowed; it was not measured"
        )
    return error


def _measurement(
    artefact: Artefact, timing: Mapping[str, Any], error: float | None, threads: int, details: Mapping[str, str]
) -> Measurement:
    samples = np.asarray(timing["seconds"], dtype=np.float64)
    p10, median, p90 = (float(value) for value in np.percentile(samples, [10, 50, 90]))
    calls = int(timing["calls"]) * len(samples)
    about = {**details, "cpu": cpu_name()}
    return Measurement(median, p10, p90, calls, threads, artefact.engine, error, float(timing["pace"]), about)


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _source_root() -> Path:
    """The folder that holds the packages, for a child started elsewhere."""
    return Path(__file__).resolve().parent.parent
