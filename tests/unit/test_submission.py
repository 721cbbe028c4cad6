"""What travels with a job, and what stays behind."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import automl.submission as submission
from automl.config import load_config
from automl.errors import InputError
from automl.orchestration.transfer import agent_file
from automl.run.directory import trimtab_version
from automl.submission import check_version, pack, resuming, unpack
from automl.sweeps.config import load_sweep

CONFIG: dict[str, Any] = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "args": {"size": 16}},
    "budget": {"metric": "macs", "ratio": 0.5},
    "measure": {"backend": "none"},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a user submits from."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def parcel(tmp_path: Path) -> Path:
    folder = tmp_path / "parcel"
    folder.mkdir()
    return folder


def written(here: Path, name: str = "own.yaml", **sections: Any) -> Path:
    path = here / name
    path.write_text(yaml.safe_dump({**CONFIG, **sections}, sort_keys=False))
    return path


def files(folder: Path) -> list[str]:
    return sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())


def test_a_config_of_what_comes_along_travels_alone(here: Path, parcel: Path) -> None:
    (here / "secret.py").write_text("KEY = 1")
    found = pack(written(here), ["search.evaluations=7"], parcel)
    assert (found.name, found.command, found.files) == ("own", "search", ("config.yaml",))
    assert files(parcel) == ["config.yaml"]
    assert found.size_bytes == (parcel / "config.yaml").stat().st_size
    assert load_config(parcel / "config.yaml") == load_config(here / "own.yaml", ["search.evaluations=7"])


def test_modules_of_the_user_travel_without_results_caches_and_what_is_hidden(here: Path, parcel: Path) -> None:
    for name in (
        *("nets/__init__.py", "nets/deep/blocks.py", "helper.py", "nets/classes.json", ".env", ".git/hooks/hook.py"),
        *("env/pyvenv.cfg", "env/lib/library.py", "runs/a/run.json", "runs/a/script.py", "nets/__pycache__/x.py"),
    ):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text("{}")
    source = written(here, model={"name": "nets.deep:build"})
    pack(source, [], parcel)
    assert files(parcel) == ["config.yaml", "helper.py", "nets/__init__.py", "nets/deep/blocks.py"]


@pytest.mark.parametrize("name", ["torchvision:resnet18", "installed_library.nets:build"])
def test_no_modules_travel_where_none_of_this_folder_is_named(name: str, here: Path, parcel: Path) -> None:
    (here / "helper.py").touch()
    pack(written(here, model={"name": name}), [], parcel)
    assert files(parcel) == ["config.yaml"]


def test_code_is_found_wherever_a_config_names_it(here: Path, parcel: Path) -> None:
    (here / "mine.py").touch()
    device = {"budget": {"metric": "macs", "ratio": 0.5}, "compression": {"importance": "mine:order"}}
    source = written(here, supernet={}, devices={"phone": device})
    assert pack(source, [], parcel).command == "supernet"
    assert files(parcel) == ["config.yaml", "mine.py"]


def test_what_is_included_travels_too(here: Path, parcel: Path) -> None:
    (here / "labels").mkdir()
    for name in ("labels/names.json", "labels/.hidden", "mine.py", "other.txt"):
        (here / name).touch()
    pack(written(here, metric="mine:share"), [], parcel, include=[Path("labels"), Path("mine.py")])
    assert files(parcel) == ["config.yaml", "labels/names.json", "mine.py"]


@pytest.mark.parametrize("path", ["missing", "..", "/etc/hostname"])
def test_only_what_lies_here_can_be_included(path: str, here: Path, parcel: Path) -> None:
    with pytest.raises(InputError, match="--include takes files and folders of the current directory"):
        pack(written(here), [], parcel, include=[Path(path)])


def test_checkpoints_travel_and_are_found_there(here: Path, parcel: Path) -> None:
    (here / "weights.safetensors").write_bytes(b"weights")
    (here / "net").mkdir()
    for name in ("supernet.safetensors", "samples.json", "report.html"):
        (here / "net" / name).write_text(name)
    run = here / "earlier" / "searchers"
    run.mkdir(parents=True)
    (run / "ddpg-3.safetensors").write_bytes(b"agent")
    search = {"algorithm": "ddpg", "init_from": "earlier"}
    source = written(here, model={"name": "lenet5", "checkpoint": "weights.safetensors"}, search=search)
    pack(source, ["supernet.checkpoint=net"], parcel)
    assert files(parcel) == [
        "config.yaml",
        "files/1/weights.safetensors",
        "files/2/net/samples.json",
        "files/2/net/supernet.safetensors",
        "files/3/earlier/searchers/ddpg-3.safetensors",
    ]
    config = load_config(parcel / "config.yaml")
    assert config.supernet is not None
    assert Path(str(config.model.checkpoint)).read_bytes() == b"weights"
    assert agent_file(config.search) == b"agent"
    assert config.supernet.checkpoint == str(parcel / "files" / "2" / "net")


def test_files_of_a_sweep_travel_once_each(here: Path, parcel: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (here / name).write_text(name)
    (here / "chip.yaml").write_text(yaml.safe_dump({"class": "roofline", "peak": "1 TMAC/s"}))
    energy = {"measure.accelerator": "./chip.yaml", "budget": {"metric": "energy_j", "ratio": 0.5}}
    source = written(
        here,
        model={"name": "lenet5", "checkpoint": "a.safetensors"},
        data={"name": "cifar10", "args": {"root": "pictures"}},
        sweep={
            "device": {
                "chip": energy,
                "macs": {"model.checkpoint": "b.safetensors"},
                "again": {"model": {"checkpoint": "a.safetensors"}, "budget.ratio": 0.3},
            }
        },
    )
    assert pack(source, [], parcel).command == "search"
    assert files(parcel) == [
        "config.yaml",
        "files/1/a.safetensors",
        "files/2/chip.yaml",
        "files/3/b.safetensors",
    ]
    chip, macs, again = load_sweep(parcel / "config.yaml").cells
    assert [Path(str(each.config.model.checkpoint)).read_text() for each in (chip, macs, again)] == [
        "a.safetensors",
        "b.safetensors",
        "a.safetensors",
    ]
    assert chip.config.measure.accelerator == {"class": "roofline", "peak": "1 TMAC/s"}
    assert macs.config.data.args["root"] == str(here / "pictures")


def test_a_directory_without_what_is_wanted_is_refused(here: Path, parcel: Path) -> None:
    (here / "empty").mkdir()
    source = written(here, search={"algorithm": "ddpg", "init_from": "empty"})
    with pytest.raises(InputError, match="empty' cannot travel with the job: it holds no searchers/"):
        pack(source, [], parcel)


def test_a_checkpoint_that_is_not_here_is_refused(here: Path, parcel: Path) -> None:
    source = written(here, model={"name": "lenet5", "checkpoint": "gone.safetensors"})
    with pytest.raises(InputError, match=r"gone.safetensors' cannot travel with the job: No such file"):
        pack(source, [], parcel)


def test_data_sets_stay_and_an_accelerators_description_travels(here: Path, parcel: Path) -> None:
    description = {"class": "roofline", "peak": "1 TMAC/s"}
    (here / "chip.yaml").write_text(yaml.safe_dump(description))
    source = written(
        here, data={"name": "cifar10", "args": {"root": "pictures"}}, measure={"accelerator": "./chip.yaml"}
    )
    pack(source, [], parcel)
    config = load_config(parcel / "config.yaml")
    assert config.data.args["root"] == str(here / "pictures")
    assert config.measure.accelerator == description
    assert files(parcel) == ["config.yaml"]


def test_more_than_a_dashboard_takes_is_refused(here: Path, parcel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "LIMIT_BYTES", 2 * 2**20)
    (here / "mine.py").touch()
    (here / "large.bin").write_bytes(bytes(2 * 2**20))
    source = written(here, metric="mine:share")
    pack(source, [], parcel)
    with pytest.raises(InputError, match=r"at most 2 MiB, got more; the largest file is 'large.bin' \(2.0 MiB\)"):
        pack(source, [], parcel, include=[Path("large.bin")])


def test_a_file_that_would_be_the_config_is_refused(here: Path, parcel: Path) -> None:
    source = written(here, "config.yaml")
    with pytest.raises(InputError, match=r"'config.yaml' is a name that"):
        pack(source, [], parcel, include=[source.relative_to(here)])


def test_a_tuning_is_told_by_its_section(here: Path, parcel: Path) -> None:
    source = written(here, search={"algorithm": "ddpg"}, tune={"options": {"warmup": [5, 10]}})
    assert pack(source, [], parcel).command == "tune"


def test_what_travelled_is_kept_beside_the_run(here: Path, tmp_path: Path) -> None:
    (here / "config.yaml").write_text("a: 1")
    (here / "nets").mkdir()
    (here / "nets" / "net.py").touch()
    kept = unpack(tmp_path / "runs" / "mine", trimtab_version())
    assert kept == tmp_path / "runs" / "mine.submitted"
    assert files(kept) == ["config.yaml", "nets/net.py"]
    assert not (tmp_path / "runs" / "mine").exists()
    with pytest.raises(InputError, match=r"mine.submitted' is there already; choose another --out or --name"):
        unpack(tmp_path / "runs" / "mine", trimtab_version())


def test_nothing_is_kept_where_a_run_is_already(here: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "run.json").touch()
    with pytest.raises(InputError, match="holds a run already"):
        unpack(run, trimtab_version())
    assert not run.with_name("mine.submitted").exists()


def test_another_version_on_the_cluster_is_refused(here: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"submitted by Trimtab 9.9, the cluster has .*; install the same on both"):
        check_version("9.9")
    with pytest.raises(InputError, match="submitted by Trimtab"):
        unpack(tmp_path / "run", "9.9")
    assert not (tmp_path / "run.submitted").exists()


def test_what_goes_on_follows_from_the_directory(tmp_path: Path) -> None:
    assert resuming(tmp_path) == ["resume", str(tmp_path)]
    (tmp_path / "tuning.json").touch()
    assert resuming(tmp_path) == ["tune", str(tmp_path), "--resume"]
    (tmp_path / "supernet.json").touch()
    assert resuming(tmp_path) == ["supernet", str(tmp_path), "--resume"]
