"""What the sections of a config stand for: the network, its graph and space, images, budgets and options."""

from collections.abc import Mapping
from math import inf
from typing import Any

from torch import Tensor, nn

from automl.compression.pipeline import CompressionOptions
from automl.compression.recalibration import RECALIBRATED
from automl.compression.treatments import QuantisationOptions, SparsityOptions
from automl.config import Config
from automl.config_sections import BudgetSection, TrainingSection
from automl.costs.pricing import BACKEND, price
from automl.data import DataBundle, load_data
from automl.models import build_model
from automl.searchers import given_policies
from automl.training import TrainingOptions
from backends.base import HardwareBackend
from search_spaces.building import SpaceOptions, build_space
from search_spaces.capture import PrunableNetwork
from search_spaces.graph import ModelGraph
from search_spaces.objective import Constraint
from search_spaces.resizing import resize
from search_spaces.resolution import Resolution, resolutions
from search_spaces.space import SearchSpace


def search_space(config: Config, graph: ModelGraph) -> SearchSpace:
    """What the config allows to be decided.

    Raises:
        InputError: that does not fit the network, or nothing is left to prune.
    """
    return build_space(graph, SpaceOptions(**config.space.model_dump()))


def budgets(config: Config, graph: ModelGraph, backend: HardwareBackend = BACKEND) -> tuple[Constraint, ...]:
    """The config's budgets in the metrics' own units; what anything meets, where it takes measuring to know it.

    Args:
        config: of the run.
        graph: of the uncompressed network.
        backend: that prices it.
    """
    whole = price(graph, None, backend)
    return tuple(_limited(config, each, whole) for each in config.budgets) or (anything(graph),)


def _limited(config: Config, section: BudgetSection, whole: Mapping[str, float]) -> Constraint:
    if section.metric == "latency_s":
        return Constraint("latency_s", inf) if config.priced_by_table else Constraint("macs", whole["macs"])
    limit = section.limit if section.ratio is None else section.ratio * whole[section.metric]
    return Constraint(section.metric, float(limit or 0.0))  # type: ignore[arg-type]  # the config has checked the name


def anything(graph: ModelGraph) -> Constraint:
    """A budget in MACs that every pruned network keeps."""
    return Constraint("macs", price(graph)["macs"])


def untrained_graph(config: Config) -> ModelGraph:
    """The captured network of a config, without training it."""
    data = load_data(config.data.name, config.data.args)
    return captured(config, data, initial_model(config, data)).graph


def captured(config: Config, data: DataBundle, model: nn.Module) -> PrunableNetwork:
    """The model, at every resolution that the space or a given policy knows.

    Raises:
        InputError: it cannot be captured, or does not take images of one of them.
    """
    sizes = list(resolutions(config.space.resolution, data.input_shape))
    if config.search.given and config.search.options:  # `trimtab layers` asks without any
        sizes += [policy.resolution for policy in given_policies(config.search.options) if policy.resolution]
    return PrunableNetwork(model, example_input(data), resolutions=sizes)


def model_key(config: Config) -> dict[str, Any]:
    """What identifies the config's network in the cache of baselines."""
    return {"name": config.model.name, "args": config.model.args}


def initial_model(config: Config, data: DataBundle) -> nn.Module:
    """The config's network, freshly initialised."""
    return build_model(
        config.model.name,
        config.model.args,
        classes=data.classes,
        input_shape=data.input_shape,
        seed=config.baseline.seed,
    )


def example_input(data: DataBundle, resolution: Resolution | None = None) -> Tensor:
    """One validation image, [1, C, H, W], at a resolution or as it is."""
    image: Tensor = data.val[0][0]
    return resize(image.unsqueeze(0), resolution)


def training_options(section: TrainingSection) -> TrainingOptions:
    """The section as training takes it; InputError where a value is out of range."""
    return TrainingOptions(**section.model_dump())


def compression_options(config: Config) -> CompressionOptions:
    """The section as the compressor takes it; InputError where a value is out of range."""
    fields = config.compression.model_dump()
    sparsity = SparsityOptions(**fields.pop("sparsity"))
    quantisation = QuantisationOptions(**fields.pop("quantisation"))
    if config.supernet is not None:  # cut out as they were trained, but for the statistics of batch norm
        fields |= {"reconstruct": False, "recalibrate_images": fields["recalibrate_images"] or RECALIBRATED}
    return CompressionOptions(**fields, sparsity=sparsity, quantisation=quantisation)
