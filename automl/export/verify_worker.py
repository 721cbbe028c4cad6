"""The throwaway process of `verify`: `python -m automl.export.verify_worker FOLDER`.

Reads the request in the folder, loads one artefact, runs it on the images and leaves outputs and facts there.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from automl.export import manifest
from automl.export.agreement import rounding_step
from automl.export.manifest import POLICY, read_json_file
from automl.export.onnx_export import load_onnx
from automl.export.rebuild import Rebuilt, rebuild_network
from automl.export.throwaway import OUTPUTS, REQUEST, RESULT
from backends.measuring_worker import time_in_turns
from backends.onnxruntime import bound_session
from search_spaces.errors import InputError, TrimtabError
from search_spaces.policy import CompressionPolicy

FloatArray = npt.NDArray[np.float32]
Run = Callable[[FloatArray], FloatArray]
Call = Callable[[], Any]
ROUNDS = 50


def main(arguments: list[str]) -> int:
    """Do what the request in the folder asks; a `TrimtabError` is told in one line on stderr, exit code 1."""
    folder = Path(arguments[0])
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    try:
        facts = _run(folder, request)
    except TrimtabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    (folder / RESULT).write_text(json.dumps(facts), encoding="utf-8")
    return 0


def _run(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    images: FloatArray = np.load(request["images"], mmap_mode="r", allow_pickle=False)
    run, call, facts = _load(folder, request, np.ascontiguousarray(images[:1]))
    size = request["batch"]
    outputs = [run(np.ascontiguousarray(images[start : start + size])) for start in range(0, len(images), size)]
    np.save(folder / OUTPUTS, np.concatenate(outputs))
    return facts | {"latency": _time(call)}


def _load(folder: Path, request: dict[str, Any], image: FloatArray) -> tuple[Run, Call, dict[str, Any]]:
    """The artefact as a function from images to outputs, one inference of it to time, and what else is to be known."""
    path = folder / request["artefact"]
    match request["artefact"]:
        case manifest.WEIGHTS:
            rebuilt = rebuild_network(folder, allow_code=request["allow_code"])
            run = _torch_run(rebuilt.compressed.module)
            return run, lambda: run(image), _facts(rebuilt, folder, image)
        case manifest.PROGRAM:
            run = _torch_run(torch.export.load(path).module())
            return run, lambda: run(image), {}
        case manifest.ONNX:
            call, _ = bound_session(path, image, request["threads"])
            return load_onnx(path.read_bytes(), request["threads"]), call, {}
        case manifest.LIBRARY:
            from backends.tvm.library import callable_network, device_array, load_machine

            machine, on_device = load_machine(path), device_array(image)
            return callable_network(machine), lambda: machine["main"](on_device), {}
        case other:
            raise InputError(f"{other!r} is no artefact that can be run")


def _torch_run(module: nn.Module) -> Run:
    def run(images: FloatArray) -> FloatArray:
        with torch.no_grad():
            output: FloatArray = module(torch.from_numpy(images)).numpy()
        return output

    return run


def _facts(rebuilt: Rebuilt, folder: Path, image: FloatArray) -> dict[str, Any]:
    """Parameters, MACs counted on the running network, the bytes that its weights were unpacked from, how it rounds
    activations, and whether the policy says what the units say."""
    module = rebuilt.compressed.module
    return {
        "params": sum(parameter.numel() for parameter in module.parameters()),
        "macs": count_macs(module, torch.from_numpy(image)),
        "weight_bytes": rebuilt.compressed.graph.weight_bytes,
        "rounding_step": rounding_step(module),
        "policy": _policy_difference(rebuilt, folder) if (folder / POLICY).exists() else None,
    }


def count_macs(module: nn.Module, image: torch.Tensor) -> int:
    """Multiply-accumulates of convolution, linear and recurrent layers, counted by torch's flop counter (2 a MAC)."""
    ops = torch.ops.aten
    counted = (ops.convolution, ops._convolution, ops.addmm, ops.mm)
    # oneDNN computes an LSTM in one operator, which the counter does not know
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        module(image)
    flops = sum(count for op, count in counter.get_flop_counts()["Global"].items() if op in counted)
    return int(flops) // 2


def _policy_difference(rebuilt: Rebuilt, folder: Path) -> str | None:
    """What `policy.json` says otherwise than `architecture.json`, None where they agree."""
    found = rebuilt.compressed.graph
    try:
        policy = CompressionPolicy.from_json(read_json_file(folder, POLICY).decode())
        said = rebuilt.network.graph.apply(policy)
    except (InputError, UnicodeDecodeError) as error:
        return str(error)
    if said.input_shape != found.input_shape:
        return (
            f"it reads images of {list(said.input_shape)} by the policy and of {list(found.input_shape)} in the network"
        )
    for group, count, units in zip(found.groups, said.kept, found.kept, strict=True):
        if units != count:
            return f"{group.name!r} keeps {count} units by the policy and {units} in the network"
    for name in dict.fromkeys(name for name, _ in (*said.treatments, *found.treatments)):
        if dict(said.treatments).get(name) != dict(found.treatments).get(name):
            return f"{name!r} is treated otherwise by the policy than in the network"
    return None if said.removed == found.removed else "the policy removes other blocks than the network lacks"


def _time(call: Call) -> dict[str, float]:
    """Seconds of one inference at batch 1: median and spread, read off the clock as the backends do."""
    timing = time_in_turns([call], ROUNDS, lambda _: None)[0]
    p10, median, p90 = (float(value) for value in np.percentile(timing["seconds"], [10, 50, 90]))
    return {"median_s": median, "p10_s": p10, "p90_s": p90, "runs": timing["calls"] * ROUNDS}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
