"""Proves an exported network again: every file is the one written, and every format computes the same.

Each artefact is loaded in a fresh, throwaway process, and only after its size and digest matched the manifest; what is
loaded is the copy that was digested. A digest proves integrity, not origin (docs/security.md).
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.markup import escape
from rich.table import Table
from torch.utils.data import DataLoader, Subset

from automl.cache import cache_dir
from automl.data import DataBundle, load_data
from automl.data.resized import resized
from automl.export.agreement import compare
from automl.export.elf import foreign_architecture
from automl.export.exporter import is_machine_path
from automl.export.manifest import (
    ARCHITECTURE,
    ARTEFACTS,
    LIBRARY,
    ONNX,
    POLICY,
    PROGRAM,
    WEIGHTS,
    Manifest,
    copy_verified,
    read_json_file,
    read_manifest,
)
from automl.export.rebuild import Architecture, allow
from automl.export.throwaway import Ran, run_artefact
from automl.metrics import Metric, load_metric
from search_spaces.errors import InputError

MAX_ACCURACY_DIFFERENCE = 0.003
MAX_ROUNDED_ACCURACY_DIFFERENCE = 0.01
SMALL_SAMPLE = 0.3
"""Where activations are quantised, which of two codes a value goes to may decide between two classes. This over the
root of the number of images may be the difference, too: two standard errors where one image in 40 changes its class."""

TIMEOUT_S = 900.0
BATCH = 256
NETWORK_FILES = (POLICY, ARCHITECTURE, WEIGHTS)
COMPILED = (PROGRAM, ONNX, LIBRARY)
ENGINES = {WEIGHTS: "torch", PROGRAM: "torch.export", ONNX: "onnxruntime", LIBRARY: "tvm"}

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at.

    Attributes:
        artefact: file name, or "data".
        check: what was looked at.
        passed: whether it is as it must be; True where it is not judged.
        figure: what was found.
        judged: False where the figure is only told.
    """

    artefact: str
    check: str
    passed: bool
    figure: str
    judged: bool = True


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """All checks of one export, in the order they were made."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)

    def table(self) -> Table:
        """The checks for a terminal."""
        table = Table(title="Verification: " + ("passed" if self.ok else f"{len(self.failures)} failed"))
        for column in ("artefact", "check", "", "figure"):
            table.add_column(column, overflow="fold")
        previous = ""
        for check in self.checks:
            table.add_row(
                escape(check.artefact) if check.artefact != previous else "",
                escape(check.check),
                ("[green]ok[/green]" if check.judged else "") if check.passed else "[bold red]FAILED[/bold red]",
                escape(check.figure),
            )
            previous = check.artefact
        return table


def verify(
    directory: str | Path,
    *,
    allow_code: bool = False,
    data_args: Mapping[str, Any] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> VerifyReport:
    """Check every file of an export against its manifest, and every format against the network rebuilt from it.

    Args:
        directory: what `export_network` wrote.
        allow_code: whether a model, data set or metric that is "package.module:attribute" may be imported.
        data_args: arguments of the data set, over those of the manifest (its paths are not in there).
        timeout_s: seconds that each artefact may take.

    Returns:
        The checks. A figure outside the tolerances is a failed check, not an exception.

    Raises:
        InputError: not an export, a damaged manifest, code that was not allowed, or a data set that is not there.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    allow(manifest.data.name, "the data set of the export", allow_code)
    if manifest.metric is not None:
        allow(manifest.metric, "the metric of the export", allow_code)
    with tempfile.TemporaryDirectory(prefix="verify-", dir=cache_dir("verify")) as scratch_name:
        scratch = Path(scratch_name)
        checks, intact = _check_files(directory, manifest, scratch)
        if ARCHITECTURE in intact:
            described = Architecture.from_json(read_json_file(_folder(scratch, ARCHITECTURE), ARCHITECTURE))
            allow(described.model, "the exported model", allow_code)
        try:
            bundle = _load_data(manifest, data_args or {})
        except InputError as error:
            if all(check.passed for check in checks):
                raise
            return VerifyReport((*checks, Check("data", "loads", False, str(error))))
        run = _Verification(manifest, bundle, scratch, allow_code, timeout_s)
        return VerifyReport((*checks, *run.checks(intact)))


class _Verification:
    """The runs of one export's artefacts over its test images."""

    def __init__(
        self, manifest: Manifest, bundle: DataBundle, scratch: Path, allow_code: bool, timeout_s: float
    ) -> None:
        self._manifest = manifest
        self._bundle = bundle
        self._scratch = scratch
        self._allow_code = allow_code
        self._timeout_s = timeout_s
        self._metric: Metric = load_metric(manifest.metric)
        self._rounding_step = 0.0

    def checks(self, intact: set[str]) -> list[Check]:
        """Checks of the data, then of every artefact that is intact."""
        manifest = self._manifest
        read = resized(self._bundle, manifest.resolution)
        checks = _check_data(manifest, self._bundle, read.input_shape)
        if any(not check.passed for check in checks):
            return checks
        images, labels = _arrays(read, manifest.verification.images)
        path = self._scratch / "images.npy"
        np.save(path, images)
        reference = None
        if intact.issuperset((ARCHITECTURE, WEIGHTS)):
            ran = self._run(WEIGHTS, path)
            reference = ran.outputs
            self._rounding_step = ran.facts.get("rounding_step", 0.0)
            checks += self._check_network(ran, labels)
        for artefact in COMPILED:
            if artefact not in intact:
                continue
            foreign = foreign_architecture(_folder(self._scratch, artefact) / artefact)
            if elsewhere := foreign or (artefact == LIBRARY and _made_for(manifest)):
                checks.append(Check(artefact, "runs", True, f"not here: it is for {elsewhere}", judged=False))
            else:
                checks += self._check_compiled(artefact, self._run(artefact, path), reference, labels)
        return checks

    def _run(self, artefact: str, images: Path) -> Ran:
        size = self._manifest.batch.get(PROGRAM if artefact == WEIGHTS else artefact, "dynamic")
        return run_artefact(
            artefact,
            _folder(self._scratch, artefact),
            images,
            batch=BATCH if size == "dynamic" else size,
            threads=max((latency.threads for latency in self._manifest.latency.values()), default=1),
            allow_code=self._allow_code,
            timeout_s=self._timeout_s,
        )

    def _check_network(self, ran: Ran, labels: torch.Tensor) -> list[Check]:
        if ran.outputs is None:
            return [Check(WEIGHTS, "runs", False, ran.error or "")]
        manifest = self._manifest
        difference = ran.facts["policy"]
        return [
            _equal(WEIGHTS, "parameters", ran.facts["params"], manifest.params),
            _equal(WEIGHTS, "MACs", ran.facts["macs"], manifest.macs),
            _equal(WEIGHTS, "bytes of weights", ran.facts["weight_bytes"], manifest.weight_bytes),
            self._check_accuracy(WEIGHTS, ran.outputs, labels),
            self._told_latency(WEIGHTS, ran),
            Check(
                POLICY, "fits the network", difference is None, difference or "same units kept, layers treated alike"
            ),
        ]

    def _check_compiled(
        self, artefact: str, ran: Ran, reference: FloatArray | None, labels: torch.Tensor
    ) -> list[Check]:
        if ran.outputs is None:
            return [Check(artefact, "runs", False, ran.error or "")]
        return [
            check_outputs(artefact, ran.outputs, reference, self._rounding_step),
            self._check_accuracy(artefact, ran.outputs, labels),
            self._told_latency(artefact, ran),
        ]

    def _check_accuracy(self, artefact: str, outputs: FloatArray, labels: torch.Tensor) -> Check:
        stated = self._manifest.verification
        if len(outputs) != len(labels):
            return Check(artefact, "accuracy", False, f"{len(outputs)} outputs for {len(labels)} images")
        found = self._metric(torch.from_numpy(outputs), labels)
        whole = stated.images == stated.of
        expected = self._manifest.accuracy if whole else stated.accuracy
        most = MAX_ACCURACY_DIFFERENCE
        if self._rounding_step:
            most = max(MAX_ROUNDED_ACCURACY_DIFFERENCE, SMALL_SAMPLE / sqrt(stated.images))
        passed = abs(found - expected) <= most * max(1.0, abs(expected))
        images = f"{stated.images}" if whole else f"the first {stated.images} of {stated.of}"
        figure = f"{found:.4f} over {images} test images, manifest {expected:.4f}"
        return Check(artefact, self._metric.name, passed, figure)

    def _told_latency(self, artefact: str, ran: Ran) -> Check:
        found = ran.facts["latency"]
        stated = self._manifest.latency.get(ENGINES[artefact])
        figure = (
            f"{_ms(found['median_s'])} (p10 {_ms(found['p10_s'])}, p90 {_ms(found['p90_s'])}, {found['runs']} runs)"
            + (f", manifest {_ms(stated.median_s)}" if stated else "")
        )
        return Check(artefact, "latency, batch 1", True, figure, judged=False)


def check_outputs(artefact: str, outputs: FloatArray, reference: FloatArray | None, step: float = 0.0) -> Check:
    """Whether outputs [N, ...] are those of the rebuilt network, whose `rounding_step` is given."""
    name = "outputs"
    if reference is None:
        return Check(artefact, name, False, f"nothing to compare with: {WEIGHTS} did not run")
    if outputs.shape != reference.shape:
        return Check(artefact, name, False, f"shape {list(outputs.shape)}, expected {list(reference.shape)}")
    found = compare(outputs, reference, step)
    return Check(artefact, name, found.holds, str(found))


def _check_files(directory: Path, manifest: Manifest, scratch: Path) -> tuple[list[Check], set[str]]:
    """Size and digest of every file; the intact ones are copied to where they will be loaded from."""
    checks: list[Check] = []
    intact: set[str] = set()
    for name in dict.fromkeys((*ARTEFACTS, *manifest.files)):
        record = manifest.files.get(name)
        if record is None:
            reason = manifest.left_out.get(name)
            told = Check(name, "left out", True, reason or "", judged=False)
            checks.append(told if reason else Check(name, "size and digest", False, "not in the manifest"))
            continue
        folder = _folder(scratch, name)
        folder.mkdir(exist_ok=True)
        wrong = copy_verified(directory, name, record, folder / name)
        checks.append(
            Check(name, "size and digest", wrong is None, wrong or f"{record.bytes:,} bytes, {record.sha256[:12]}…")
        )
        if wrong is None:
            intact.add(name)
    return checks, intact


def _made_for(manifest: Manifest) -> str:
    """The device that the library is for, where this machine cannot run it; else ""."""
    if manifest.device is None:
        return ""
    from backends.tvm.target import cpu_for

    device = manifest.device
    try:
        runs_here = cpu_for(device.mcpu, triple=device.mtriple).runs_here
    except InputError:
        runs_here = False
    return "" if runs_here else f"{device.key}, {device.mcpu} {device.mtriple}".strip()


def _check_data(manifest: Manifest, bundle: DataBundle, read: Sequence[int]) -> list[Check]:
    """Whether the data set is the one that the accuracy was measured on, and its images, as they are read, fit."""
    stated = manifest.verification
    total = len(bundle.test)  # type: ignore[arg-type]  # torch's Dataset declares no __len__
    checks = []
    if manifest.data.digest is not None:
        # told, not judged: another version of a library may render or scale one pixel otherwise; the accuracy decides
        same = bundle.digest == manifest.data.digest
        figure = f"{bundle.digest[:12]}…, as exported" if same else "not exactly the images that were exported with"
        checks.append(Check("data", "digest", True, figure, judged=False))
    if total != stated.of or stated.images > total:
        checks.append(Check("data", "test images", False, f"{total}, the manifest says {stated.images} of {stated.of}"))
    if list(read) != manifest.input.shape:
        figure = f"{list(read)}, the network reads {manifest.input.shape}"
        checks.append(Check("data", "shape", False, figure))
    return checks


def _load_data(manifest: Manifest, given: Mapping[str, Any]) -> DataBundle:
    record = manifest.data
    for name in record.local:
        if name not in given:
            raise InputError(
                f"{name!r} of the data set {record.name!r} is a path of the machine that exported and is not in the "
                f"manifest; give it with --data {name}=PATH"
            )
    for name, value in record.args.items():
        if is_machine_path(value) and name not in given:
            raise InputError(
                f"the manifest names the path {value!r} for {name!r} of its data set; paths are given with "
                f"--data {name}=PATH"
            )
    return load_data(record.name, {**record.args, **given})


def _arrays(bundle: DataBundle, images: int) -> tuple[FloatArray, torch.Tensor]:
    """The first test images [N, C, H, W] and their labels [N]."""
    batches = list(DataLoader(Subset(bundle.test, range(images)), batch_size=BATCH))
    pixels = torch.cat([batch[0] for batch in batches]).to(torch.float32)
    return pixels.numpy(), torch.cat([batch[1] for batch in batches])


def _folder(scratch: Path, artefact: str) -> Path:
    """Each artefact is loaded in a folder of its own; the parts of the rebuilt network share one."""
    return scratch / ("network" if artefact in NETWORK_FILES else artefact)


def _equal(artefact: str, check: str, found: int, stated: int) -> Check:
    same = found == stated
    return Check(artefact, check, same, f"{found:,}" if same else f"{found:,}, the manifest says {stated:,}")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"
