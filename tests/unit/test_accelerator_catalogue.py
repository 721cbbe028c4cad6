"""Descriptions as users write them: read where they are right, refused in one clear line where they are not."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from backends.accelerators.accelerator import Accelerator, Description, Usage
from backends.accelerators.catalogue import load, names
from backends.accelerators.workloads import Workload, Workloads
from search_spaces.errors import InputError

ROOT = Path(__file__).resolve().parents[2] / "configs"
RIGHT: dict[str, Any] = {
    "class": "roofline",
    "title": "a made up processor",
    "source": "this test",
    "clock": "1 GHz",
    "weight_bits": [4, 8],
    "activation_bits": [8],
    "peak": {4: "8 GMAC/s", 8: "4 GMAC/s"},
    "memories": {"dram": {"bandwidth": "1 GB/s"}, "l1": {"size": "4 KiB", "double_buffered": True}},
}


class Nothing(Accelerator[Description]):
    """A user's class that takes a cycle for whatever there is."""

    def run(self, works: Workloads) -> Usage:
        return self.used(works, works.macs * 0.0 + 1, {}, peak_macs_per_cycle=1.0)


def changed(*path: str | int, value: object) -> dict[str, Any]:
    """The right description with one value replaced, or left out where it is None."""
    document = copy.deepcopy(RIGHT)
    place: Any = document
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return document


def written(folder: Path, document: object, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


def refusal(path: str | Path) -> str:
    """The one line in which a description is refused; it names the file."""
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def test_the_right_description_is_read(tmp_path: Path) -> None:
    found = load(written(tmp_path, RIGHT))
    assert found.description.title == "a made up processor"
    assert found.description.clock == 1e9
    assert found.memories["l1"].usable_bits == 4 * 8192 / 2
    assert found.technology.name == "horowitz_45nm"


@pytest.mark.parametrize("name", names())
def test_what_is_shipped_says_where_it_is_from_and_how_far_it_was_checked(name: str) -> None:
    found = load(name).description
    assert len(found.title) < 80
    assert len(found.source) > 10
    assert found.checked != "", "checked says what it was not checked against, at least"
    assert load(ROOT / "accelerators" / f"{name}.yaml").description == found


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("clock",), "-1 GHz", "clock: a frequency is above 0 and finite, got '-1 GHz'"),
        (("clock",), "0 GHz", "clock: a frequency is above 0"),
        (("clock",), "1 GHx", "clock: 'GHx' is no unit of a frequency; did you mean 'GHz'"),
        (("clock",), 1e9, "clock: a frequency is a number and a unit, such as '4 Hz', got 1000000000.0"),
        (("clock",), None, "the key 'clock' is missing"),
        (("memories", "l1", "size"), "0 KiB", "memories.l1.size: a size is above 0 and finite, got '0 KiB'"),
        (("memories", "l1", "size"), "-4 KiB", "memories.l1.size: a size is above 0 and finite, got '-4 KiB'"),
        (("memories", "l1", "size"), None, "the memory level 'l1' needs a size"),
        (("memories", "dram", "size"), "1 GiB", "the memory level 'dram' has no size, it holds everything"),
        (("memories", "dram", "bandwidth"), "1 GB", "'GB' is no unit of a bandwidth"),
        (("memories", "dram", "bandwith"), "1 GB/s", "unknown key 'memories.dram.bandwith'; did you mean 'bandwidth'"),
        (("memories", "dram"), None, "a roofline accelerator needs the memory level 'dram'; add it to memories"),
        (("memories", "l4"), {"size": "1 KiB"}, "a roofline accelerator has no memory level 'l4'; it has dram, l3, l2"),
        (("memories", "l1"), "4 KiB", "memories.l1: should be a section (a mapping), got '4 KiB'"),
        (("memories",), [], "memories: "),
        (("weight_bits",), [8, 4], "weight_bits: bits are whole numbers from 1 to 32, rising, got [8, 4]"),
        (("weight_bits",), [0, 8], "bits are whole numbers from 1 to 32, rising, got [0, 8]"),
        (("weight_bits",), [8, 64], "bits are whole numbers from 1 to 32, rising, got [8, 64]"),
        (("weight_bits",), [8, 8], "bits are whole numbers from 1 to 32, rising, got [8, 8]"),
        (("weight_bits",), [], "weight_bits: "),
        (("weight_bits",), [7.5], "weight_bits.0: "),
        (("weight_bits",), 8, "weight_bits: "),
        (("weight_bits",), [8, 16], "there is a peak for the most bits that the hardware has, got those of [4, 8]"),
        (("schemes",), ["symetric"], "schemes: a scheme is one of symmetric"),
        (("batch",), 0, "batch: "),
        (("batch",), "four", "batch: "),
        (("activation_density",), 1.5, "activation_density: "),
        (("activation_density",), 0, "activation_density: "),
        (("peak",), {}, "peak: "),
        (("peak",), {8: "4 GMAC/s", 4: "2 GMAC/s"}, "the peaks must not rise with the bits"),
        (("peak",), {0: "4 GMAC/s", 8: "4 GMAC/s"}, "there is a peak for the most bits"),
        (("peak",), {"many": "4 GMAC/s"}, "peak.many"),
        (("class",), "rooflin", "there is no class of accelerators 'rooflin'; did you mean 'roofline'?"),
        (("class",), None, "the key 'class' is one of roofline"),
        (("class",), ["roofline"], "the key 'class' is one of roofline"),
        (("class",), "no.such.module:It", "class 'no.such.module:It' cannot be imported: ModuleNotFoundError"),
        (("class",), "math:", "class 'math:' cannot be imported: AttributeError"),
        (("class",), ":it", "class ':it' cannot be imported: ValueError"),
        (("class",), "math:pi", "class 'math:pi' is no backends.accelerators.accelerator.Accelerator"),
        (("technology",), "horowitz", "there is no technology 'horowitz'; did you mean 'horowitz_45nm'?"),
        (("technology",), "none.yaml", "none.yaml' cannot be read: No such file or directory"),
        (("frequency",), "1 GHz", "unknown key 'frequency'"),
    ],
)
def test_a_wrong_description_is_refused_in_one_line(
    path: tuple[str, ...], value: object, message: str, tmp_path: Path
) -> None:
    said = refusal(written(tmp_path, changed(*path, value=value)))
    assert message in said
    assert "mine.yaml" in said or "none.yaml" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an accelerator is a mapping, got None"),
        ("- roofline", "an accelerator is a mapping, got ['roofline']"),
        ("just words", "an accelerator is a mapping, got 'just words'"),
        ("class: [", "not valid YAML"),
        ("class: roofline\nclass: sparse", "the key 'class' is given twice"),
        ("class: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("class: roofline # " + "x" * 1_000_001, "at most 1,000,000 bytes"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(
                f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
            ),
            "at most 20,000 values",
        ),
        ("a: &a [*a]", "at most 20,000 values, 40 deep"),
        ("class: " + "[" * 5000, "not valid YAML"),
    ],
)
def test_a_file_that_is_no_description_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    assert message in refusal(written(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in refusal(tmp_path / "bytes.yaml")
    assert "cannot be read" in refusal(tmp_path / "none.yaml")
    (tmp_path / "folder.yaml").mkdir()
    assert "cannot be read" in refusal(tmp_path / "folder.yaml")
    assert "did you mean 'cpu_avx512'" in refusal("cpu_avx51")


def test_layers_whose_bits_the_hardware_does_not_have_are_refused(tmp_path: Path) -> None:
    found = load(written(tmp_path, RIGHT))
    works = Workloads.of([Workload(weight_bits=w, activation_bits=a) for w, a in ((8, 8), (9, 8), (8, 16), (1, 1))])
    assert found.refusals(works) == [
        None,
        "weights of 9 bits; the hardware has at most 8",
        "activations of 16 bits; the hardware has at most 8",
        None,
    ]
    assert found.fitted(works).weight_bits.tolist() == [8, 8, 8, 4]
    assert found.fitted(works).activation_bits.tolist() == [8, 8, 8, 8]


def test_a_memory_smaller_than_one_tile(tmp_path: Path) -> None:
    """One pixel of 3 x 3 windows of 1 channel with its weights and its sum is 9 * 8 + 9 * 8 + 32 bits; half of the
    buffer is there for a tile."""
    row = Workload(kernel_height=3, kernel_width=3, in_height=9, in_width=9, out_height=7, out_width=7)
    works = Workloads.of([row]).replace(weight_bits=8, activation_bits=8)
    for size, reasons in (("352 bit", [None]), ("351 bit", ["its smallest tile does not fit the level 'l1'"])):
        assert load(written(tmp_path, changed("memories", "l1", "size", value=size))).refusals(works) == reasons


def test_a_class_and_a_technology_of_one_s_own(tmp_path: Path) -> None:
    technology = yaml.safe_load((ROOT / "technologies" / "horowitz_45nm.yaml").read_text())
    written(tmp_path, {**technology, "name": "mine", "dram": "1 pJ/bit"}, "technology.yaml")
    document = {**RIGHT, "class": f"{__name__}:Nothing", "technology": "technology.yaml", "memories": {"dram": {}}}
    del document["peak"]
    found = load(written(tmp_path, document))
    assert type(found).__name__ == "Nothing"
    assert found.technology.name == "mine"
    assert found.memories["dram"].read_j == 1e-12
    works = Workloads.of([Workload(weight_bits=8, activation_bits=8)])
    assert found.run(works).cycles == 1


def test_a_class_whose_module_fails_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_accelerator.py").write_text("raise RuntimeError('two\\nlines')\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = refusal(written(tmp_path, {**RIGHT, "class": "failing_accelerator:It"}))
    assert "cannot be imported: RuntimeError: two lines" in said
