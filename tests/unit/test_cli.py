"""What the command refuses: one line, exit code 2, nothing written."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from automl.cli import main
from automl.listing import LISTS, METHODS
from automl.models import build_model
from automl.run.directory import RunDirectory
from automl.testing.runs import make_run
from search_spaces.factorisations import FACTORISATIONS
from search_spaces.number_formats import SCHEMES
from search_spaces.policy import CompressionPolicy
from search_spaces.sparsity import PATTERNS

BASE: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "budget": {"metric": "macs", "ratio": 0.5},
}

BROKEN = """
import torch
class Broken(torch.nn.Module):
    def __init__(self):
        super().__init__()
    def forward(self, x):
        return x @ torch.zeros(7, 7)
def none():
    return None
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, with files that are wrong in every way."""
    home = tmp_path_factory.mktemp("cli") / "home"
    home.mkdir()
    (home / "broken_module.py").write_text(BROKEN)
    (home / "text.safetensors").write_text("these are no weights")
    torch.save({"weight": torch.zeros(3), "code": print}, home / "code.pt")
    other = build_model("resnet20", classes=10, input_shape=(1, 16, 16))
    safetensors.torch.save_file(other.state_dict(), home / "other.safetensors")
    (home / "config.yaml").write_text(yaml.safe_dump(BASE))
    halved = {"schema_version": 2, "model": None, "layers": {"conv1": {"keep": 0.5}}}
    for name, policy in {**POLICIES, "halved": halved}.items():
        (home / f"{name}.json").write_text(json.dumps(policy))
    (home / "damaged.json").write_text('{"schema_version": 2, "layers": {')
    make_run(home / "run", evaluations=6)
    (home / "folder").mkdir()
    (home / "folder" / "file").write_text("")
    return home


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder as working directory; whatever is refused must leave it as it is."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(folder.parent / "cache"))
    monkeypatch.setenv("MPLCONFIGDIR", str(folder.parent / "cache"))
    monkeypatch.chdir(folder)
    before = snapshot(folder)
    yield folder
    assert snapshot(folder) == before


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts and path.name != ".lock"
    }


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["serch.evaluations=3"], "did you mean 'search'"),
        (["search.evaluations=lots"], "should be a valid integer, got 'lots'"),
        (["budget.ratio=0.001"], "the cheapest costs"),
        (["budget={metric: params, limit: 10}"], "the cheapest costs"),
        (["model.name=lenet6"], "did you mean 'lenet5'"),
        (["model.name=no_such_module:Net"], "no_such_module"),
        (["model.name=broken_module:Missing"], "broken_module"),
        (["model.name=broken_module:none"], "broken_module"),
        (["model.name=broken_module:Broken"], "cannot be run on an input"),
        (["model.args={depth: 3}"], "depth"),
        (["data.name=digit"], "did you mean 'digits'"),
        (["data.args.size=17"], "size"),
        (["data.name=cifar10", "data.args={root: nowhere}"], "nowhere"),
        (["data.name=image_folder", "data.args={root: nowhere}"], "nowhere"),
        (["model.checkpoint=none.safetensors"], "none.safetensors"),
        (["model.checkpoint=text.safetensors"], "text.safetensors"),
        (["model.checkpoint=code.pt"], "code.pt"),
        (["model.checkpoint=other.safetensors"], "another architecture"),
        (["search.algorithm=ddgp"], "did you mean 'ddpg'"),
        (["search.algorithm=ddpg", "search.options.warm=3"], "did you mean 'warmup'"),
        (["search.reward=accurate"], "accura"),
        (["compression.importance=l7"], "l7"),
        (["space.protect=[nothing*]"], "nothing*"),
        (["space.lower_bound=1.0"], "nothing is left to prune"),
        (["metric=topfive"], "topfive"),
        (["budget={metric: latency_s, ratio: 0.5}", "measure.backend=none"], "a budget in latency_s needs a backend"),
        (["budget={metric: latency_s, ratio: 0.5}", "search.algorithm=ddgp"], "did you mean 'ddpg'"),  # not measured
        (["metric=broken_module:Missing"], "Missing"),
    ],
)
def test_a_config_that_cannot_work_is_refused(
    overrides: list[str], said: str, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    arguments = ["search", "config.yaml", "--out", "out"]
    for override in overrides:
        arguments += ["--set", override]
    assert main(arguments) == 2
    refused(capsys, said)
    assert not (here / "out").exists()


POLICIES: dict[str, Any] = {
    "other_model": {"schema_version": 2, "model": "0" * 64, "layers": {"conv1": {"keep": 0.5}}},
    "unknown_layer": {"schema_version": 2, "model": None, "layers": {"conv9": {"weight_bits": 8}}},
    "unknown_group": {"schema_version": 2, "model": None, "layers": {"conv9": {"keep": 0.5}}},
    "unknown_block": {"schema_version": 2, "model": None, "layers": {"conv1": {"remove": True}}},
    "no_bits": {"schema_version": 2, "model": None, "layers": {"conv1": {"weight_bits": 0}}},
    "no_zeros": {"schema_version": 2, "model": None, "layers": {"conv1": {"sparsity": 1.0}}},
    "no_saving": {"schema_version": 2, "model": None, "layers": {"fc1": {"rank": 50}}},
    "no_window": {"schema_version": 2, "model": None, "layers": {"conv1": {"pattern": "2:4"}}},
    "newer": {"schema_version": 9, "model": None, "layers": {}},
    "text": {"schema_version": 2, "model": None, "layers": {"conv1": {"weight_bits": "eight"}}},
}


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("other_model.json", "the policy was made for another model"),
        ("unknown_layer.json", "no convolution or linear layer 'conv9'; did you mean"),
        ("unknown_group.json", "'conv9'; did you mean"),
        ("unknown_block.json", "no residual block 'conv1' of the network can go"),
        ("no_bits.json", "weight_bits is a whole number from 1 to 16, got 0"),
        ("no_zeros.json", "in [0, 1), got 1.0"),
        ("no_saving.json", "rank 50 saves nothing in layer 'fc1'"),
        ("no_window.json", "conv1"),
        ("newer.json", "a policy has schema 9, made by a newer Trimtab, and this one reads 1, 2, 3, 4"),
        ("text.json", "weight_bits is a number, got 'eight'"),
        ("damaged.json", "policy file 'damaged.json': a policy is a JSON document"),
        ("code.pt", "policy file 'code.pt'"),
        ("folder", "Is a directory"),
        ("none.json", "No such file"),
    ],
)
def test_a_policy_that_cannot_be_applied_is_refused(
    policy: str, said: str, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    assert main(["compress", "config.yaml", policy, "--out", "out"]) == 2
    refused(capsys, said)
    assert not (here / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["search.evaluators=0"], "greater than or equal to 1"),
        (["compression.importance=batch_norm_scale"], "batch norm"),
        (["budget={metric: latency_s, ratio: 0.5}", "measure.backend=none"], "a budget in latency_s needs a backend"),
        (["measure.backend=tvn"], "there is no backend 'tvn'; did you mean 'tvm'"),
    ],
)
def test_a_config_that_cannot_work_with_a_policy_is_refused_too(
    overrides: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [argument for override in overrides for argument in ("--set", override)]
    assert main(["compress", "config.yaml", "halved.json", "--out", "out", *sets]) == 2
    refused(capsys, said)


def refused(capsys: pytest.CaptureFixture[str], said: str) -> None:
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("Trimtab: ")]
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith("trimtab: error: ")
    assert said in lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["search", "none.yaml"], "No such file"),
        (["compress", "none.yaml", "halved.json"], "No such file"),
        (["compress", "config.yaml", "halved.json", "--out", "run"], "trimtab resume run"),
        (["search", "folder"], "Is a directory"),
        (["search", "text.safetensors"], "a config is a mapping"),
        (["search", "config.yaml", "--out", "run"], "trimtab resume run"),
        (["search", "config.yaml", "--out", "folder"], "not empty"),
        (["layers", "none.yaml"], "No such file"),
        (["layers", "config.yaml", "--set", "model.name=lenet6"], "did you mean"),
        (["profile", "none.yaml"], "No such file"),
        (["profile", "config.yaml", "--set", "measure.backend=none"], "latencies need a backend that measures"),
        (["profile", "config.yaml", "--set", "space.protect=[nothing*]"], "nothing*"),
        (["resume", "folder"], "is no run directory"),
        (["resume", "none"], "is no run directory"),
        (["status", "folder"], "is no run directory"),
        (["status", "none", "--json"], "is no run directory"),
        (["report", "folder"], "is no run directory"),
        (["export", "folder"], "is no run directory"),
        (["verify", "none"], "none"),
        (["verify", "folder"], "folder"),
    ],
)
def test_paths_that_are_not_what_they_should_be(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    refused(capsys, said)


@pytest.mark.parametrize(
    "arguments",
    [
        ["serch"],
        ["search"],
        ["list", "everything"],
        ["search", "c.yaml", "--outt", "x"],
        ["compress", "c.yaml"],
        ["status"],
        ["verify", "a", "b"],
    ],
)
def test_a_wrong_command_line_is_one_line_too(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    refused(capsys, "--help")


def test_an_error_that_nobody_foresaw_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(self: RunDirectory) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(RunDirectory, "info", explode)
    assert main(["status", "run"]) == 1
    refused(capsys, "unexpected ZeroDivisionError: by zero; --debug shows where")
    assert main(["status", "run", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("what", LISTS)
def test_lists(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    known = {
        "models": "resnet20",
        "data": "digits",
        "backends": "torch_cuda_compiled",
        "accelerators": "cpu_avx512",
        "algorithms": "ddpg",
        "importances": "geometric_median",
        "methods": "tiles of the matrix [out, in * kernel]",  # brackets are no markup
    }
    assert main(["list", what]) == 0
    assert known[what] in capsys.readouterr().out


def test_every_method_that_a_policy_can_name_is_listed() -> None:
    assert set(METHODS) == {*FACTORISATIONS, *PATTERNS, "block:RxC", "N:M", *SCHEMES, "remove"}


def test_layers_tell_groups_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "config.yaml"]) == 0
    out = capsys.readouterr().out
    assert "conv2" in out
    assert "channel groups that can be pruned" in out
    assert "residual blocks" not in out
    assert main(["layers", "config.yaml", "--set", "model.name=resnet20"]) == 0
    out = capsys.readouterr().out
    assert "7 residual blocks that can be left out" in out
    assert f"search space: 1.38e10 policies ({7**12:,})" in out  # seven numbers of channels for each of twelve groups
    assert main(["layers", "config.yaml", "--set", "space.lower_bound=1.0"]) == 0
    assert "search space: none; nothing is left to prune" in capsys.readouterr().out


def test_layers_on_an_accelerator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "config.yaml", "--backend", "cpu_avx512"]) == 0
    whole = capsys.readouterr().out
    assert "limited by" in whole
    assert "32/32" in whole
    options = ["--backend", "cpu_avx512", "--policy", "halved.json", "--picture", str(tmp_path / "roofline.svg")]
    assert main(["layers", "config.yaml", *options]) == 0
    assert capsys.readouterr().out != whole
    picture = (tmp_path / "roofline.svg").read_text()
    assert "conv2, baseline" in picture
    assert "conv2, compressed" in picture


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backend", "eyeris"], "there is no accelerator 'eyeris'"),
        (["--backend", "chips/none.yaml"], "'chips/none.yaml' cannot be read"),
        (["--backend", "config.yaml"], "the key 'class' is one of roofline"),
        (["--picture", "roofline.svg"], "name one by --backend"),
        (["--backend", "cpu_avx512", "--policy", "damaged.json"], "policy file 'damaged.json'"),
    ],
)
def test_layers_refuse(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "config.yaml", *options]) == 2
    refused(capsys, said)


def test_status_as_json_and_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "run", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["state"] == "done"
    assert [search["name"] for search in status["searches"]] == ["ddpg-0", "random-0", "uniform"]
    assert main(["status", "run"]) == 0
    assert "ddpg-0" in capsys.readouterr().out


def test_the_front_of_a_run_as_json_and_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "run", "--front", "--json"]) == 0
    front = json.loads(capsys.readouterr().out)
    costs, accuracies = ([each["cost"]["macs"] for each in front], [each["accuracy"] for each in front])
    assert len(front) >= 1
    assert costs == sorted(costs)
    assert accuracies == sorted(accuracies)
    assert CompressionPolicy.from_json(json.dumps(front[0]["policy"])) is not None
    assert main(["status", "run", "--front", "macs"]) == 0
    assert front[-1]["search"] in capsys.readouterr().out
    assert main(["status", "run", "--front", "energy_j"]) == 2
    refused(capsys, "no evaluation was priced in 'energy_j'; this run knows")


def test_no_command_shows_help_and_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: trimtab" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("trimtab ")
