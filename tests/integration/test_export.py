"""A pruned network is exported, verified, and damaged in every way: the right check fails and no code is loaded."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from automl.data import load_data
from automl.export import export_network
from automl.export.manifest import (
    ARCHITECTURE,
    ARTEFACTS,
    LIBRARY,
    MANIFEST,
    ONNX,
    POLICY,
    PROGRAM,
    WEIGHTS,
    read_manifest,
    record_file,
)
from automl.export.onnx_export import save_onnx, to_onnx
from automl.export.rebuild import rebuild
from automl.export.throwaway import Ran
from automl.export.torch_export import capture_program, save_program
from automl.export.verify import VerifyReport, check_outputs, verify
from automl.models import build_model
from automl.training import TrainingOptions, evaluate, train
from search_spaces.capture import PrunableNetwork
from search_spaces.errors import InputError
from search_spaces.policy import CompressionPolicy

DATA = {"name": "digits", "args": {"size": 16}}


def _export(directory: Path, seed: int, **overrides: Any) -> dict[str, Any]:
    """LeNet-5 with half of its channels, briefly trained, in every format."""
    data = load_data("digits", {"size": 16})
    network = PrunableNetwork(
        build_model("lenet5", classes=10, input_shape=data.input_shape, seed=seed), torch.zeros(1, *data.input_shape)
    )
    kept = tuple(group.width // 2 for group in network.graph.groups)
    units = {group.name: list(range(0, 2 * count, 2)) for group, count in zip(network.graph.groups, kept, strict=True)}
    module = network.prune(units)
    train(module, data, TrainingOptions(epochs=2, lr=0.02, seed=seed))
    graph = network.graph.with_kept(kept)
    given: dict[str, Any] = {
        "policy": network.graph.policy(kept),
        "architecture": {
            "model": "lenet5",
            "args": {},
            "classes": 10,
            "input_shape": list(data.input_shape),
            "units": units,
        },
        "example_input": torch.zeros(1, *data.input_shape),
        "data": DATA,
        "results": {
            "accuracy": evaluate(module, data.test),
            "macs": graph.macs,
            "params": graph.params,
            "weight_bytes": graph.weight_bytes,
            "search_accuracy": 0.5,
        },
    }
    return export_network(module, directory, **{**given, **overrides})


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exports") / "best"
    _export(directory, seed=0)
    return directory


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "best"))


@pytest.fixture
def runs(exported: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The artefacts that a verification loads; in place of the processes the rebuilt network answers for all."""
    loaded: list[str] = []
    network = rebuild(exported)
    manifest = read_manifest(exported)

    def run(artefact: str, folder: Path, images: Path, **options: Any) -> Ran:
        loaded.append(artefact)
        assert (folder / artefact).exists()
        with torch.no_grad():
            outputs = network(torch.from_numpy(np.load(images))).numpy()
        latency = {"median_s": 1e-4, "p10_s": 1e-4, "p90_s": 1e-4, "runs": 1}
        counts = {"params": manifest.params, "macs": manifest.macs, "weight_bytes": manifest.weight_bytes}
        facts = {"latency": latency, "policy": None, "rounding_step": 0.0, **counts}
        return Ran(outputs, facts, None)

    monkeypatch.setattr(sys.modules["automl.export.verify"], "run_artefact", run)
    return loaded


def _failures(report: VerifyReport) -> list[tuple[str, str]]:
    return [(check.artefact, check.check) for check in report.failures]


def _edit(directory: Path, change: Callable[[dict[str, Any]], object], name: str = MANIFEST) -> None:
    document = json.loads((directory / name).read_text())
    change(document)
    (directory / name).write_text(json.dumps(document))


def _forge(directory: Path, *names: str) -> None:
    """Make the manifest's digests those of the files as they are: integrity is no proof of origin."""
    records = {name: record_file(directory / name).model_dump() for name in names}
    _edit(directory, lambda document: document["files"].update(records))


def test_an_export_verifies_in_real_processes(exported: Path) -> None:
    report = verify(exported)
    assert report.ok, report.failures
    found = {(check.artefact, check.check): check for check in report.checks}
    for artefact in ARTEFACTS:
        assert found[artefact, "size and digest"].passed
    for artefact in (PROGRAM, ONNX, LIBRARY):
        assert "max|a-b|/max|a|" in found[artefact, "outputs"].figure
    for artefact in (WEIGHTS, PROGRAM, ONNX, LIBRARY):
        assert "over 360 test images" in found[artefact, "accuracy"].figure
        assert not found[artefact, "latency, batch 1"].judged
    assert found[WEIGHTS, "parameters"].passed
    assert found[WEIGHTS, "MACs"].passed
    assert found[WEIGHTS, "bytes of weights"].passed
    assert found[POLICY, "fits the network"].passed
    assert report.table().row_count == len(report.checks)


def test_the_manifest_says_what_was_measured_and_nothing_about_the_machine_s_folders(exported: Path) -> None:
    manifest = read_manifest(exported)
    assert set(manifest.files) == set(ARTEFACTS)
    assert manifest.left_out == {}
    assert manifest.batch == {PROGRAM: "dynamic", ONNX: "dynamic", LIBRARY: 1}
    assert set(manifest.latency) == {"tvm", "onnxruntime"}
    assert manifest.latency["tvm"].threads == 1
    assert manifest.verification.images == manifest.verification.of == 360
    assert manifest.verification.accuracy == manifest.accuracy
    assert {"torch", "onnx", "onnxruntime", "tvm", "python", "trimtab"} <= set(manifest.versions)
    assert manifest.results == {"search_accuracy": 0.5}
    folders = [str(Path.cwd()), sys.prefix, str(Path.home()), str(exported.parent)]
    for path in exported.iterdir():
        content = path.read_bytes()
        assert not [folder for folder in folders if folder.encode() in content], path.name


def test_a_rebuilt_network_is_the_exported_one(exported: Path) -> None:
    network = rebuild(exported)
    assert not network.training
    weights = safetensors.torch.load_file(exported / WEIGHTS)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": _flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("artefact", [WEIGHTS, PROGRAM, ONNX, LIBRARY])
def test_a_damaged_artefact_fails_and_is_not_loaded(copy: Path, runs: list[str], artefact: str, damage: str) -> None:
    DAMAGES[damage](copy / artefact)
    report = verify(copy)
    assert not report.ok
    assert (artefact, "size and digest") in _failures(report)
    assert artefact not in runs
    others = {WEIGHTS, PROGRAM, ONNX, LIBRARY} - {artefact}
    assert set(runs) == others  # what is intact is still looked at
    if artefact == WEIGHTS:  # there is nothing to compare with then
        assert (LIBRARY, "outputs") in _failures(report)


@pytest.mark.parametrize("artefact", [POLICY, ARCHITECTURE])
def test_a_damaged_description_fails(copy: Path, runs: list[str], artefact: str) -> None:
    _flip(copy / artefact)
    report = verify(copy)
    assert (artefact, "size and digest") in _failures(report)
    assert (WEIGHTS in runs) == (artefact == POLICY)


def test_two_files_exchanged_fail_both(copy: Path, runs: list[str]) -> None:
    (copy / PROGRAM).rename(copy / "x")
    (copy / LIBRARY).rename(copy / PROGRAM)
    (copy / "x").rename(copy / LIBRARY)
    assert _failures(verify(copy)) == [(PROGRAM, "size and digest"), (LIBRARY, "size and digest")]
    assert runs == [WEIGHTS, ONNX]


def test_a_library_for_another_architecture_is_told_and_not_loaded(copy: Path, runs: list[str]) -> None:
    content = bytearray((copy / LIBRARY).read_bytes())
    content[18:20] = (3).to_bytes(2, "little")  # ELF's i386
    (copy / LIBRARY).write_bytes(content)
    _forge(copy, LIBRARY)
    report = verify(copy)
    assert report.ok, report.failures
    assert runs == [WEIGHTS, PROGRAM, ONNX]
    told = [check for check in report.checks if check.artefact == LIBRARY and not check.judged]
    assert [check.figure for check in told] == ["not here: it is for i686"]


def test_a_link_to_the_very_same_bytes_is_not_followed(copy: Path, runs: list[str], exported: Path) -> None:
    (copy / LIBRARY).unlink()
    (copy / LIBRARY).symlink_to(exported / LIBRARY)
    assert _failures(verify(copy)) == [(LIBRARY, "size and digest")]
    assert LIBRARY not in runs


@pytest.mark.parametrize("mcpu", ["cortex-a72", "no-such-processor"])
def test_a_library_for_a_device_that_this_machine_is_not_is_told_of(copy: Path, runs: list[str], mcpu: str) -> None:
    device = {"key": "pi", "mcpu": mcpu, "mtriple": "aarch64-linux-gnu"}
    _edit(copy, lambda document: document.update(device=device))
    report = verify(copy)
    assert report.ok
    told = [check.figure for check in report.checks if (check.artefact, check.check) == (LIBRARY, "runs")]
    assert told == [f"not here: it is for pi, {mcpu} aarch64-linux-gnu"]
    assert LIBRARY not in runs


def test_a_file_dropped_from_the_manifest_fails(copy: Path, runs: list[str]) -> None:
    _edit(copy, lambda document: document["files"].pop(LIBRARY))
    assert _failures(verify(copy)) == [(LIBRARY, "size and digest")]
    assert LIBRARY not in runs


def test_what_was_left_out_is_told_with_its_reason(copy: Path, runs: list[str]) -> None:
    _edit(copy, lambda document: (document["files"].pop(LIBRARY), document["left_out"].update({LIBRARY: "no LLVM"})))
    report = verify(copy)
    assert report.ok
    assert any(check.artefact == LIBRARY and check.figure == "no LLVM" for check in report.checks)


@pytest.mark.parametrize("difference", [0.0031, -0.0031, 0.5])
def test_another_accuracy_than_the_manifest_s_fails(copy: Path, runs: list[str], difference: float) -> None:
    _edit(copy, lambda document: document.update(accuracy=document["accuracy"] + difference))
    failed = _failures(verify(copy))
    assert failed == [(artefact, "accuracy") for artefact in (WEIGHTS, PROGRAM, ONNX, LIBRARY)]


def test_an_accuracy_within_tolerance_passes(copy: Path, runs: list[str]) -> None:
    _edit(copy, lambda document: document.update(accuracy=document["accuracy"] + 0.0029))
    assert verify(copy).ok


def test_of_a_large_test_split_a_part_is_judged_by_the_part_s_own_accuracy(copy: Path, runs: list[str]) -> None:
    _edit(copy, lambda document: document["verification"].update(images=100, accuracy=2.0))
    report = verify(copy)
    assert (ONNX, "accuracy") in _failures(report)
    assert any("the first 100 of 360" in check.figure for check in report.failures)


def test_counts_and_a_policy_that_the_network_does_not_have_fail(exported: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "best", ignore=shutil.ignore_patterns(PROGRAM, ONNX, LIBRARY)))
    policy = CompressionPolicy.load(copy / POLICY)
    whole = CompressionPolicy.from_keep(dict.fromkeys(policy.layers, 1.0), policy.model)
    (copy / POLICY).write_text(whole.to_json())
    _forge(copy, POLICY)
    counts = ("params", "macs", "weight_bytes")
    _edit(copy, lambda document: document.update({name: document[name] + 1 for name in counts}))
    failed = _failures(verify(copy))
    wrong = {(WEIGHTS, check) for check in ("parameters", "MACs", "bytes of weights")}
    assert {*wrong, (POLICY, "fits the network")} <= set(failed)
    assert (WEIGHTS, "accuracy") not in failed


def test_another_test_split_fails(copy: Path, runs: list[str]) -> None:
    _edit(copy, lambda document: document["verification"].update(of=361, images=361))
    assert _failures(verify(copy)) == [("data", "test images")]
    assert runs == []


def test_forged_files_of_another_network_fail_by_what_they_compute(copy: Path) -> None:
    other = build_model("lenet5", classes=10, input_shape=(1, 16, 16), seed=1)
    program, batch = capture_program(other, torch.zeros(1, 1, 16, 16))
    save_program(program, copy / PROGRAM)
    save_onnx(to_onnx(program), copy / ONNX, other.eval(), torch.zeros(1, 1, 16, 16), batch)
    (copy / LIBRARY).write_bytes(b"\x7fELF, but no library")
    _forge(copy, ONNX, PROGRAM, LIBRARY)
    failed = _failures(verify(copy))
    assert {(ONNX, "outputs"), (PROGRAM, "outputs"), (LIBRARY, "runs")} <= set(failed)
    assert not any(artefact in (WEIGHTS, POLICY, ARCHITECTURE) for artefact, _ in failed)


def test_nothing_is_left_behind(
    exported: Path, runs: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    assert verify(exported).ok
    left = [path.relative_to(tmp_path / "cache") for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert [path for path in left if path.parts[0] != "data"] == []
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "architecture.json is damaged"),
        (b'{"model": "lenet5"}', "classes"),
        (b'{"model": "lenet6", "classes": 10, "input_shape": [1, 16, 16]}', "unknown model 'lenet6'"),
        (b'{"model": "lenet5", "args": {"depth": 9}, "classes": 10, "input_shape": [1, 16, 16]}', "depth"),
        (b'{"model": "lenet5", "classes": 10, "input_shape": [1, 16, 16]}', "belongs to another architecture"),
        (b'{"model": "lenet5", "classes": 10, "input_shape": [1, 16, 16], "units": {"x": [0]}}', "channel group 'x'"),
        (b'{"model": "lenet5", "classes": 10, "input_shape": [1, 16, 16], "units": {"conv1": [1, 0]}}', "rising"),
        (b'{"model": "lenet5", "classes": 10, "input_shape": [1, 16, 16], "units": {"conv1": [99]}}', "below 20"),
        (b'{"model": "lenet5", "classes": 10, "input_shape": [1, 16, 16], "units": {"conv1": []}}', "rising"),
        (b'{"model": "nowhere:network", "classes": 10, "input_shape": [1, 16, 16]}', "--allow-code"),
    ],
)
def test_a_damaged_architecture_is_bad_input(copy: Path, content: bytes, message: str) -> None:
    (copy / ARCHITECTURE).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        rebuild(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_bad_input(copy: Path, damage: str) -> None:
    if damage == "flipped":  # a flipped weight is a weight: only its digest tells
        (copy / WEIGHTS).write_bytes(b"\xff" * 100)
    else:
        DAMAGES[damage](copy / WEIGHTS)
    with pytest.raises(InputError, match=WEIGHTS):
        rebuild(copy)


def test_weights_of_another_type_are_refused(copy: Path) -> None:
    weights = safetensors.torch.load_file(copy / WEIGHTS)
    safetensors.torch.save_file({name: tensor.double() for name, tensor in weights.items()}, copy / WEIGHTS)
    with pytest.raises(InputError, match="float64"):
        rebuild(copy)


@pytest.mark.parametrize("where", ["model", "data", "metric"])
def test_code_that_a_file_names_is_not_imported(
    copy: Path, runs: list[str], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nthing = 1\n")
    monkeypatch.chdir(tmp_path)
    if where == "model":
        _edit(copy, lambda document: document.update(model="hostile:thing"), ARCHITECTURE)
        _forge(copy, ARCHITECTURE)
    elif where == "data":
        _edit(copy, lambda document: document["data"].update(name="hostile:thing"))
    else:
        _edit(copy, lambda document: document.update(metric="hostile:thing"))
    with pytest.raises(InputError, match="--allow-code"):
        verify(copy)
    assert runs == []
    assert not (tmp_path / "ran").exists()
    assert "hostile" not in sys.modules


def test_paths_of_a_data_set_are_asked_for(copy: Path, runs: list[str]) -> None:
    _edit(copy, lambda document: document["data"].update(local=["root"]))
    with pytest.raises(InputError, match="--data root=PATH"):
        verify(copy)
    _edit(copy, lambda document: document["data"].update(local=[], args={"size": 16, "root": "/etc"}))
    with pytest.raises(InputError, match="--data root=PATH"):
        verify(copy)
    assert runs == []


def test_what_is_no_export_is_bad_input(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="an export wrote"):
            verify(directory)


def test_path_traversal_in_the_manifest_is_bad_input(copy: Path, runs: list[str]) -> None:
    record = record_file(copy / WEIGHTS).model_dump()
    _edit(copy, lambda document: document["files"].update({"../../secret": record}))
    with pytest.raises(InputError, match="by name"):
        verify(copy)
    assert runs == []


def test_outputs_are_judged_by_their_largest_difference() -> None:
    reference = np.array([[1.0, -2.0]], dtype=np.float32)
    assert check_outputs(ONNX, reference + np.float32(1.9e-4), reference).passed
    assert not check_outputs(ONNX, reference + np.float32(2.1e-4), reference).passed
    assert not check_outputs(ONNX, np.full_like(reference, np.nan), reference).passed
    assert not check_outputs(ONNX, reference[:, :1], reference).passed
    assert not check_outputs(ONNX, reference, None).passed


def test_an_export_needs_what_the_manifest_says(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weight_bytes"):
        _export(tmp_path / "best", seed=0, results={"accuracy": 0.5, "macs": 1, "params": 1})
    assert list(tmp_path.iterdir()) == []
