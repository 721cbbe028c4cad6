"""A user's own table of layer x bits costs: what it prices, and every way in which the file can be wrong."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automl.testing.problems import conv_chain
from backends.table_file import TableFileBackend
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.policy import CompressionPolicy, LayerPolicy

HEADER = "layer,weight_bits,activation_bits,cost"
GRAPH = conv_chain((4, 8))  # conv0, conv1, classifier
TABLE = np.arange(3 * 8 * 8).reshape(3, 8, 8)


def uniform(graph: ModelGraph, bits: int) -> ModelGraph:
    layer = LayerPolicy(weight_bits=bits, activation_bits=bits)
    return graph.apply(CompressionPolicy({spec.name: layer for spec in graph.layers}))


def npy(path: Path, table: Any) -> Path:
    np.save(path / "table.npy", table)
    return path / "table.npy"


def text(path: Path, content: str) -> Path:
    (path / "table.csv").write_text(content, encoding="utf-8")
    return path / "table.csv"


def rows(names: list[str], bits: tuple[int, ...] = (4, 8)) -> str:
    lines = [f"{name},{w},{a},{100 * i + w + a / 10}" for i, name in enumerate(names) for w in bits for a in bits]
    return "\n".join([HEADER, *lines])


def test_the_costs_of_each_layers_bits_are_summed(tmp_path: Path) -> None:
    backend = TableFileBackend(npy(tmp_path, TABLE), unit="cycles")
    graph = GRAPH.apply(
        CompressionPolicy(
            {
                "conv0": LayerPolicy(weight_bits=1, activation_bits=8),
                "conv1": LayerPolicy(weight_bits=3, activation_bits=2),
                "classifier": LayerPolicy(weight_bits=8, activation_bits=8),
            }
        )
    )
    assert backend.supports(graph) == ()
    cost = backend.estimate(graph)
    assert cost.by_layer == {"conv0": 7, "conv1": 64 + 2 * 8 + 1, "classifier": 191}
    assert backend.total(graph) == 7 + 81 + 191
    assert cost.latency_s is None
    assert (cost.macs, cost.params, cost.weight_bytes) == (graph.macs, graph.params, graph.weight_bytes)


def test_seconds_and_cycles_at_a_clock_are_latencies_of_one_image(tmp_path: Path) -> None:
    path, graph = npy(tmp_path, TABLE), uniform(GRAPH, 8)
    total = 63 + 127 + 191
    seconds = TableFileBackend(path, batch=4, measured=True).estimate(graph)
    assert seconds.latency_s == total / 4
    assert seconds.measured
    cycles = TableFileBackend(path, unit="cycles", frequency_hz=2e8, batch=16).estimate(graph)
    assert cycles.latency_s == pytest.approx(total / 2e8 / 16, rel=1e-15)
    assert not cycles.measured
    for cost in (seconds, cycles):
        assert cost.latency_s is not None
        assert sum(cost.by_layer.values()) == pytest.approx(cost.latency_s, rel=1e-15)
    assert seconds.as_metrics()["latency_s"] == seconds.latency_s
    assert cycles.as_metrics()["modelled_latency_s"] == cycles.latency_s


def test_cycles_without_a_clock_are_no_measured_latency(tmp_path: Path) -> None:
    cost = TableFileBackend(npy(tmp_path, TABLE), unit="cycles", measured=True).estimate(uniform(GRAPH, 8))
    assert not cost.measured


@pytest.mark.parametrize("names", [["conv0", "conv1", "classifier"], ["0", "1", "2"]])
def test_csv_names_layers_or_numbers_them(tmp_path: Path, names: list[str]) -> None:
    backend = TableFileBackend(text(tmp_path, rows(names)))
    assert backend.total(uniform(GRAPH, 8)) == pytest.approx(8.8 + 108.8 + 208.8)


def test_csv_columns_and_rows_come_in_any_order(tmp_path: Path) -> None:
    lines = ["cost, weight_bits ,layer,activation_bits", "3,8,2,8", "", "1e-3,8,0,8", "20, 8,1,8"]
    path = tmp_path / "table.CSV"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert TableFileBackend(path).total(uniform(GRAPH, 8)) == 23.001


def test_names_come_before_numbers(tmp_path: Path) -> None:
    """Layers of an `nn.Sequential` are called "0", "2", ...: a file that names them all means names."""
    from search_spaces.layers import Extent, LayerSpec

    def layer(name: str) -> LayerSpec:
        return LayerSpec(name, "linear", 4, 4, (), (), (), (), 1, (), (), 1, True, Extent(fixed=4), Extent(fixed=4))

    graph = uniform(ModelGraph.build([], [layer("1"), layer("0")], [], [], (4,)), 8)
    cost = TableFileBackend(text(tmp_path, f"{HEADER}\n0,8,8,5\n1,8,8,7")).estimate(graph)
    assert cost.by_layer == {"0": 5, "1": 7}


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["conv0", "conv1"], "has 2 layers, the network 3; layer 'classifier' of the network is not in the file"),
        (["0", "1"], "has 2 layers, the network 3; layer '2' of the network is not in the file"),
        (["0", "1", "2", "3"], "has 4 layers, the network 3; layer '3' of the file is not in the network"),
        (
            ["conv0", "cov1", "classifier"],
            "layer 'conv1' of the network is not in the file; layer 'cov1' of the file is not in the network",
        ),
        (["conv0", "1", "2"], "layer 'conv1' of the network is not in the file; layer '1' of the file is not in"),
    ],
)
def test_a_table_of_another_network_is_a_reason(tmp_path: Path, names: list[str], reason: str) -> None:
    backend = TableFileBackend(text(tmp_path, rows(names)))
    (found,) = backend.supports(uniform(GRAPH, 8))
    assert reason in found
    with pytest.raises(InputError, match="backend 'table_file' cannot price the network"):
        backend.estimate(uniform(GRAPH, 8))


def test_bits_that_the_table_lacks_are_reasons(tmp_path: Path) -> None:
    backend = TableFileBackend(npy(tmp_path, TABLE))
    reasons = backend.supports(GRAPH)
    assert len(reasons) == 3
    assert "no cost of layer 'conv0' with 32 bits of weights and 32 of activations" in reasons[0]
    assert "it knows 1 to 8 of weights, 1 to 8 of activations" in reasons[0]
    with pytest.raises(InputError, match=r"and 2 more reasons"):
        backend.total(GRAPH)
    assert "knows 4, 8 of weights" in TableFileBackend(text(tmp_path, rows(["0", "1", "2"]))).supports(GRAPH)[0]


def test_pruned_layers_are_a_reason(tmp_path: Path) -> None:
    backend = TableFileBackend(npy(tmp_path, TABLE))
    (reason,) = backend.supports(uniform(GRAPH, 8).with_kept((4, 7)))
    assert "knows whole layers, 7 of 8 units are kept of 'conv1'" in reason


def broken(value: float) -> np.ndarray[Any, Any]:
    table = TABLE.astype(np.float64)
    table[1, 2, 3] = value
    return table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.array([{"a": 1}], dtype=object), "not an array of numbers"),
        (TABLE[0], r"got the shape \[8, 8\]"),
        (TABLE[:0], r"got the shape \[0, 8, 8\]"),
        (np.ones((2, 33, 8)), r"at most 32 bits, got the shape \[2, 33, 8\]"),
        (TABLE > 3, "got an array of bool"),
        (TABLE * 1j, "got an array of complex128"),
        (TABLE.astype(str), "got an array of <U"),
        (broken(float("nan")), r"at least 0, got nan at \[1, 2, 3\]"),
        (broken(float("inf")), r"at least 0, got inf at \[1, 2, 3\]"),
        (broken(-1.0), r"at least 0, got -1.0 at \[1, 2, 3\]"),
    ],
)
def test_a_malformed_array_is_refused_in_one_line(tmp_path: Path, table: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        TableFileBackend(npy(tmp_path, table))
    assert "table.npy" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_arrays_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, TABLE)
    whole = stream.getvalue()
    promises = whole.replace(b"(3, 8, 8), }" + b" " * 12, b"(3, 8, 8000000000000), }")
    assert len(promises) == len(whole)
    assert promises != whole
    path = tmp_path / "table.npy"
    for content in (b"", b"no array", whole[:50], whole[:-1], promises):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"table\.npy.*not an array of numbers"):
            TableFileBackend(path)
    np.savez(tmp_path / "many.npz", TABLE)
    (tmp_path / "many.npz").rename(path)
    with pytest.raises(InputError, match="not an array of numbers"):
        TableFileBackend(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the first line is layer,weight_bits,activation_bits,cost, got ''"),
        ("0,8,8,1.0", "the first line is"),
        (HEADER.replace("cost", "cycles"), "got 'layer,weight_bits,activation_bits,cycles'"),
        (HEADER, "no rows after the header"),
        (f"{HEADER}\n0,8,8", "line 2 has 3 cells, the header 4"),
        (f"{HEADER}\n0,8,8,1\n0,8,8,2", "line 3 gives layer '0' with 8/8 bits a second time"),
        (f"{HEADER}\n0,0,8,1", "line 2: bits are a whole number from 1 to 32, got '0'"),
        (f"{HEADER}\n0,33,8,1", "got '33'"),
        (f"{HEADER}\n0,8,8.5,1", "got '8.5'"),
        (f"{HEADER}\n0,8,{'9' * 5000},1", "bits are a whole number"),
        (f"{HEADER}\n0,8,8,many", "line 2: a cost is a number, got 'many'"),
        (f"{HEADER}\n0,8,8,", "line 2: a cost is a number, got ''"),
        (f"{HEADER}\n0,8,8,nan", "a cost is a finite number of at least 0, got nan in line 2"),
        (f"{HEADER}\n0,8,8,-1", "got -1.0 in line 2"),
        (f"{HEADER}\n0,8,8,1e999", "got inf in line 2"),
        (f'{HEADER}\n"0,8,8,1', "not a CSV file"),
        (f"{HEADER}\n{'0' * 200_000},8,8,1", "not a CSV file"),
    ],
)
def test_a_malformed_csv_is_refused_in_one_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        TableFileBackend(text(tmp_path, content))
    assert message in str(caught.value)
    assert "table.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_none_of_these_are_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        TableFileBackend(tmp_path / "table.csv")
    with pytest.raises(InputError, match=r"ends in \.csv or \.npy, got '.*table\.json'"):
        TableFileBackend(tmp_path / "table.json")
    for name in ("gone.csv", "gone.npy"):
        with pytest.raises(InputError, match=rf"{name}' cannot be read: No such file"):
            TableFileBackend(tmp_path / name)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        TableFileBackend(tmp_path / "folder.csv")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "second"}, "seconds or cycles, got 'second'; did you mean 'seconds'"),
        ({"frequency_hz": 1e9}, "a table in seconds needs none"),
        ({"unit": "cycles", "frequency_hz": 0}, "a finite number above 0, got 0"),
        ({"unit": "cycles", "frequency_hz": float("inf")}, "a finite number above 0, got inf"),
        ({"batch": 0}, "a whole number of at least 1, got 0"),
        ({"batch": True}, "a whole number of at least 1, got True"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TableFileBackend(npy(tmp_path, TABLE), **arguments)


def test_flipped_bytes_in_an_array_raise_nothing_else(tmp_path: Path) -> None:
    whole = npy(tmp_path, TABLE).read_bytes()
    generator = np.random.default_rng(0)
    messages = []
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.integers(128)] = generator.integers(256)
        (tmp_path / "table.npy").write_bytes(damaged)
        try:
            TableFileBackend(tmp_path / "table.npy")
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)
