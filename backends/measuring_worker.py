"""The process that `backends.measuring` throws away: loads the artefacts of a job, runs and times them in turns.

    python -m backends.measuring_worker FOLDER

FOLDER holds job.json and an input for each artefact; report.json and the outputs are written there. `current` says
which artefact is being run, for the parent to name should this process die.
"""

import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from backends.clock import on_the_wall, pace, reading, worked

Call = Callable[[], Any]
Elapsed = Callable[[tuple[float, float], tuple[float, float]], float]
Reader = Callable[[], npt.NDArray[Any]]

_SAMPLE_S = 1e-3
_WARM_UP_S = 0.05
_SETTLING_CALLS, _SETTLING_S = 8, 0.02
"""Calls after a change of artefact, of at most so many seconds. A cache shared by many cores does not take in all the
weights at once: MobileNetV2, among seven others, took 1225, 1057, 965, 907, 871 us and from the tenth call on 822."""


def main(folder: Path) -> None:
    """Does the job of the folder."""
    os.environ |= {"TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}  # nothing stays behind
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    calls: list[Call] = []
    for index, (engine, path) in enumerate(job["artefacts"]):
        _note(folder, index)
        example = np.load(folder / f"example{index}.npy", allow_pickle=False)
        call, output = _ENGINES[engine](Path(path), example, int(job["threads"]))
        call()
        np.save(folder / f"output{index}.npy", output())
        calls.append(call)
    on_cpu = not any("cuda" in engine for engine, _ in job["artefacts"])
    elapsed = worked if on_cpu else on_the_wall
    timings = time_in_turns(calls, int(job["rounds"]), lambda index: _note(folder, index), elapsed)
    engines = sorted({engine for engine, _ in job["artefacts"]})
    report = {"timings": timings, "details": {name: _version(name) for name in engines}}
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


def time_in_turns(
    calls: Sequence[Call], rounds: int, note: Callable[[int], None], elapsed: Elapsed = worked
) -> list[dict[str, Any]]:
    """For each call the seconds it took in each round, averaged over enough repetitions to fill a sample.

    Args:
        calls: what to time.
        rounds: samples of each; every other round goes backwards, so that nobody always runs behind the same one.
        note: told which call comes next.
        elapsed: seconds between two readings of the clock.
    """
    repetitions = []
    for index, call in enumerate(calls):
        note(index)
        repetitions.append(_repetitions(call))
    seconds: list[list[float]] = [[] for _ in calls]
    paces: list[float] = []
    for number in range(rounds):
        paces.append(pace())
        for index in range(len(calls)) if number % 2 == 0 else reversed(range(len(calls))):
            call, count = calls[index], repetitions[index]
            note(index)
            _settle(call)
            start = reading()
            for _ in range(count):
                call()
            seconds[index].append(elapsed(start, reading()) / count)
    return [
        {"calls": count, "seconds": samples, "pace": float(np.median(paces))}
        for count, samples in zip(repetitions, seconds, strict=True)
    ]


def _settle(call: Call) -> None:
    """Brings the weights back into the cache."""
    begin = time.perf_counter()
    for _ in range(_SETTLING_CALLS):
        call()
        if time.perf_counter() - begin >= _SETTLING_S:
            break


def _repetitions(call: Call) -> int:
    """Calls that fill one sample, by the quickest seen while warming up."""
    quickest, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < _WARM_UP_S or quickest == float("inf"):
        start = time.perf_counter()
        call()
        quickest = min(quickest, time.perf_counter() - start)
    return max(1, round(_SAMPLE_S / quickest))


def _note(folder: Path, index: int) -> None:
    (folder / "current").write_text(str(index), encoding="utf-8")


def _load_tvm(path: Path, example: npt.NDArray[Any], threads: int) -> tuple[Call, Reader]:
    from backends.tvm.library import device_array, load_machine

    machine = load_machine(path)
    function, x = machine["main"], device_array(example)
    return lambda: function(x), lambda: np.asarray(function(x).numpy())


def _load_tvm_cuda(path: Path, example: npt.NDArray[Any], threads: int) -> tuple[Call, Reader]:
    import torch  # noqa: F401  # brings CUDA's runtime, which TVM's package does not, to where TVM finds it

    from backends.tvm.library import device_array, load_machine

    machine = load_machine(path, "cuda")
    function, x = machine["main"], device_array(example, "cuda")

    def run() -> Any:
        output = function(x)
        x.device.sync()
        return output

    return run, lambda: np.asarray(run().numpy())


def _load_onnxruntime(path: Path, example: npt.NDArray[Any], threads: int) -> tuple[Call, Reader]:
    from backends.onnxruntime import bound_session

    run, output = bound_session(path, example, threads)
    return run, output


def _load_torch(
    path: Path,
    example: npt.NDArray[Any],
    threads: int,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    compiled: bool = False,
) -> tuple[Call, Reader]:
    from backends.torch_engines import bound_program

    return bound_program(path, example, threads, device=device, compiled=compiled)


_ENGINES: dict[str, Callable[[Path, npt.NDArray[Any], int], tuple[Call, Reader]]] = {
    "tvm": _load_tvm,
    "tvm_cuda": _load_tvm_cuda,
    "onnxruntime": _load_onnxruntime,
    "torch": _load_torch,
    "torch_compiled": partial(_load_torch, compiled=True),
    "torch_cuda": partial(_load_torch, device="cuda"),
    "torch_cuda_compiled": partial(_load_torch, device="cuda", compiled=True),
}


def _version(engine: str) -> str:
    package = engine.partition("_")[0]
    return importlib.metadata.version({"tvm": "apache-tvm"}.get(package, package))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
