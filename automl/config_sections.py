"""The sections of a config, each with the rules that it keeps by itself; what sections demand of each other is
`automl.config.Config`'s."""

from collections.abc import Mapping
from math import ceil
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator, model_validator

from automl.engines import ENGINES
from automl.errors import InputError, did_you_mean
from backends.accelerators.quantities import parse_bits
from backends.remote.device import RemoteDevice
from backends.remote.tracker import split_address
from search_spaces.channel_space import LOWER_BOUND
from search_spaces.objective import UNITS
from search_spaces.sections import Section
from search_spaces.space import ELASTIC


class ModelSection(Section):
    """Which network: a name of the zoo, `torchvision:NAME`, `timm:NAME` or `package.module:attribute`."""

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = None


class DataSection(Section):
    """Which data set: an embedded name or `package.module:attribute`."""

    name: str
    args: dict[str, Any] = Field(default_factory=dict)


class TrainingSection(Section):
    """How a network is trained; the fields of `automl.training.TrainingOptions`."""

    epochs: int = Field(default=20, ge=0, le=100_000)
    batch_size: int = Field(default=64, ge=1)
    lr: float = Field(default=0.1, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    optimizer: Literal["sgd", "adam"] = "sgd"
    warmup_epochs: float = Field(default=1.0, ge=0)
    seed: int = Field(default=0, ge=0)
    workers: int = Field(default=4, ge=0, le=256)
    device: str = "cpu"
    distillation: float = Field(default=0.0, ge=0, le=1)
    temperature: float = Field(default=4.0, gt=0)


class SpaceSection(Section):
    """What may be decided; the fields of `search_spaces.building.SpaceOptions`."""

    channels: bool = True
    resolution: list[float | int] = Field(default_factory=list, max_length=32)
    lower_bound: float = Field(default=LOWER_BOUND, gt=0, le=1)
    round_to: int | None = Field(default=None, ge=1)
    keep: list[Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=list, max_length=64)
    protect: list[str] = Field(default_factory=list)
    weight_bits: list[Annotated[int, Field(ge=1, le=16)] | None] = Field(default_factory=list, max_length=32)
    activation_bits: list[Annotated[int, Field(ge=1, le=16)] | None] = Field(default_factory=list, max_length=32)
    coupled_bits: bool = False
    kernel: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list, max_length=32)
    depth: int | None = Field(default=None, ge=0)
    sparsity: list[float | str] = Field(default_factory=list, max_length=32)
    pattern: str = "element"
    rank: list[float] = Field(default_factory=list, max_length=32)
    factorisation: str = "svd"
    layers: list[str] = Field(default_factory=lambda: ["*"])
    ends: bool = False
    tie: list[list[str]] = Field(default_factory=list)

    @property
    def treats(self) -> bool:
        """Whether more than channels is decided."""
        named = (self.weight_bits, self.activation_bits, self.sparsity, self.rank, self.kernel)
        return any(named) or self.depth is not None


class PhaseSection(Section):
    """A phase of progressive shrinking: the dimensions that it frees beside those freed before, for how many epochs."""

    free: list[str] = Field(min_length=1)
    epochs: int = Field(ge=1, le=100_000)
    lr: float | None = Field(default=None, gt=0)

    @field_validator("free")
    @classmethod
    def _elastic(cls, free: list[str]) -> list[str]:
        for dimension in free:
            if dimension not in ELASTIC:
                known = ", ".join(ELASTIC)
                raise ValueError(f"a phase frees some of {known}, got {dimension!r}{did_you_mean(dimension, ELASTIC)}")
        return free


class PredictorSection(Section):
    """What predicts accuracies: `samples` sub-networks are evaluated for it to learn from, `held_out` to test it."""

    kind: Literal["mlp", "boosted"] = "mlp"
    samples: int = Field(default=300, ge=0, le=1_000_000)
    held_out: int = Field(default=100, ge=0, le=1_000_000)


class SupernetTrainingSection(TrainingSection):
    """How a supernet is trained: the same, with other defaults. Half of the loss is what the largest network answers,
    unsoftened, as in OFA."""

    epochs: int = Field(default=60, ge=0, le=100_000)
    lr: float = Field(default=0.05, gt=0)
    distillation: float = Field(default=0.5, ge=0, le=1)
    temperature: float = Field(default=1.0, gt=0)


class SupernetSection(Section):
    """One network trained for all policies of the space: channels, kernels, depth and resolution.

    `checkpoint`: of a supernet that was trained before: its file, or the directory of `trimtab supernet`, whose
    evaluated sub-networks are then used as well. Without one the network that `baseline` trains is trained further: its
    sub-networks learn from it, as much as `training.distillation` says.
    `method`: "progressive" frees one dimension after another in `phases` (by default derived from `training.epochs`);
    "sandwich" trains the largest, the smallest and random ones in every step, and does better in short trainings.
    `subnets`: random sub-networks a step. `workers`: processes that share the images of every step.
    `controls`: the network from scratch that a run compares with is trained as the largest one is, for the epochs of
    that and of the supernet together, instead of for as long as others are fine-tuned.
    """

    checkpoint: str | None = None
    method: Literal["progressive", "sandwich"] = "progressive"
    training: SupernetTrainingSection = Field(default_factory=SupernetTrainingSection)
    phases: list[PhaseSection] = Field(default_factory=list, max_length=100)
    subnets: int = Field(default=2, ge=1, le=64)
    workers: int = Field(default=1, ge=1, le=1024)
    controls: bool = False
    predictor: PredictorSection = Field(default_factory=PredictorSection)

    @model_validator(mode="after")
    def _phases_of_shrinking(self) -> Self:
        if self.phases and self.method != "progressive":
            raise ValueError(f"phases are those of method 'progressive', got {self.method!r}; leave them out")
        return self

    @model_validator(mode="after")
    def _images_for_all(self) -> Self:
        if self.training.batch_size < 2 * self.workers:
            raise ValueError(
                f"training.batch_size is at least two images for each of {self.workers} workers, got "
                f"{self.training.batch_size}"
            )
        return self

    @property
    def epochs(self) -> int:
        """Of its training, the largest network's own left out."""
        return sum(phase.epochs for phase in self.phases) if self.phases else self.training.epochs


class BudgetSection(Section):
    """What the compressed network may cost: `ratio` of the uncompressed figure, or an absolute `limit`.

    The limit is in the metric's own unit: operations, parameters, bytes, seconds or joules. `latency_s` is measured, as
    `measure` says; `modelled_latency_s` and `energy_j` are those of `measure.accelerator`.
    """

    metric: str = "macs"
    ratio: float | None = Field(default=None, gt=0, le=1)
    limit: float | None = Field(default=None, gt=0)

    @field_validator("metric")
    @classmethod
    def _known(cls, metric: str) -> str:
        if metric not in UNITS:
            raise ValueError(f"a budget is one of {', '.join(UNITS)}, got {metric!r}{did_you_mean(metric, UNITS)}")
        return metric

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.ratio is None) == (self.limit is None):
            raise ValueError("exactly one of 'ratio' and 'limit' is given")
        return self


def agent_is_meant(search: Mapping[str, Any]) -> bool:
    """Whether a section that names no algorithm asks for what only an agent does."""
    return search.get("mode") == "accuracy" or search.get("faithful") is True


AUTO: Literal["auto"] = "auto"


def _memory(value: Any) -> Any:
    """Bytes, of a number or of a quantity such as "2 GiB"."""
    return ceil(parse_bits(value) / 8) if isinstance(value, str) else value


class EvaluatorSection(Section):
    """What Ray reserves for an evaluator: parts of CPUs and of GPUs, and memory, as "2 GiB" or in bytes.

    `gpus`: null for none, or, where `search.device` is "cuda", for an equal part of those there are. An evaluator
    computes on one thread whatever it reserves: results do not depend on it.
    """

    cpus: float = Field(default=1.0, ge=0, le=1024)
    gpus: float | None = Field(default=None, ge=0, le=1024)
    memory: Annotated[int, BeforeValidator(_memory)] | None = Field(default=None, ge=1)


class SearchSection(Section):
    """Which algorithm searches, how long, and with how many evaluators, on which device.

    `lag`: asked for proposal n, the searcher knows the results of the proposals before n - lag. It changes what is
    found, the number of evaluators does not; about twice to four times their number keeps them busy.
    `init_from`: a run directory, or the snapshot of one of its searches, whose agent this one's begins with.
    `evaluators`: "auto" for as many as there is room for, also on nodes that join later, while they have work.
    `evaluator`: what each of them reserves.
    `device`: where compressed networks are run on the validation images; evaluators share the GPUs there are.
    `objectives`: costs that are minimised beside the accuracy, by the algorithms that look for a whole front (nsga2,
    optuna_nsga2); by default the first budget's. The others are shown them, and look for accuracy.
    `dashboard`: whether the Ray that a run starts has its dashboard, which takes a second and some memory.
    `algorithm`: where none is named, an agent's `mode` or `faithful` asks for the agent, a supernet for "once_for_all",
    all else for "auto".
    """

    algorithm: str = "auto"
    options: dict[str, Any] = Field(default_factory=dict)
    mode: Literal["resource", "accuracy"] = "resource"
    reward: str | None = None
    faithful: bool = False
    evaluations: int = Field(default=400, ge=1, le=10_000_000)
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1, max_length=1000)
    init_from: str | None = None
    evaluators: Annotated[int, Field(ge=1, le=100_000)] | Literal["auto"] = 2
    evaluator: EvaluatorSection = Field(default_factory=EvaluatorSection)
    lag: int = Field(default=4, ge=0, le=100_000)
    device: Literal["cpu", "cuda"] = "cpu"
    objectives: list[str] = Field(default_factory=list, max_length=len(UNITS))
    dashboard: bool = False

    @model_validator(mode="before")
    @classmethod
    def _agent_where_it_is_meant(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or "algorithm" in given:
            return given
        return {**given, "algorithm": "ddpg"} if agent_is_meant(given) else given

    @field_validator("objectives")
    @classmethod
    def _costs(cls, objectives: list[str]) -> list[str]:
        for metric in objectives:
            if metric not in UNITS:
                raise ValueError(
                    f"an objective beside the accuracy is one of {', '.join(UNITS)}, got {metric!r}"
                    f"{did_you_mean(metric, UNITS)}"
                )
        return list(dict.fromkeys(objectives))

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, seeds: list[int]) -> list[int]:
        if any(seed < 0 for seed in seeds) or len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds are distinct integers of at least 0, got {seeds}")
        return seeds

    @property
    def given(self) -> bool:
        """Whether policies are given instead of searched: a budget is then reported on, and does not bound them."""
        return self.algorithm == "given"


class SparsitySection(Section):
    """How zeros are chosen; the fields of `automl.compression.SparsityOptions`."""

    criterion: str = "magnitude"
    gradual: float = Field(default=0.0, ge=0, le=1)


class QuantisationSection(Section):
    """How values are chosen for number formats; the fields of `automl.compression.QuantisationOptions`."""

    weight_range: str = "min_max"
    activation_range: str = "min_max"
    stochastic_rounding: bool = False
    bias_correction: bool = False
    seed: int = Field(default=0, ge=0)


class CompressionSection(Section):
    """How a policy is applied; the fields of `automl.compression.CompressionOptions`."""

    importance: str = "magnitude"
    reconstruct: bool = True
    calibration_images: int = Field(default=1000, ge=1)
    points_per_image: int = Field(default=10, ge=1)
    recalibrate_images: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    sparsity: SparsitySection = Field(default_factory=SparsitySection)
    quantisation: QuantisationSection = Field(default_factory=QuantisationSection)


class TargetSection(Section):
    """LLVM's names of a device's processor and, where it is not like this one, of its machine ("aarch64-linux-gnu")."""

    mcpu: str
    mtriple: str = ""


class DeviceSection(Section):
    """Devices elsewhere, all of one kind, reached through a TVM RPC tracker: see `backends.remote.device.RemoteDevice`
    for the fields, and docs/devices.md."""

    tracker: str
    key: str = Field(min_length=1, pattern=r"^[^\s:]+$")
    target: TargetSection
    timeout_s: float = Field(default=30.0, gt=0, le=3600)

    @field_validator("tracker")
    @classmethod
    def _address(cls, tracker: str) -> str:
        try:
            split_address(tracker)
        except InputError as error:
            raise ValueError(str(error)) from None
        return tracker


class StorageSection(Section):
    """Where copies of the run directory are kept: "s3://bucket/folder", "file:///nfs/folder" or an absolute path.

    The run itself stays on the local disk of the machine that drives it. `every_s`: seconds between two copies while a
    stage goes on; there is one at the end of every stage, too.
    """

    uri: str = Field(min_length=1)
    every_s: float = Field(default=180.0, ge=1.0, le=86_400)

    @field_validator("uri")
    @classmethod
    def _no_password(cls, uri: str) -> str:
        if urlsplit(uri).password is not None:
            raise ValueError("holds no password, for it is written down; the storage's own settings do")
        return uri


class MeasureSection(Section):
    """What latency means in this run, and how it is measured; `backend: none` leaves it out.

    Behind "_cuda" a CUDA device runs whole networks; compiled code and CUDA have no table, so no latency budget either.

    `device`: measured on instead of this machine, by the backend "tvm".

    `accelerator`: whose model prices policies in seconds and joules: one of `trimtab list accelerators`, the path of a
    YAML file, or what such a file holds, as which a run remembers it.

    Under a latency budget the backend's table of operators prices every policy. `margin` is the share of the budget
    that the search holds back for the table's error; null measures that error on a few networks first.
    `estimate_missing` has a regression stand in for operators that are not in the table yet, instead of measuring them.
    """

    backend: str = "tvm"
    threads: int = Field(default=1, ge=1, le=256)
    margin: float | None = Field(default=None, ge=0, lt=1)
    estimate_missing: bool = False
    device: DeviceSection | None = None
    accelerator: str | dict[str, Any] | None = None

    @field_validator("backend")
    @classmethod
    def _known(cls, backend: str) -> str:
        known = (*ENGINES, "none")
        if backend not in known:
            raise ValueError(f"there is no backend {backend!r}{did_you_mean(backend, known)}")
        return backend

    @model_validator(mode="after")
    def _reached(self) -> Self:
        if self.device is not None and self.backend != "tvm":
            raise ValueError(f"measure.device is reached by the backend 'tvm' alone, got {self.backend!r}")
        return self

    @property
    def remote(self) -> RemoteDevice | None:
        """The devices that are measured on; None for this machine."""
        if self.device is None:
            return None
        target = self.device.target
        return RemoteDevice(self.device.tracker, self.device.key, target.mcpu, target.mtriple, self.device.timeout_s)


class MlflowSection(Section):
    """An MLflow tracking server ("http://127.0.0.1:5000"), or a database that one reads ("sqlite:////data/mlflow.db"),
    and the experiment there.

    Who may write is MLflow's business (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, MLFLOW_TRACKING_TOKEN).
    """

    uri: str = Field(min_length=1)
    experiment: str = Field(default="trimtab", min_length=1)

    @field_validator("uri")
    @classmethod
    def _address(cls, uri: str) -> str:
        if "://" not in uri:
            raise ValueError(
                f"an uri has a scheme, such as http://127.0.0.1:5000 or sqlite:////data/mlflow.db, got {uri!r}"
            )
        if "@" in uri.partition("://")[2].partition("/")[0]:
            raise ValueError("a config holds no password; leave it out of the uri, and set MLFLOW_TRACKING_PASSWORD")
        return uri


class LoggersSection(Section):
    """Where else than in the run directory a run's figures go."""

    tensorboard: bool = False
    mlflow: MlflowSection | None = None
