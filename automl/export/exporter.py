"""Writes an exported network: every format, digested, in one directory that appears all at once."""

import copy
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import safetensors.torch
import torch
from torch import nn

from automl.compression.saving import state_of, to_bytes
from automl.compression.treatments import Compressed
from automl.data import DataBundle, load_data
from automl.data.resized import resized
from automl.export.agreement import compare, rounding_step
from automl.export.atomic import appearing_at_once
from automl.export.elf import foreign_architecture
from automl.export.manifest import (
    ARCHITECTURE,
    ARTEFACTS,
    LIBRARY,
    MANIFEST,
    ONNX,
    POLICY,
    PROGRAM,
    WEIGHTS,
    DataRecord,
    DeviceRecord,
    InputRecord,
    LatencyRecord,
    Manifest,
    VerificationRecord,
    record_file,
)
from automl.export.quantised_onnx import save_network
from automl.export.rebuild import Architecture
from automl.export.torch_export import Batch, capture_program, save_program
from automl.export.tvm_export import save_library
from automl.metrics import load_metric
from automl.training import evaluate
from backends.measuring import Artefact, Measurement, cpu_name, measure
from backends.remote.device import RemoteDevice
from backends.remote.fleet import Fleet
from backends.remote.networks import Network, measure_networks
from backends.torch_reference import reference_output
from search_spaces.errors import InputError, TrimtabError
from search_spaces.policy import CompressionPolicy, layer_from_json

MOST_IMAGES = 10_000
FEWEST_IMAGES = 500
COMPARED_IMAGES = 32
MOST_MACS = 10**12
MOST_PIXELS = 2**27
PACKAGES = {"trimtab": "trimtab", "torch": "torch", "onnx": "onnx", "onnxruntime": "onnxruntime", "tvm": "apache-tvm"}


def export_network(
    network: Compressed | nn.Module,
    directory: Path,
    *,
    policy: CompressionPolicy,
    architecture: Mapping[str, Any],
    example_input: torch.Tensor,
    data: Mapping[str, Any],
    results: Mapping[str, Any],
    threads: int = 1,
    measure_latency: bool = True,
    device: RemoteDevice | None = None,
) -> dict[str, Any]:
    """Write the network in every format, with a manifest; the directory appears whole or not at all.

    Args:
        network: the compressed network; left as it is. Where it is sparse or quantised, not the module alone.
        directory: where; an export that stands there is replaced, anything else is refused.
        policy: what made the network.
        architecture: "model", "args", "classes", "input_shape", "units", perhaps "layers" and "resolution" (see
            `rebuild.Architecture`).
        example_input: one image or more [N, C, H, W], float32, at the policy's resolution.
        data: "name" and "args" of the data set that the accuracy was measured on.
        results: "accuracy" (test split), "macs", "params", "weight_bytes", perhaps "metric" (a reference as in the
            config); what else it holds goes into the manifest as it is.
        threads: that the compiled library and the measurements use.
        measure_latency: whether to time each engine.
        device: that the library is compiled for and, alone, timed on; this machine by default.

    Returns:
        The manifest, as JSON holds it.

    Raises:
        InputError: the directory holds something else, or an argument lacks what the manifest needs.
        TrimtabError: torch cannot trace the network.
    """
    known = dict(results)
    lacking = {"accuracy", "macs", "params", "weight_bytes"} - known.keys()
    if lacking:
        raise InputError(f"an export needs the results {', '.join(sorted(lacking))}")
    described = Architecture.model_validate(dict(architecture))
    metric = known.pop("metric", None)
    network = copy.deepcopy(network)
    module = (network.module if isinstance(network, Compressed) else network).cpu().eval()
    example = example_input.detach().to("cpu", torch.float32)
    with appearing_at_once(directory) as folder:
        (folder / POLICY).write_text(policy.to_json(), encoding="utf-8")
        (folder / ARCHITECTURE).write_text(described.to_json(), encoding="utf-8")
        (folder / WEIGHTS).write_bytes(_weights(network, described))
        bundle = load_data(str(data["name"]), dict(data.get("args") or {}))
        read = resized(bundle, policy.resolution)
        formats = _write_formats(network, example, _images(read), folder, threads, device)
        latency: dict[str, LatencyRecord] = {}
        if measure_latency:
            try:
                latency = _latencies(module, folder, example, formats.library, threads, device)
            except TrimtabError as error:  # the network is none the worse for it
                known["latency_error"] = str(error)
        manifest = Manifest(
            schema_version=1,
            trimtab=_version("trimtab"),
            files={name: record_file(folder / name) for name in ARTEFACTS if (folder / name).exists()},
            left_out=formats.left_out,
            onnx_float=formats.onnx_float,
            input=InputRecord(shape=list(example.shape[1:]), dtype="float32"),
            resolution=policy.resolution,
            classes=described.classes,
            batch=formats.batch,
            data=_data_record(data, bundle),
            metric=metric,
            accuracy=float(known.pop("accuracy")),
            verification=_verification(module, read, metric, int(known["macs"])),
            macs=int(known.pop("macs")),
            params=int(known.pop("params")),
            weight_bytes=int(known.pop("weight_bytes")),
            latency=latency,
            machine=machine(),
            device=None if device is None else DeviceRecord(key=device.key, mcpu=device.mcpu, mtriple=device.triple),
            versions={name: _version(package) for name, package in PACKAGES.items()}
            | {"python": platform.python_version()},
            results=known,
        )
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest.model_dump(mode="json")


def verified_images(test_images: int, macs: int, pixels: int) -> int:
    """How many test images a verification runs: all of them, up to a bound on the work and the memory they are.

    Args:
        test_images: of the test split.
        macs: of one image.
        pixels: values of one image.
    """
    affordable = min(MOST_IMAGES, MOST_MACS // max(1, macs), MOST_PIXELS // max(1, pixels))
    return min(test_images, max(FEWEST_IMAGES, affordable))


def machine() -> dict[str, str | int]:
    """The machine's processor, without any name or path of it."""
    return {"cpu": cpu_name(), "cores": os.cpu_count() or 1, "system": f"{platform.system()} {platform.machine()}"}


def _weights(network: Compressed | nn.Module, described: Architecture) -> bytes:
    if isinstance(network, Compressed):
        return to_bytes(network)
    for name, entry in described.layers.items():
        layer = layer_from_json(name, entry)
        if layer.zeros or layer.weight_format:
            raise InputError(
                f"layer {name!r} is sparse or quantised, and a module alone has no mask or codes; export the "
                "`Compressed` that `Compressor.compress` or `fine_tune` gave"
            )
    return safetensors.torch.save(state_of(network))


def _images(bundle: DataBundle) -> torch.Tensor:
    """Those on which every format's answers are compared with torch's, [N, C, H, W]."""
    total = len(bundle.val)  # type: ignore[arg-type]  # torch's Dataset declares no __len__
    return torch.stack([bundle.val[index][0] for index in range(min(COMPARED_IMAGES, total))]).to(torch.float32)


@dataclass
class _Formats:
    """What was written.

    Attributes:
        batch: images that each artefact takes at a time.
        left_out: artefacts that could not be made, with the reason.
        onnx_float: see `Manifest`.
        library: details of the compiled library.
    """

    batch: dict[str, Batch]
    left_out: dict[str, str] = field(default_factory=dict)
    onnx_float: dict[str, str] = field(default_factory=dict)
    library: dict[str, str] = field(default_factory=dict)


def _write_formats(
    network: Compressed | nn.Module,
    example: torch.Tensor,
    images: torch.Tensor,
    folder: Path,
    threads: int,
    device: RemoteDevice | None,
) -> _Formats:
    module = network.module if isinstance(network, Compressed) else network
    program, size = capture_program(module, example)
    save_program(program, folder / PROGRAM)
    found = _Formats({PROGRAM: size})
    try:
        found.onnx_float = save_network(network, program, folder / ONNX, images, size)
        found.batch[ONNX] = size
    except TrimtabError as error:
        found.left_out[ONNX] = str(error)
    try:
        found.library = save_library(
            network,
            images,
            folder / LIBRARY,
            threads=threads,
            mcpu=None if device is None else device.mcpu,
            triple="" if device is None else device.triple,
        )
        found.batch[LIBRARY] = 1
    except TrimtabError as error:
        (folder / LIBRARY).unlink(missing_ok=True)
        found.left_out[LIBRARY] = str(error)
    return found


def _verification(module: nn.Module, bundle: DataBundle, metric: str | None, macs: int) -> VerificationRecord:
    total = len(bundle.test)  # type: ignore[arg-type]  # torch's Dataset declares no __len__
    images = verified_images(total, macs, prod(bundle.input_shape))
    part = torch.utils.data.Subset(bundle.test, range(images))
    return VerificationRecord(images=images, of=total, accuracy=evaluate(module, part, load_metric(metric)))


def _data_record(data: Mapping[str, Any], bundle: DataBundle) -> DataRecord:
    """The reference of the data set, without the paths of this machine."""
    args = dict(data.get("args") or {})
    local = sorted(name for name, value in args.items() if is_machine_path(value))
    portable = {name: value for name, value in args.items() if name not in local}
    return DataRecord(name=str(data["name"]), args=portable, local=local, digest=bundle.digest)


def is_machine_path(value: object) -> bool:
    """Whether an argument names a place on one machine: an absolute path, one of a home, or one that climbs."""
    if not isinstance(value, str | Path):
        return False
    text = str(value)
    return (
        text.startswith("~")
        or PurePosixPath(text).is_absolute()
        or PureWindowsPath(text).is_absolute()
        or ".." in PurePosixPath(text).parts
    )


def _latencies(
    module: nn.Module,
    folder: Path,
    example: torch.Tensor,
    details: dict[str, str],
    threads: int,
    device: RemoteDevice | None,
) -> dict[str, LatencyRecord]:
    """Each compiled artefact that this machine can run, timed at batch 1, interleaved in a process of its own; or the
    library alone, on a device, since figures of two machines compare nothing."""
    one, expected, step = example[:1].numpy(), reference_output(module, example[:1]), rounding_step(module)
    paths = {"tvm": folder / LIBRARY, "onnxruntime": folder / ONNX}
    measured: list[Measurement] = []
    if device is None:
        artefacts = [
            Artefact(engine, path) for engine, path in paths.items() if path.exists() and not foreign_architecture(path)
        ]
        # what rounds activations was compared when it was written, on more than one image
        measured = measure(artefacts, one, None if step else expected, threads=threads) if artefacts else []
    elif paths["tvm"].exists():
        library = Network(paths["tvm"], lambda output: compare(output, expected, step))
        with Fleet(device, threads) as fleet:
            measured = measure_networks(fleet, [library], one)
    return {
        found.engine: LatencyRecord(
            median_s=found.latency_s,
            p10_s=found.p10_s,
            p90_s=found.p90_s,
            runs=found.runs,
            threads=found.threads,
            max_error=found.max_error,
            details=dict(found.details) | (details if found.engine == "tvm" else {}),
        )
        for found in measured
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
