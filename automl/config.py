"""The config of a run: YAML at the boundary, refused with one line where it is wrong.

Everything a run does follows from its config, and the resolved config stands in the run directory, so that a resumed
run needs nothing else. Paths (`model.checkpoint`, `search.init_from`, `supernet.checkpoint`, and `root` or `path` among
the arguments of a data set) are relative to the config file; a config given as a mapping and `--set` have them relative
to the working directory.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import yaml
from pydantic import Field, model_validator

from automl.config_sections import (
    BudgetSection,
    CompressionSection,
    DataSection,
    LoggersSection,
    MeasureSection,
    ModelSection,
    SearchSection,
    SpaceSection,
    StorageSection,
    SupernetSection,
    TrainingSection,
    agent_is_meant,
)
from automl.errors import InputError
from backends.accelerators.catalogue import is_path, read_description
from search_spaces.objective import COUNTED, MODELLED, UNITS
from search_spaces.sections import Section, checked, shown
from search_spaces.yaml_text import parse_yaml, read_yaml

PATH_ARGUMENTS = ("root", "path")
ACCELERATOR_KEY = "measure.accelerator"
PATH_KEYS = (
    "model.checkpoint",
    "search.init_from",
    "supernet.checkpoint",
    *(f"data.args.{name}" for name in PATH_ARGUMENTS),
)


class Config(Section):
    """Everything that decides what a run does.

    `budget` is one, or a list of several that are all kept: `budget` then becomes the one in measured latency, or else
    the first, by which policies are compared, and `further_budgets` the others.
    """

    model: ModelSection
    data: DataSection
    metric: str | None = None
    baseline: TrainingSection = Field(default_factory=TrainingSection)
    space: SpaceSection = Field(default_factory=SpaceSection)
    supernet: SupernetSection | None = None
    budget: BudgetSection | None = None
    further_budgets: list[BudgetSection] = Field(default_factory=list, max_length=len(UNITS))
    search: SearchSection = Field(default_factory=SearchSection)
    compression: CompressionSection = Field(default_factory=CompressionSection)
    fine_tune: TrainingSection = Field(default_factory=lambda: TrainingSection(lr=0.02))
    measure: MeasureSection = Field(default_factory=MeasureSection)
    loggers: LoggersSection = Field(default_factory=LoggersSection)
    storage: StorageSection | None = None

    @model_validator(mode="before")
    @classmethod
    def _search_of_a_supernet(cls, document: Any) -> Any:
        if not isinstance(document, dict) or document.get("supernet") is None:
            return document
        search = document.get("search") or {}
        if not isinstance(search, dict) or "algorithm" in search or agent_is_meant(search):
            return document
        return {**document, "search": {**search, "algorithm": "once_for_all"}}

    @model_validator(mode="before")
    @classmethod
    def _several(cls, document: Any) -> Any:
        if not isinstance(document, dict) or not isinstance(document.get("budget"), list):
            return document
        if "further_budgets" in document:
            raise ValueError("'budget' is a list of all budgets; leave 'further_budgets' out")
        first, *others = sorted(
            document["budget"], key=lambda each: not isinstance(each, dict) or each.get("metric") != "latency_s"
        ) or [None]
        return {**document, "budget": first, "further_budgets": others}

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        metrics = [each.metric for each in self.budgets]
        if len(set(metrics)) < len(metrics):
            raise ValueError(f"budgets are in different metrics, got {', '.join(metrics)}")
        if self.further_budgets and self.search.mode == "accuracy":
            raise ValueError("mode 'accuracy' has one budget at most, which it reports on; give one")
        if self.further_budgets and self.search.faithful:
            raise ValueError("search.faithful keeps one budget, as published; give one, or set it to false")
        if self.further_budgets and self.latency_budget and (modelled := sorted({*metrics} & {*MODELLED})):
            raise ValueError(
                f"a budget in measured latency goes together with counted ones (MACs, parameters, bytes), got "
                f"{modelled[0]!r}: a policy is priced by a table or by a model"
            )
        known = {*COUNTED, *(MODELLED if self.measure.accelerator is not None else ())}
        known |= {"latency_s"} if self.priced_by_table else set()
        for metric in self.search.objectives:
            if metric not in known:
                given = f"here {', '.join(sorted(known))}, got {metric!r}"
                raise ValueError(f"search.objectives are costs that the search knows, {given}")
        return self

    @model_validator(mode="after")
    def _budget_where_needed(self) -> Self:
        if self.budget is None and self.search.mode == "resource" and not self.search.given:
            raise ValueError("a budget is needed: 'budget' with 'metric' and one of 'ratio' and 'limit'")
        return self

    @model_validator(mode="after")
    def _latency_where_it_is_measured(self) -> Self:
        if self.latency_budget and self.measure.backend == "none":
            raise ValueError(
                "a budget in latency_s needs a backend that measures, got measure.backend 'none'; set it to 'tvm'"
            )
        modelled = [each.metric for each in self.budgets if each.metric in MODELLED]
        if modelled and self.measure.accelerator is None:
            raise ValueError(
                f"a budget in {modelled[0]} is that of an accelerator's model; name one as measure.accelerator "
                "(`trimtab list accelerators`)"
            )
        if (self.latency_budget or modelled) and self.search.faithful and self.search.mode == "resource":
            raise ValueError("search.faithful bounds MACs as published, not latency; set it to false")
        if self.search.reward == "accuracy_latency" and not self.latency_budget:
            raise ValueError("the reward 'accuracy_latency' needs a latency: set budget.metric to latency_s")
        return self

    @property
    def budgets(self) -> tuple[BudgetSection, ...]:
        """All budgets, that which policies are compared by first."""
        return () if self.budget is None else (self.budget, *self.further_budgets)

    @property
    def latency_budget(self) -> bool:
        """Whether the budget is in latency."""
        return self.budget is not None and self.budget.metric == "latency_s"

    @property
    def priced_by_table(self) -> bool:
        """Whether policies are priced by a latency table; those that are given need none, being measured in the end."""
        return self.latency_budget and not self.search.given

    @property
    def cost_metric(self) -> str:
        """What policies are compared by: the budget's metric, or MACs where there is none or it is only measured."""
        if self.budget is None or (self.latency_budget and self.search.given):
            return "macs"
        return self.budget.metric

    @property
    def reward_name(self) -> str:
        """The reward asked for, or that of the mode: AMC's, which in accuracy-guaranteed mode falls with the cost."""
        if self.search.reward is not None:
            return self.search.reward
        if self.search.mode == "resource":
            return "accuracy"
        return "accuracy_latency" if self.latency_budget else "accuracy_flops"

    def rebased(self, base: Path) -> Self:
        """With paths that were relative to a folder made absolute, and an accelerator's file read.

        Raises:
            InputError: a path that is none, or a file that cannot be read.
        """
        model, data, search, supernet = self.model, self.data, self.search, self.supernet
        if model.checkpoint is not None:
            model = model.model_copy(update={"checkpoint": _absolute(model.checkpoint, base)})
        if search.init_from is not None:
            search = search.model_copy(update={"init_from": _absolute(search.init_from, base)})
        if supernet is not None and supernet.checkpoint is not None:
            supernet = supernet.model_copy(update={"checkpoint": _absolute(supernet.checkpoint, base)})
        args = {
            key: _absolute(value, base) if key in PATH_ARGUMENTS and isinstance(value, str) else value
            for key, value in data.args.items()
        }
        data = data.model_copy(update={"args": args})
        accelerator = absolute_measure({"accelerator": self.measure.accelerator}, base)
        measure = self.measure.model_copy(update=accelerator)
        sections = {"model": model, "data": data, "search": search, "supernet": supernet, "measure": measure}
        return self.model_copy(update=sections)

    def to_yaml(self) -> str:
        """The resolved config, every default written out."""
        text: str = yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)
        return text


AnyConfig = TypeVar("AnyConfig", bound=Config)


@overload
def load_config(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Config: ...
@overload
def load_config(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, kind: type[AnyConfig]
) -> AnyConfig: ...
def load_config(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, kind: type[Config] = Config
) -> Config:
    """Read and check a config.

    Args:
        source: path of a YAML file, or the mapping that one would hold.
        overrides: "key.sub=value" each, the value read as YAML; they win over the source.
        kind: of config.

    Raises:
        InputError: in one line, which key breaks which rule with which value.
    """
    document, place, base = read_document(source, overrides)
    if "sweep" in document:
        raise InputError(
            f"{place}: a config with 'sweep' stands for many runs, which `trimtab search` makes; give one without, "
            "such as the config.yaml of one of its runs"
        )
    return checked(kind, document, place).rebased(base)


def read_document(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> tuple[dict[str, Any], str, Path]:
    """A config as unchecked plain data, what it is called in an error, and what its paths are relative to.

    Args:
        source, overrides: as of `load_config`.

    Raises:
        InputError: no file, no YAML, no mapping, or an override that cannot be.
    """
    if isinstance(source, Mapping):
        document, place, base = copied(source), "config", Path.cwd()
    else:
        path = Path(source)
        document, place, base = read_yaml(path), str(path), path.resolve().parent
    if not isinstance(document, dict):
        raise InputError(f"{place}: a config is a mapping of sections, got {shown(document)}")
    for override in overrides:
        _override(document, override)
    return document, place, base


def copied(value: Any) -> Any:
    """The same mappings and lists, so that overrides and pydantic leave the caller's alone."""
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [copied(item) for item in value]
    return value


def _override(document: dict[Any, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise InputError(f"an override has the form key.sub=value, got {override!r}")
    if parts[0] == "sweep" and len(parts) > 1:  # an axis is called after a key, dots and all
        parts = ["sweep", ".".join(parts[1:])]
    value = parse_yaml(text, f"--set {override}")
    name = ".".join(parts)
    if isinstance(value, str) and (name in PATH_KEYS or (name.endswith(ACCELERATOR_KEY) and is_path(value))):
        value = _absolute(value, Path.cwd())
    set_key(document, parts, value, f"--set {override}")


def set_key(document: dict[Any, Any], parts: Sequence[str], value: Any, place: str) -> None:
    """Set a key of a document, in place; sections on the way to it are made where they are missing.

    Raises:
        InputError: something on the way is no section; `place` says who asks.
    """
    section = document
    for part in parts[:-1]:
        inner = section.setdefault(part, {})
        if inner is None:
            inner = section[part] = {}
        if not isinstance(inner, dict):
            raise InputError(f"{place}: {part!r} is no section, it holds {shown(inner)}")
        section = inner
    section[parts[-1]] = value


def absolute_measure(measure: dict[str, Any], base: Path) -> dict[str, Any]:
    """A section `measure` that holds the description of its accelerator in place of a path relative to a folder."""
    accelerator = measure.get("accelerator")
    if not isinstance(accelerator, str) or not is_path(accelerator):
        return measure
    return {**measure, "accelerator": read_description(Path(_absolute(accelerator, base)))}


def _absolute(path: str, base: Path) -> str:
    try:
        return str((base / Path(path).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"{path!r} is no path: {error}") from None
