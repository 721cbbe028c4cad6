"""What a run is about: the network, the data, what may be pruned, and what it may cost.

Everything that can be checked is checked before anything is trained, so that a config that cannot work is refused at
once.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from automl.baseline import baseline_file, load_baseline, load_weights, state_digest, to_bytes
from automl.batches import calibration_data
from automl.cache import one_maker
from automl.compression.elastic import Elastic, IntArray
from automl.compression.importance.base import ImportanceInputs
from automl.compression.pipeline import CompressionOptions, Compressor
from automl.compression.selection import criterion, rank_units
from automl.config import Config
from automl.config_sections import SupernetSection
from automl.configured import (
    anything,
    budgets,
    captured,
    compression_options,
    initial_model,
    model_key,
    search_space,
    training_options,
)
from automl.costs.latency import priced_by_table
from automl.costs.latency_budget import LatencyBudget
from automl.costs.pricing import BACKEND, cost_of, price, pricing_backend
from automl.data import DataBundle, load_data
from automl.errors import InputError, UnreachableError
from automl.evaluation import PolicyEvaluator
from automl.metrics import Metric, load_metric
from automl.orchestration.searches import make_search, searches
from automl.orchestration.transfer import initial_agent
from automl.run.artefacts import require_engine
from automl.searchers import given_policies
from automl.supernet.checkpoint import checkpoint_file, load_supernet
from automl.supernet.checkpoint import to_bytes as supernet_to_bytes
from automl.supernet.network import Supernet, elastic_space
from automl.supernet.schedule import Schedule
from automl.supernet.trained import supernet_file, train_to_file
from automl.supernet.training import train_supernet
from automl.training import EpochReport
from backends.base import HardwareBackend
from backends.table_backend import Latencies, asked_of
from envs.pricing import Cost
from search_spaces.capture import PrunableNetwork
from search_spaces.graph import ModelGraph
from search_spaces.objective import Constraint
from search_spaces.policy import CompressionPolicy
from search_spaces.space import SearchSpace

OnEpoch = Callable[[EpochReport], None]

CHECKED_IMAGES = 8
"""Calibration images that a policy is tried on before anything is trained: what is refused does not depend on them."""


@dataclass(frozen=True)
class Problem:
    """A checked config and what it names.

    `outline` checks all that can be checked before anything is trained; `with_baseline` trains what is not trained.

    Attributes:
        config: as read.
        data: the data set's splits.
        model: the baseline, in eval mode, or the untrained network; never changed.
        trained: whether `model` has its final weights.
        network: the model, captured; with a supernet's weights where the config asks for one and it is trained.
        metric: what accuracy means.
        space: what is decided.
        constraints: the budgets, that of measured latency or else the config's first before the others; in
            accuracy-guaranteed mode without any, the cost of the whole network.
        backend: what prices policies here. A problem whose latency budget stands fixed already asks no table.
        latency: the figures of a latency budget, None for another one.
        supernet: whose sub-networks are searched; None where there is none, or it is not trained yet.
    """

    config: Config
    data: DataBundle
    model: nn.Module
    trained: bool
    network: PrunableNetwork
    metric: Metric
    space: SearchSpace
    constraints: tuple[Constraint, ...]
    backend: HardwareBackend = BACKEND
    latency: LatencyBudget | None = None
    supernet: Supernet | None = None

    @classmethod
    def outline(
        cls,
        config: Config,
        weights: Path | None = None,
        *,
        prices: Latencies | None = None,
        latency: LatencyBudget | None = None,
    ) -> "Problem":
        """Load, capture and check; nothing is trained.

        Args:
            config: what to do.
            weights: of the baseline or the supernet, where a run has them already; by default the config's checkpoint
                or the cache.
            prices: of operators, for a latency budget whose figures are not known yet.
            latency: the figures of a latency budget, where a run has them already.

        Raises:
            InputError: something named is not there or does not fit, or the budget cannot be met.
            RefusedOperatorError: an operator of the network cannot be measured.
        """
        require_engine(config.measure.backend)
        options = training_options(config.baseline)
        training_options(config.fine_tune)
        compression_options(config)
        metric = load_metric(config.metric)
        data = load_data(config.data.name, config.data.args)
        model = initial_model(config, data)
        file = None if config.supernet is not None else weights
        if file is None and config.model.checkpoint is not None:
            file = Path(config.model.checkpoint)
        trained = file is not None
        if file is not None:
            load_weights(model, file)
        elif (cached := baseline_file(model, model_key(config), data, options)).is_file():
            try:
                load_weights(model, cached)
                trained = True
            except InputError:  # a damaged cache entry is trained and written anew
                model = initial_model(config, data)
        problem = cls._captured(config, data, model, trained, metric)
        problem = problem._with_known_supernet(weights)
        problem._check_compression()
        if latency is not None:
            return problem._with_latency(latency)
        bounded = not (config.search.given or config.priced_by_table)
        if bounded:
            problem._check_reachable()
        agent = initial_agent(config.search)
        for search in searches(config):  # an unknown algorithm, or option of one
            constraints = problem.constraints if bounded else (anything(problem.graph),)
            backend = problem.backend if bounded else BACKEND
            make_search(config, problem.space, constraints, search, backend, agent)
        if config.priced_by_table:  # last, for it may take measuring
            problem = problem._priced(prices)
            problem._check_reachable()
        return problem

    @classmethod
    def build(cls, config: Config, on_epoch: OnEpoch | None = None, *, prices: Latencies | None = None) -> "Problem":
        """The problem with its baseline; see `outline` and `with_baseline`."""
        return cls.outline(config, prices=prices).with_baseline(on_epoch)

    @classmethod
    def load(cls, config: Config, weights: Path, constraints: Sequence[Constraint]) -> "Problem":
        """The problem of a config that has been checked, with the baseline's weights from a file and its budgets.

        Raises:
            InputError: the file is damaged, or its weights are not this network's.
        """
        data = load_data(config.data.name, config.data.args)
        model = initial_model(config, data)
        if config.supernet is None:
            load_weights(model, weights)
        problem = cls._captured(config, data, model, True, load_metric(config.metric))
        problem = problem._with_known_supernet(weights)
        return replace(problem, constraints=tuple(constraints))

    @classmethod
    def _captured(
        cls,
        config: Config,
        data: DataBundle,
        model: nn.Module,
        trained: bool,
        metric: Metric,
    ) -> "Problem":
        network = captured(config, data, model)
        space = search_space(config, network.graph)
        backend = pricing_backend(config.measure.accelerator)
        backend.require(network.graph)
        constraints = budgets(config, network.graph, backend)
        return cls(config, data, model, trained, network, metric, space, constraints, backend)

    def _priced(self, prices: Latencies | None) -> "Problem":
        """The problem with its latency budget in figures: of the whole network, and of the cheapest policy."""
        if prices is None:
            raise InputError("a latency budget needs prices of operators: pass `prices` (see automl.costs.latency)")
        graph = self.graph
        backend = priced_by_table(self.config.measure, graph, prices)
        least = graph.apply(self.space.cheapest())
        cheapest = asked_of(least)
        prices.latencies([*backend.recipes(graph.kept), *backend.recipes(*cheapest)])  # in one go
        latency = LatencyBudget.of(self.config, backend.price(graph.kept), backend.price(*cheapest))
        return replace(self, backend=backend)._with_latency(latency)

    def _with_latency(self, latency: LatencyBudget) -> "Problem":
        return replace(self, latency=latency, constraints=(latency.constraint, *self.constraints[1:]))

    @property
    def constraint(self) -> Constraint:
        """The budget that policies are compared by."""
        return self.constraints[0]

    @property
    def held_back(self) -> tuple[Constraint, ...]:
        """What the searchers keep to: the budgets, less what is held back of a latency budget."""
        return self.constraints if self.latency is None else (self.latency.held_back, *self.constraints[1:])

    @property
    def graph(self) -> ModelGraph:
        """The captured network as data."""
        return self.network.graph

    @property
    def cost(self) -> Cost | None:
        """What a search bounds with, where the budget cannot be counted and policies are priced here."""
        return cost_of(self.graph, self.backend, self.constraint.metric)

    def with_baseline(self, on_epoch: OnEpoch | None = None, waiting: Callable[[], None] = lambda: None) -> "Problem":
        """The problem with a trained network or supernet.

        Args:
            on_epoch: told of every epoch where one is trained.
            waiting: called now and then while another process trains the same; may raise.

        Raises:
            TrimtabError: training diverged.
        """
        if self.trained:
            return self
        config, options = self.config, training_options(self.config.baseline)
        model = self.model
        if config.supernet is None or config.model.checkpoint is None:
            model = load_baseline(
                initial_model(config, self.data), model_key(config), self.data, options, None, on_epoch, waiting
            )
        trained = replace(self, model=model, trained=True, network=captured(config, self.data, model))
        if config.supernet is None:
            return trained
        with one_maker(trained._supernet_file(config.supernet), waiting):
            known = trained._with_known_supernet(None)
            return known if known.supernet is not None else trained._with_trained_supernet(config.supernet, on_epoch)

    def _with_trained_supernet(self, section: SupernetSection, on_epoch: OnEpoch | None) -> "Problem":
        options = compression_options(self.config)
        images, labels = self._calibration(options)

        def rank(network: PrunableNetwork) -> Mapping[str, IntArray]:
            inputs = ImportanceInputs(
                network, network.prune({}), images, labels, options.seed, options.calibration_images
            )
            return rank_units(inputs, options.importance)

        train: Callable[..., None] = train_supernet
        if section.workers > 1:
            from automl.orchestration.supernet import train_in_parallel as train
        supernet = train_to_file(
            self._supernet_file(section),
            *(self.network, self.model, self.space, self.data, section, rank),
            metric=self.metric,
            on_epoch=on_epoch,
            train=train,
        )
        return self._with_supernet(supernet)

    def _supernet_file(self, section: SupernetSection) -> Path:
        """Where the cache keeps the config's supernet."""
        config, data = self.config, self.data
        if config.model.checkpoint is not None:
            teacher = state_digest(self.model)
        else:
            fresh = initial_model(config, data)
            teacher = baseline_file(fresh, model_key(config), data, training_options(config.baseline)).stem
        return supernet_file(teacher, config.compression.importance, self.space, data, section)

    def _with_known_supernet(self, weights: Path | None) -> "Problem":
        """The problem with the supernet of a file, the config's checkpoint or the cache; untrained where there is none.

        Raises:
            InputError: the checkpoint is missing, damaged, or of another network or space.
        """
        section = self.config.supernet
        if section is None:
            return self
        if weights is None and section.checkpoint is not None:
            weights = checkpoint_file(Path(section.checkpoint))
        if weights is not None:
            return self._with_supernet(load_supernet(weights, self.network, self.space))
        cached = self._supernet_file(section)
        if cached.is_file():
            with suppress(InputError):  # a damaged cache entry is trained and written anew
                return self._with_supernet(load_supernet(cached, self.network, self.space))
        Schedule.of(elastic_space(self.space), section)  # what cannot be trained is refused at once
        return replace(self, trained=False)

    def _with_supernet(self, supernet: Supernet) -> "Problem":
        weights = supernet.weights
        model = copy.deepcopy(self.model)
        model.load_state_dict(weights)
        return replace(self, model=model, trained=True, network=self.network.holding(weights), supernet=supernet)

    def saved(self) -> bytes:
        """The trained network or supernet as a file, which `load` reads."""
        return to_bytes(self.model) if self.supernet is None else supernet_to_bytes(self.supernet)

    @property
    def elastic(self) -> Elastic | None:
        """How sub-networks are cut out of the supernet; None where there is none."""
        return None if self.supernet is None else self.supernet.elastic

    def compressor(self) -> Compressor:
        """What applies policies to the baseline; its statistics come from training images."""
        options = compression_options(self.config)
        images, labels = self._calibration(options)
        return Compressor(self.network, images, options, labels, self.elastic)

    def kept(self, policy: CompressionPolicy) -> dict[str, list[int]]:
        """The units that stay under a policy, by channel group."""
        options = compression_options(self.config)
        images, labels = self._calibration(options) if criterion(options.importance).labelled else (None, None)
        alone = replace(options, reconstruct=False, recalibrate_images=0)
        return Compressor(self.network, images, alone, labels, self.elastic).kept(policy)

    def _calibration(self, options: CompressionOptions) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """The training images that these options need, with their labels."""
        treats = self.config.search.given or self.config.space.treats  # what quantises activations looks at images
        sampled = options.reconstruct or treats or criterion(options.importance).labelled
        wanted = max(options.calibration_images if sampled else 0, options.recalibrate_images)
        return calibration_data(self.data, wanted, options.seed) if wanted else (None, None)

    def evaluator(self, compressor: Compressor | None = None) -> PolicyEvaluator:
        """What finds out a policy's accuracy and cost."""
        return PolicyEvaluator(
            compressor or self.compressor(),
            self.data.val,
            self.constraints,
            self.backend,
            self.metric,
            self.config.search.device,
        )

    def _check_compression(self) -> None:
        """InputError where units cannot be ranked, or a policy that is given cannot be applied."""
        options = compression_options(self.config)
        few = min(options.calibration_images, CHECKED_IMAGES)
        options = replace(options, reconstruct=False, recalibrate_images=0, calibration_images=few)
        images, labels = self._calibration(options)
        compressor = Compressor(self.network, images, options, labels, self.elastic)
        compressor.kept(self.space.cheapest())  # searches and the uniform policy may prune any group
        tried = given_policies(self.config.search.options) if self.config.search.given else []
        for policy in [*tried, *([self.space.cheapest()] if self.config.space.treats else [])]:
            compressor.compress(policy)

    def _check_reachable(self) -> None:
        """InputError where even the policy that keeps least costs more than the budget, with that least cost."""
        if not self.space.channels_only and self.latency is None:
            return  # searchers over points say so themselves, with the least that any policy comes to
        cheapest = price(self.graph, self.space.cheapest(), self.backend)
        for each in self.constraints:
            least, limit, amount = cheapest[each.metric], each.limit, each.amount
            if least > limit:
                whole = price(self.graph, None, self.backend)[each.metric]
                raise UnreachableError(
                    f"no policy of the search space meets the budget of {amount(limit)} (ratio {limit / whole:.4f}): "
                    f"the cheapest costs {amount(least)} (ratio {least / whole:.4f}); raise the budget or lower "
                    "space.lower_bound or the least of space.keep"
                )
        if self.latency is not None:
            self.latency.checked()
