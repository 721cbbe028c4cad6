"""What a worker process of a run does: evaluate policies, then finish the networks that are compared in the end."""

import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from automl.compression import Compressed, GradualSparsity, fine_tune
from automl.compression.saving import from_bytes, to_bytes
from automl.config import Config
from automl.configured import example_input
from automl.costs.expected import ExpectedCosts
from automl.data.resized import resized
from automl.errors import InputError, TrimtabError
from automl.export.manifest import WEIGHTS, open_regular
from automl.problem import Problem
from automl.run.artefacts import Made, make_artefact
from automl.run.directory import make_importable, trimtab_version
from automl.run.finalist_folder import Trained
from automl.run.finalists import Compiled, Finalist, training_of
from automl.run.priors import compute_prior
from automl.searchers.prior import Prior
from automl.training import EpochReport, evaluate, step_count, train
from automl.training_state import TrainingState
from backends.lease import shared_lease
from search_spaces.objective import Constraint, Evaluation, violation
from search_spaces.policy import CompressionPolicy, beside_pruning
from search_spaces.resolution import Resolution

RUNTIME = "onnxruntime"


class Told(Protocol):
    """Whoever keeps where a training stands; see `automl.run.finalist_folder.FinalistFolder`."""

    def epoch(self, state: bytes, epoch: int, epochs: int) -> None:
        """Another epoch is done."""


class Work:
    """One process, one thread, one thing at a time; knows the problem and nothing of searches.

    Args:
        config: of the run.
        baseline: content of the file of the baseline's weights.
        imports_from: directory of a user's own modules, where this machine has it.
        constraints: the budgets.
        version: of Trimtab, that the others have.

    Raises:
        TrimtabError: this machine has another version.
        InputError: it lacks what the config names.
    """

    def __init__(
        self,
        config: Config,
        baseline: bytes,
        imports_from: str,
        constraints: Sequence[Constraint],
        version: str | None = None,
    ) -> None:
        torch.set_num_threads(1)
        if version not in (None, trimtab_version()):
            raise TrimtabError(
                f"node {socket.gethostname()} has Trimtab {trimtab_version()}, the run was started with {version}; "
                "install the same on every node"
            )
        make_importable(imports_from)
        self._constraints = constraints
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "baseline.safetensors"
            weights.write_bytes(baseline)
            try:
                self._problem = Problem.load(config, weights, constraints)
            except InputError as error:
                raise InputError(f"on node {socket.gethostname()}: {error}") from error
        self._compressor = self._problem.compressor()
        self._evaluator = self._problem.evaluator(self._compressor)

    def evaluate(self, policy: CompressionPolicy, cost: Mapping[str, float], share: float = 1.0) -> Evaluation:
        """The evaluation of a policy of that cost on that share of the images; what goes wrong is part of the answer.

        Nothing is measured on this machine meanwhile: a clock needs it quiet.
        """
        try:
            with shared_lease():
                return self._evaluator(policy, cost, share)
        except Exception as error:  # a user's metric or module may raise anything, and the search goes on
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return Evaluation(0.0, cost, violation(cost, self._constraints), 0.0, reason, share=share)

    def prior(self, costs: ExpectedCosts | None) -> Prior:
        """What the run's searches want to know before they start; see `compute_prior`."""
        return compute_prior(self._problem, self._compressor, costs)

    def compile(self, policy: CompressionPolicy, name: str, scratch: Path) -> Compiled:
        """The network of a policy as a file in `scratch`, for timing: its weights are the baseline's, not fine-tuned.

        Raises:
            TrimtabError: it cannot be compiled.
        """
        network = self._compressor.compress(policy, reconstruct=False)
        engines = [self._problem.config.measure.backend]
        compiled, error = self._compiled(name, network, policy.resolution, scratch, engines)
        if error is not None:
            raise TrimtabError(error)
        return compiled

    def train(self, finalist: Finalist, unfinished: bytes | None, folder: Told) -> Trained:
        """Prune, train and test a network.

        Args:
            finalist: the network.
            unfinished: where its training stands, as `folder` was told; None where it is to begin.
            folder: told of every epoch.

        Raises:
            TrimtabError: training diverged.
        """
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / "training.pt"
            if unfinished is not None:
                file.write_bytes(unfinished)
            state = TrainingState(file, f"{finalist.name} {finalist.policy.digest}")

            def tell(report: EpochReport) -> None:
                folder.epoch(file.read_bytes(), report.epoch, report.epochs)

            return self._train_and_test(finalist, state, tell)

    def compile_finalist(self, finalist: Finalist, folder: Path, scratch: Path) -> tuple[Compiled, str | None]:
        """A finished network as files in `scratch`, for all engines that it is measured in.

        Returns:
            What engines run, and why there is nothing for the config's own.
        """
        measure = self._problem.config.measure
        alone = measure.backend == RUNTIME or measure.device is not None or finalist.name not in ("baseline", "best")
        engines = [measure.backend] if alone else [measure.backend, RUNTIME]  # beside the config's, where it tells most
        network = load_finalist(self._problem, finalist, folder)
        return self._compiled(finalist.name, network, finalist.policy.resolution, scratch, engines)

    def _train_and_test(
        self, finalist: Finalist, state: TrainingState, on_epoch: Callable[[EpochReport], None]
    ) -> Trained:
        data, metric = resized(self._problem.data, finalist.policy.resolution), self._problem.metric
        trained = self._trained(finalist, state, on_epoch)
        found = finalist.search_accuracy
        if found is None:
            found = evaluate(trained.module, data.val, metric)
        elif not metric.maximise:
            found = -found  # evaluations are stored so that larger is better
        result = {
            "policy": finalist.policy.digest,
            "accuracy": evaluate(trained.module, data.test, metric),
            "search_accuracy": found,
            "fine_tune_epochs": training_of(finalist.name, self._problem.config).epochs,
        }
        if self._problem.supernet is not None and finalist.name not in ("baseline", "from_scratch"):
            result["accuracy_before"] = evaluate(self._compressor.apply(finalist.policy), data.test, metric)
        return Trained(to_bytes(trained), result)

    def _trained(self, finalist: Finalist, state: TrainingState, on_epoch: Callable[[EpochReport], None]) -> Compressed:
        """The finalist's network, trained. After a kill it goes on from its last epoch."""
        if finalist.name == "baseline":
            return Compressed(self._problem.network.prune({}), self._problem.graph)
        resolution = finalist.policy.resolution
        options, data = training_of(finalist.name, self._problem.config), resized(self._problem.data, resolution)
        sparsity, anew = self._compressor.options.sparsity, finalist.name == "from_scratch"
        growing = round(sparsity.gradual * step_count(data, options))
        found = self._compressor.compress(finalist.policy, reconstruct=not anew, sparse=not growing)
        teacher = self._problem.network.at(resolution).prune({}) if options.distillation else None
        if anew:
            reinitialise(found.module, options.seed)
            teacher = None
        return fine_tune(
            found,
            lambda module: train(module, data, options, teacher=teacher, state=state, on_epoch=on_epoch),
            gradual=GradualSparsity(growing, criterion=sparsity.criterion) if growing else None,
        )

    def _compiled(
        self,
        name: str,
        network: Compressed | nn.Module,
        resolution: Resolution | None,
        scratch: Path,
        engines: Sequence[str],
    ) -> tuple[Compiled, str | None]:
        """The network as a file for each engine that takes it, and why the first does not."""
        example, measure = example_input(self._problem.data, resolution), self._problem.config.measure
        found: dict[str, Made] = {}
        refused: dict[str, str] = {}
        for engine in engines:
            try:
                found[engine] = make_artefact(engine, network, example, scratch, name, measure.threads, measure.remote)
            except TrimtabError as error:
                refused[engine] = str(error)
        first = found.get(engines[0])
        artefacts = tuple(made.artefact for made in found.values())
        if first is None:
            return Compiled(name, artefacts, resolution=resolution), refused[engines[0]]
        code = (first.error, first.recipes, first.structures, first.expected, first.step)
        return Compiled(name, artefacts, *code, resolution), None


def load_finalist(problem: Problem, finalist: Finalist, folder: Path) -> Compressed:
    """A finished network, from its folder.

    Raises:
        InputError: its file is missing, damaged, or another network's.
    """
    with open_regular(folder, WEIGHTS) as file:
        content = file.read()
    units, layers = problem.kept(finalist.policy), beside_pruning(finalist.policy)
    network = problem.network.at(finalist.policy.resolution)
    return from_bytes(content, network, units, layers, f"{folder.name}/{WEIGHTS}")


def reinitialise(module: nn.Module, seed: int) -> None:
    """Forget what was learned: fresh weights as torch initialises each layer, drawn from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for child in module.modules():
            reset = getattr(child, "reset_parameters", None)
            if callable(reset):
                reset()
