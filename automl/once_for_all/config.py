"""The config of a supernet: that of a search, and a section that says which devices networks are searched for."""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from automl.config import Config, absolute_measure
from automl.config_sections import MeasureSection, SupernetSection
from search_spaces.sections import Section, checked


class DeploymentSection(Section):
    """A device: what of the config is different for it.

    Keys of `space`, `measure`, `search`, `compression` and `fine_tune` take the place of the same keys in the config's
    sections, `budget` (or a list of them) takes the place of its budgets. The space may decide on more bits, zeros or
    ranks, and on less of what the supernet was trained for.
    """

    space: dict[str, Any] = Field(default_factory=dict)
    measure: dict[str, Any] = Field(default_factory=dict)
    budget: dict[str, Any] | list[dict[str, Any]] | None = None
    search: dict[str, Any] = Field(default_factory=dict)
    compression: dict[str, Any] = Field(default_factory=dict)
    fine_tune: dict[str, Any] = Field(default_factory=dict)


class SupernetConfig(Config):
    """The config of a supernet, and of its devices by name.

    Its own sections `budget`, `search`, `measure` and `fine_tune` are what devices have in common.
    """

    supernet: SupernetSection
    devices: dict[str, DeploymentSection] = Field(default_factory=dict, max_length=1000)

    @model_validator(mode="after")
    def _budget_where_needed(self) -> Self:
        """In place of the rule for a single search: without devices there is nothing to search for."""
        for name, device in self.devices.items():
            if self.budget is None and device.budget is None:
                raise ValueError(
                    f"device {name!r} has no budget; give it 'budget' with 'metric' and one of 'ratio' and 'limit'"
                )
        return self

    @model_validator(mode="after")
    def _devices_are_runs(self) -> Self:
        for name in self.devices:
            if not name or Path(name).name != name or name.startswith("."):
                raise ValueError(f"the name of a device is that of its directory, got {name!r}; leave out slashes")
            self.of_device(name)
        return self

    def of_device(self, name: str, supernet: Path | None = None) -> Config:
        """The config of the run for a device.

        Args:
            name: of the device.
            supernet: the directory that its supernet and samples are in; by default as the config has it.

        Raises:
            InputError: sections of the device do not make a config.
        """
        device = self.devices[name]
        document = self.model_dump(exclude={"devices", "storage"})  # copied with the supernet's directory
        if device.search.get("algorithm", self.search.algorithm) != self.search.algorithm:
            document["search"]["options"] = {}  # those of another algorithm
        for section in ("space", "measure", "search", "compression", "fine_tune"):
            document[section] |= getattr(device, section)
        if device.budget is not None:
            document["budget"] = device.budget
            document["further_budgets"] = []
            if isinstance(device.budget, list):
                del document["further_budgets"]
        if supernet is not None:
            document["supernet"]["checkpoint"] = str(supernet.resolve())
        return checked(Config, document, f"devices.{name}")

    def of_training(self) -> Self:
        """The config without budgets, measurements and a search: what the supernet and its samples need."""
        search = self.search.model_copy(
            update={"algorithm": "random", "options": {}, "objectives": [], "reward": None, "init_from": None}
        )
        without: dict[str, Any] = {
            "budget": None,
            "further_budgets": [],
            "devices": {},
            "measure": MeasureSection(backend="none"),
        }
        return self.model_copy(update={**without, "search": search})

    def rebased(self, base: Path) -> Self:
        """See `Config.rebased`; those of devices, too."""
        devices = {
            name: device.model_copy(update={"measure": absolute_measure(device.measure, base)})
            for name, device in self.devices.items()
        }
        return super().rebased(base).model_copy(update={"devices": devices})
