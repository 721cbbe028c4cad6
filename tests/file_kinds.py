"""Files that users bring, one of each kind as it should be, with what reads them; and what watches their readers."""

import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from automl.baseline import load_weights
from automl.baseline import to_bytes as weights_of
from automl.compare.runs import read_runs
from automl.compression.elastic import Elastic
from automl.config import load_config
from automl.costs.latency_budget import LatencyBudget
from automl.errors import InputError, TrimtabError
from automl.once_for_all.config import SupernetConfig
from automl.once_for_all.directory import SupernetDirectory
from automl.once_for_all.status import supernet_status
from automl.orchestration.search_loop import run_search
from automl.predictors.samples import Sample, read_samples, write_samples
from automl.report.data import read_run
from automl.run.directory import RunDirectory
from automl.run.status import run_status
from automl.run.store import EvaluationRow, SearchRow, Store
from automl.searchers import make_searcher
from automl.supernet.checkpoint import load_supernet, to_bytes
from automl.supernet.network import Supernet
from automl.testing.points import AdditiveAccuracy, small_space
from automl.testing.runs import make_run
from backends.accelerators.catalogue import load as load_accelerator
from backends.table_file import TableFileBackend
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import PrunableNetwork
from search_spaces.objective import Constraint, Evaluation
from search_spaces.policy import CompressionPolicy

CONFIGS = Path(__file__).parents[1] / "configs"

ODD = [
    *(
        b"null",
        b"true",
        b"-1",
        b"0",
        b"1e999",
        b"-1e999",
        b"NaN",
        b"1" * 400,
        b"0.5",
        b'""',
        b"[]",
        b"{}",
        b'"\\ud800"',
    ),
    *(
        b"[" * 3000,
        b'{"a":' * 3000,
        b"\x00",
        b"\xff\xfe",
        b"!!python/object:os.system",
        b"&a [*a]",
        b"../../x",
        b"/etc/x",
    ),
    *(b"\x80\x04cos\nsystem\n(S'true'\ntR.", b"1970-01-01", b"<<: *x", b"? [1]", b"\xf0\x9f\x92\xa5", b"\n\n\t- "),
]
"""What a value in a file may become."""

NAMES = [
    *("run: run.json", "run: config.yaml", "run: summary.json", "run: explanation.json", "run: trials.sqlite"),
    *("supernet: supernet.json", "supernet: training.json", "supernet: predictor.json", "supernet: seconds.json"),
    *(
        "config digits_resnet20.yaml",
        "config glyphs_supernet.yaml",
        "accelerator",
        "policy",
        "samples",
        "latency budget",
    ),
    *("store", "snapshot", "weights.pt", "weights.safetensors", "supernet", "table.npy", "table.csv"),
]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        content: of one that is as it should be.
        read: reads it from a path; what it raises is judged.
        name: of the file.
    """

    content: bytes
    read: Callable[[Path], object]
    name: str = "file"


class Small(nn.Module):
    """Two channel groups and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.first(images)
        return self.head((found + self.norm(self.second(found.relu()))).mean((2, 3)))  # type: ignore[no-any-return]


@cache
def network() -> PrunableNetwork:
    torch.manual_seed(0)
    return PrunableNetwork(Small().eval(), torch.zeros(1, 3, 8, 8))


def kinds(folder: Path) -> dict[str, Kind]:
    """One of each, made in a folder."""
    run, supernet = folder / "run", folder / "supernet"
    make_run(run, evaluations=6)
    found = {
        f"run: {name}": Kind((run / name).read_bytes(), _read_run, name)
        for name in ("run.json", "config.yaml", "summary.json", "explanation.json", "trials.sqlite")
    }
    made = SupernetDirectory.create(supernet, load_config(CONFIGS / "tiny_supernet.yaml", kind=SupernetConfig))
    made.training_file.write_text(json.dumps([{"epoch": 1, "epochs": 2, "loss": 0.5, "accuracies": {"smallest": 0.1}}]))
    made.predictor_file.write_text(json.dumps({"kind": "mlp", "samples": 3, "held_out": 3, "spearman": 0.5}))
    made.seconds_file.write_text(json.dumps({"training": 3.0}))
    found |= {
        f"supernet: {name}": Kind(
            (supernet / name).read_bytes(), lambda path: supernet_status(SupernetDirectory.open(path.parent)), name
        )
        for name in ("supernet.json", "training.json", "predictor.json", "seconds.json")
    }
    space = build_space(network().graph, SpaceOptions(keep=(0.5,)))
    for config in ("digits_resnet20.yaml", "glyphs_supernet.yaml", "digits_resnet20_joint.yaml"):
        if (CONFIGS / config).exists():
            kind = {"kind": SupernetConfig} if "supernet" in config else {}
            found[f"config {config}"] = Kind((CONFIGS / config).read_bytes(), partial(load_config, **kind), config)
    accelerator = next((CONFIGS / "accelerators").glob("*bit_fusion*.yaml"))
    policy = CompressionPolicy.from_keep({"first": 0.5, "second": 0.5}, network().graph.digest)
    samples = folder / "samples.json"
    write_samples(samples, "m", [Sample(policy, 0.5), Sample(policy, 0.25, held_out=True)])
    budget = folder / "budget.json"
    LatencyBudget(1e-3, 1e-4, 5e-4, 0.5, margin=0.02).write(budget)
    torch.save(Small().state_dict(), folder / "weights.pt")
    np.save(folder / "table.npy", np.ones((3, 8, 8)))
    rows = "".join(f"{name},{bits},8,{bits}\n" for name in ("first", "second", "head") for bits in (2, 8))
    return {
        **found,
        "accelerator": Kind(accelerator.read_bytes(), load_accelerator, "mine.yaml"),
        "policy": Kind(policy.to_json().encode(), lambda path: network().graph.apply(CompressionPolicy.load(path))),
        "samples": Kind(samples.read_bytes(), lambda path: read_samples(path, "m")),
        "latency budget": Kind(budget.read_bytes(), LatencyBudget.read),
        "store": Kind(_store(folder / "store.sqlite"), _read_store),
        "snapshot": Kind(_snapshot(), _go_on),
        "weights.pt": Kind((folder / "weights.pt").read_bytes(), lambda path: load_weights(Small(), path), "w.pt"),
        "weights.safetensors": Kind(weights_of(Small()), lambda path: load_weights(Small(), path), "w.safetensors"),
        "supernet": Kind(
            to_bytes(Supernet(network(), space, Elastic({}))), lambda path: load_supernet(path, network(), space)
        ),
        "table.npy": Kind((folder / "table.npy").read_bytes(), TableFileBackend, "table.npy"),
        "table.csv": Kind(f"layer,weight_bits,activation_bits,cost\n{rows}".encode(), TableFileBackend, "table.csv"),
    }


def _read_run(path: Path) -> None:
    """What `status`, `compare`, `report` and `resume` read."""
    directory = RunDirectory.open(path.parent)
    run_status(directory)
    read_run(directory.path)
    read_runs([directory.path])


def _store(path: Path) -> bytes:
    with closing(Store(path)) as store:
        store.add_searches([SearchRow("random-0", "random", 0, 20)])
        for number in range(20):
            policy = CompressionPolicy.from_keep({"first": 0.5 + number / 100})
            store.add(
                EvaluationRow("random-0", number, policy, Evaluation(number / 20, {"macs": 5.0 * number}, 0.0, 0.1))
            )
    return path.read_bytes()


def _read_store(path: Path) -> None:
    with closing(Store.read(path)) as store:
        store.overview(), store.searches(), store.counts()
        list(store.evaluations()), list(store.figures()), store.front("macs"), store.twin("0" * 64, 1.0)


class _Recorded:
    """Evaluators of a made-up accuracy that keep the last snapshot."""

    def __init__(self) -> None:
        self.accuracy = AdditiveAccuracy(small_space()[0])
        self.policies: dict[int, CompressionPolicy] = {}
        self.snapshot: bytes | None = None

    def submit(self, number: int, policy: CompressionPolicy, share: float) -> None:
        self.policies[number] = policy

    def result(self, number: int) -> Evaluation:
        space = small_space()[0]
        return Evaluation(self.accuracy(space.encode(self.policies[number])), {}, 0.0, 0.0)

    def save(self, rewards: Any, snapshot: bytes | None) -> None:
        self.snapshot = snapshot or self.snapshot


def _search(evaluations: int, snapshot: bytes | None = None) -> _Recorded:
    space, prices = small_space()
    budget = Constraint("weight_bytes", 0.3 * space.graph.weight_bytes)
    searcher = make_searcher("evolution", space=space, constraint=budget, seed=0, evaluations=8, prices=prices)
    evaluators = _Recorded()
    run_search(searcher, evaluators, evaluations=evaluations, lag=2, snapshot=snapshot, snapshot_every=1)
    return evaluators


@cache
def _snapshot() -> bytes:
    found = _search(6).snapshot
    assert found is not None
    return found


def _go_on(path: Path) -> None:
    _search(8, path.read_bytes())


class Watch:
    """Notes what is written, and where; a hook of the interpreter, which cannot be taken away again."""

    WRITES = (
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.symlink",
        "os.link",
        "os.system",
        "subprocess.Popen",
    )

    def __init__(self) -> None:
        self.events: list[str] | None = None
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.events is None:
            return
        if event == "open":
            path, _mode, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.events.append(f"{path} opened to write")
        elif event in self.WRITES:
            self.events.append(f"{event} {arguments[:1]}")

    def of(self, function: Callable[[], object]) -> list[str]:
        """What the call wrote."""
        self.events = []
        try:
            function()
        finally:
            found, self.events = self.events, None
        return found


def forbid_pickle(replace: Callable[[object, str, object], object]) -> None:
    """Have whoever reads a pickle fail; `replace` is `setattr`, or one that takes it back."""

    def unpickled(*_: object, **__: object) -> None:
        raise AssertionError("a pickle was read")

    for loader in ("load", "loads", "Unpickler"):
        replace(pickle, loader, unpickled)


@contextmanager
def judge(name: str, kind: Kind, folder: Path, watch: Watch) -> Iterator[Callable[[bytes], None]]:
    """What has a content read in the place of a kind's own: refused or not, and nothing written outside the folder.

    Args:
        name: of the kind.
        kind, folder: of `kinds`, and where they were made.
        watch: sees what is written.
    """
    home = folder / name.split(":")[0] if ":" in name else folder / "mutants"
    home.mkdir(exist_ok=True)
    path = home / kind.name
    path.write_bytes(kind.content)
    kind.read(path)  # as it is, it is read

    def read() -> None:
        with suppress(InputError, TrimtabError):
            kind.read(path)

    def judged(content: bytes) -> None:
        path.write_bytes(content)
        outside = [event for event in watch.of(read) if str(folder) not in event]
        assert not outside

    try:
        yield judged
    finally:
        path.write_bytes(kind.content)
