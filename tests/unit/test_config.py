import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from automl.compression import CompressionOptions, QuantisationOptions, SparsityOptions
from automl.config import Config, load_config
from automl.config_sections import CompressionSection, QuantisationSection, SparsitySection, TrainingSection
from automl.configured import compression_options
from automl.engines import ENGINES
from automl.errors import InputError
from automl.once_for_all.config import SupernetConfig
from automl.sweeps.config import load_sweep
from automl.training import TrainingOptions
from automl.tuning.config import TuningConfig
from backends import measuring_worker, table_backend
from search_spaces.yaml_text import MAX_BYTES, parse_yaml

MINIMAL = {"model": {"name": "resnet20"}, "data": {"name": "digits"}, "budget": {"metric": "macs", "ratio": 0.5}}


def test_resolved_config_reads_back_as_itself(tmp_path: Path) -> None:
    config = load_config({**MINIMAL, "baseline": {"lr": 1e-5}}, ["search.seeds=[3, 1]", "model.args.shortcut=A"])
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert load_config(file) == config
    assert config.search.seeds == [3, 1]
    assert config.model.args == {"shortcut": "A"}


def test_overrides_leave_the_callers_mapping_alone() -> None:
    given = {**MINIMAL, "search": {"options": {"warmup": 3}}}
    load_config(given, ["search.options.warmup=5"])
    assert given["search"] == {"options": {"warmup": 3}}


def test_paths_are_relative_to_the_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    file = folder / "c.yaml"
    data = {"name": "image_folder", "args": {"root": "../images"}}
    file.write_text(yaml.safe_dump({**MINIMAL, "data": data, "model": {"name": "resnet20", "checkpoint": "w.pt"}}))
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("configs/c.yaml"))
    assert config.model.checkpoint == str(folder / "w.pt")
    assert config.data.args["root"] == str(tmp_path / "images")
    overridden = load_config(Path("configs/c.yaml"), ["model.checkpoint=w.pt", "data.args.root=images"])
    assert overridden.model.checkpoint == str(tmp_path / "w.pt")  # what is typed is where it is typed
    assert overridden.data.args["root"] == str(tmp_path / "images")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("serch.evaluations=3", "unknown key 'serch'; did you mean 'search'?"),
        ("search.evaluatons=3", "unknown key 'search.evaluatons'; did you mean"),
        ("budget.ration=0.5", "unknown key 'budget.ration'; did you mean 'ratio'"),
        ("search.evaluations=many", "search.evaluations: should be a valid integer, got 'many'"),
        ("search.evaluations=true", "search.evaluations: should be a valid integer, got True"),
        ("search.evaluations=1.5", "search.evaluations"),
        ("search.evaluations=0", "search.evaluations: should be greater than or equal to 1, got 0"),
        ("search.seeds=[0, 0]", "search.seeds: seeds are distinct integers of at least 0, got [0, 0]"),
        ("search.mode=fast", "search.mode: should be 'resource' or 'accuracy', got 'fast'"),
        ("budget.ratio=1.5", "budget.ratio: should be less than or equal to 1, got 1.5"),
        ("budget.ratio=.nan", "budget.ratio: should be a finite number, got nan"),
        ("budget.limit=1000", "exactly one of 'ratio' and 'limit'"),
        ("budget.metric=mac", "modelled_latency_s, energy_j, got 'mac'; did you mean"),
        ("measure={backend: none}\nbudget.metric=latency_s", "a backend that measures, got measure.backend 'none'"),
        ("budget.metric=energy_j", "a budget in energy_j is that of an accelerator's model; name one as measure.acc"),
        (
            "measure={accelerator: cpu_avx512}\nsearch={faithful: true}\nbudget.metric=modelled_latency_s",
            "search.faithful bounds MACs as published, not latency",
        ),
        ("search={faithful: true}\nbudget.metric=latency_s", "search.faithful bounds MACs as published, not latency"),
        ("search={reward: accuracy_latency}", "set budget.metric to latency_s"),
        ("measure.margin=1.0", "measure.margin: should be less than 1, got 1.0"),
        ("budget=null", "a budget is needed"),
        ("budget=3", "budget: should be a section (a mapping), got 3"),
        ("model=null", "model: should be a section"),
        ("baseline.lr=0", "baseline.lr: should be greater than 0, got 0"),
        ("fine_tune.epochs=-1", "fine_tune.epochs"),
        ("search.evaluations", "an override has the form key.sub=value, got 'search.evaluations'"),
        (".x=1", "an override has the form key.sub=value"),
        ("search.evaluations.more=1", "search.evaluations"),
        ("model.name.more=1", "'name' is no section, it holds 'resnet20'"),
        ("search.seeds=[1", "not valid YAML"),
        ("search={a: 1, a: 2}", "the key 'a' is given twice"),
        ("search.options=&a [*a]", "a config holds at most"),
        ("search.options=!!python/object/apply:os.system [true]", "not valid YAML"),
        ("search.options={[1, 2]: 3}", "not valid YAML"),
    ],
)
def test_bad_values_are_refused_in_one_line_that_names_them(override: str, said: str) -> None:
    with pytest.raises(InputError) as refusal:
        load_config(MINIMAL, override.splitlines())
    message = str(refusal.value)
    assert said in message
    assert "\n" not in message
    assert len(message) < 400


def test_a_missing_section_is_named() -> None:
    with pytest.raises(InputError, match="the key 'model' is missing"):
        load_config({"data": {"name": "digits"}, "budget": {"ratio": 0.5}})


def test_several_budgets_are_a_list_that_the_measured_latency_leads() -> None:
    size, latency = {"metric": "weight_bytes", "ratio": 0.2}, {"metric": "latency_s", "limit": 0.1}
    config = load_config({**MINIMAL, "budget": [size, latency]})
    assert [each.metric for each in config.budgets] == ["latency_s", "weight_bytes"]
    assert load_config(yaml.safe_load(config.to_yaml())) == config
    assert load_config({**MINIMAL, "budget": [size]}).budgets[0].metric == "weight_bytes"
    for budget, changes, rule in (
        ([size, size], {}, "budgets are in different metrics, got weight_bytes, weight_bytes"),
        ([size, {"metric": "macs"}], {}, "exactly one of 'ratio' and 'limit'"),
        ([latency, {"metric": "energy_j", "ratio": 0.5}], {"measure": {"accelerator": "cpu_avx512"}}, "goes together"),
        ([size, latency], {"search": {"mode": "accuracy"}}, "one budget at most"),
        (size, {"search": {"objectives": ["energy_j"]}}, "that the search knows, here macs, params, weight_bytes, got"),
        (size, {"search": {"objectives": ["flops"]}}, "an objective beside the accuracy is one of"),
        ([], {}, "a budget is needed"),
    ):
        with pytest.raises(InputError, match=re.escape(rule)):
            load_config({**MINIMAL, "budget": budget, **changes})


def test_accuracy_mode_needs_no_budget_and_has_its_own_reward() -> None:
    config = load_config({**MINIMAL, "budget": None, "search": {"mode": "accuracy"}})
    assert config.budget is None
    assert config.reward_name == "accuracy_flops"
    assert load_config(MINIMAL).reward_name == "accuracy"


def test_a_latency_budget_counts_latency_in_accuracy_mode_too() -> None:
    budget = {"metric": "latency_s", "ratio": 1.0}
    config = load_config({**MINIMAL, "budget": budget, "search": {"mode": "accuracy"}})
    assert config.latency_budget
    assert config.reward_name == "accuracy_latency"
    assert load_config({**MINIMAL, "budget": budget}).reward_name == "accuracy"


def test_backends_are_the_engines_that_measure_and_those_with_tables_are_among_them() -> None:
    assert set(ENGINES) == set(measuring_worker._ENGINES)
    assert set(ENGINES) > set(table_backend.ENGINES)
    for name in (*ENGINES, "none"):
        assert load_config({**MINIMAL, "measure": {"backend": name}}).measure.backend == name
    with pytest.raises(InputError, match=r"measure.backend: there is no backend 'tvn'; did you mean 'tvm'"):
        load_config({**MINIMAL, "measure": {"backend": "tvn"}})


def test_given_policies_need_no_budget_and_no_latency_table() -> None:
    given = {**MINIMAL, "search": {"algorithm": "given"}}
    assert load_config({**given, "budget": None}).cost_metric == "macs"
    assert load_config({**given, "budget": {"metric": "params", "ratio": 0.5}}).cost_metric == "params"
    timed = load_config({**given, "budget": {"metric": "latency_s", "ratio": 0.5}})
    assert timed.latency_budget
    assert not timed.priced_by_table
    assert timed.cost_metric == "macs"
    assert load_config({**MINIMAL, "budget": {"metric": "latency_s", "ratio": 0.5}}).priced_by_table


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe\x00", "UTF-8"),
        (b"a: [1", "not valid YAML"),
        (b"- 1\n- 2\n", "a config is a mapping of sections"),
        (b"", "a config is a mapping of sections"),
        (b"#" * (MAX_BYTES + 1), "has at most"),
        (
            b"a: &a [1]\nb: &b [*a, *a]\n"
            + b"".join(b"c%d: &c%d [%s]\n" % (i, i, b", ".join([b"*b"] * 9)) for i in range(3)),
            None,
        ),
    ],
)
def test_files_that_are_no_config(tmp_path: Path, content: bytes, said: str | None) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=said) as refusal:
        load_config(file)
    assert "\n" not in str(refusal.value)


def test_an_alias_bomb_is_refused_without_being_written_out() -> None:
    levels = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(InputError, match="aliases written out"):
        parse_yaml("\n".join(levels), "bomb")


def test_a_number_in_scientific_notation_is_a_number() -> None:
    assert parse_yaml("[1e-3, -2E5, 1.5e2, 1e3x]", "text") == [1e-3, -2e5, 150.0, "1e3x"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_config(tmp_path)


def test_sections_have_the_fields_of_the_options_they_become() -> None:
    assert set(TrainingSection.model_fields) == {field.name for field in fields(TrainingOptions)}
    assert set(CompressionSection.model_fields) == {field.name for field in fields(CompressionOptions)}
    assert set(SparsitySection.model_fields) == {field.name for field in fields(SparsityOptions)}
    assert set(QuantisationSection.model_fields) == {field.name for field in fields(QuantisationOptions)}
    config = load_config(MINIMAL | {"compression": {"quantisation": {"weight_range": "mse"}}})
    assert compression_options(config) == CompressionOptions(quantisation=QuantisationOptions(weight_range="mse"))
    config = load_config(MINIMAL | {"compression": {"sparsity": {"criterion": "taylor", "gradual": 0.5}}})
    assert compression_options(config) == CompressionOptions(sparsity=SparsityOptions("taylor", 0.5))
    with pytest.raises(InputError, match="no calibration 'mes' here; did you mean 'mse'"):
        compression_options(load_config(MINIMAL | {"compression": {"quantisation": {"weight_range": "mes"}}}))


def test_importing_the_package_or_reading_a_config_loads_nothing_heavy() -> None:
    program = (
        "import sys, automl, automl.cli, automl.config, automl.run.status\n"
        "print([name for name in ('torch', 'ray', 'tvm', 'stable_baselines3', 'gymnasium') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[2].glob("configs/*.yaml")), ids=lambda path: path.name)
def test_configs_that_come_along_are_valid(file: Path) -> None:
    if file.stem == "sweep":
        assert load_sweep(file).cells
        return
    kinds: dict[str, type[Config]] = {"tune": TuningConfig, "supernet": SupernetConfig}
    load_config(file, kind=next((kinds[word] for word in file.stem.split("_") if word in kinds), Config))


@pytest.mark.parametrize(
    ("search", "algorithm"),
    [({}, "auto"), ({"faithful": True}, "ddpg"), ({"mode": "accuracy"}, "ddpg"), ({"algorithm": "tpe"}, "tpe")],
)
def test_an_algorithm_that_is_not_named_follows_from_the_rest(search: dict[str, Any], algorithm: str) -> None:
    config = load_config({**MINIMAL, "search": search})
    assert config.search.algorithm == algorithm
    assert load_config(yaml.safe_load(config.to_yaml())) == config
    of_supernet = load_config({**MINIMAL, "search": search, "supernet": {}})
    assert of_supernet.search.algorithm == ("once_for_all" if algorithm == "auto" else algorithm)
    assert load_config({**MINIMAL, "supernet": {}}).search.algorithm == "once_for_all"
