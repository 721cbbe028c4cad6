"""A supernet from its config to a network for every device, and from where it was stopped."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl.api import create_run, outlined
from automl.config import load_config
from automl.errors import RunStoppedError
from automl.once_for_all.config import SupernetConfig
from automl.once_for_all.directory import SupernetDirectory
from automl.once_for_all.results import DeviceResult, device_results
from automl.once_for_all.tables import predictor_text
from automl.orchestration.address import at_address
from automl.orchestration.ray_session import cpus_of, modules_of, ray_session
from automl.outlines import unreachable
from automl.predictors.samples import read_samples, write_samples
from automl.progress import Progress
from automl.run.directory import (
    ENDED,
    RunClock,
    RunDirectory,
    make_importable,
    next_free,
    write_atomically,
    write_json,
)
from automl.run.driving import driving, show_runs
from automl.run.processes import drive, fitting
from automl.signals import StopSignal

if TYPE_CHECKING:
    from automl.problem import Problem
    from automl.training import EpochReport


@dataclass(frozen=True)
class SupernetResult:
    """What a supernet came to.

    Attributes:
        directory: of the supernet.
        devices: what came of each.
        stopped: whether it was told to stop; it can be resumed.
    """

    directory: Path
    devices: Sequence[DeviceResult]
    stopped: bool = False


def train_supernet(
    config: SupernetConfig | str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    parallel: int | None = None,
    *,
    address: str | None = None,
) -> SupernetResult:
    """Train a supernet, and find a network for every device, as the config says; quietly.

    Args:
        config: a `SupernetConfig`, a mapping, or the path of a YAML file.
        out: its directory, which must not exist or be empty; by default the next free `runs/supernet-<n>`.
        parallel: devices that are searched for at once; by default as many as have CPUs for their evaluators.
        address: of a Ray cluster, see `automl.search`.

    Raises:
        InputError: the config cannot work; nothing has been written.
        TrimtabError: a stage failed; the directory is kept, `trimtab supernet DIR --resume` goes on with it.
    """
    checked = config if isinstance(config, SupernetConfig) else load_config(config, kind=SupernetConfig)
    name = Path(config).stem if isinstance(config, str | Path) else "supernet"
    directory = Path(out) if out is not None else next_free(Path("runs"), name)
    with at_address(address), Progress(quiet=True) as progress:
        return start_supernet(checked, directory, progress, parallel)


def start_supernet(
    config: SupernetConfig, out: Path, progress: Progress, parallel: int | None = None
) -> SupernetResult:
    """A new supernet. All that can be checked is checked before its directory is made; see `train_supernet`."""
    SupernetDirectory.check_free(out)
    problem = outlined(config.of_training(), progress)
    left_out = unreachable("device", {name: config.of_device(name) for name in config.devices}, progress)
    directory = SupernetDirectory.create(out, config)
    for name, reason in left_out.items():
        run = RunDirectory.create(directory.device(name).path, config.of_device(name, directory.path))
        run.write_info(replace(run.info(), state="infeasible", stage="check", reason=reason))
    return _drive(directory, problem, progress, parallel)


def resume_supernet(path: Path, progress: Progress, parallel: int | None = None) -> SupernetResult:
    """Go on with a supernet that was stopped or killed: from its last epoch, sample or device. Raises as
    `train_supernet`."""
    from automl.problem import Problem

    directory = SupernetDirectory.open(path)
    make_importable(directory.info().working_directory)
    weights = directory.baseline_file if directory.baseline_file.exists() else None
    return _drive(directory, Problem.outline(directory.config().of_training(), weights), progress, parallel)


def _drive(
    directory: SupernetDirectory, problem: "Problem", progress: Progress, parallel: int | None
) -> SupernetResult:
    """Drive a supernet to its end."""
    from automl.report.supernet import write_supernet_report

    config = directory.config()
    try:
        with driving(directory, progress, config.storage) as (clock, stop):
            _Driver(directory, config, problem, progress, clock, stop).drive(parallel)
            devices = device_results(directory)
            if any(each.state not in ENDED for each in devices):
                clock.set("failed", reason="a device's run failed")
            else:
                clock.set("done", "done")
            write_supernet_report(directory.path)
    except RunStoppedError:
        return SupernetResult(directory.path, device_results(directory), stopped=True)
    return SupernetResult(directory.path, devices)


@dataclass
class _Driver:
    """A supernet being driven: the stages, in order. One that has ended is not repeated."""

    directory: SupernetDirectory
    config: SupernetConfig
    problem: "Problem"
    progress: Progress
    clock: RunClock
    stop: StopSignal

    def drive(self, parallel: int | None) -> None:
        """All stages."""
        self._train()
        self._sample()
        self._predict()
        self._search(parallel)

    def _stage(self, name: str, text: str) -> None:
        self.stop.check()
        self.clock.set("running", name)
        self.progress.stage(text)

    def _train(self) -> None:
        if not self.problem.trained:
            config = self.config
            self._stage("training", f"Training: {config.model.name} on {config.data.name}, then its sub-networks")
            with self.directory.timed("training"):
                self.problem = self.problem.with_baseline(self._on_epoch, self._alive)
        if not self.directory.baseline_file.exists():
            write_atomically(self.directory.baseline_file, self.problem.saved())
        if self.problem.supernet is not None and self.problem.supernet.history:
            write_json(self.directory.training_file, self.problem.supernet.history)

    def _on_epoch(self, report: "EpochReport") -> None:
        from automl.supernet.training import SupernetReport

        if isinstance(report, SupernetReport):
            before = [each for each in self.directory.training() if each.get("epoch", 0) < report.epoch]
            write_json(self.directory.training_file, [*before, report.record()])
            self.progress.epoch("supernet", report)
        else:
            self.progress.epoch("largest network alone", report)
        self._alive()

    def _alive(self) -> None:
        self.clock.beat()
        self.stop.check()

    def _sample(self) -> None:
        """Evaluate the sub-networks that predictors learn from and are judged by."""
        from automl.once_for_all.sampling import drawn, evaluate_samples, samples_of

        how, model = self.config.supernet.predictor, self.problem.graph.digest
        if self.directory.samples_file.exists():
            read_samples(self.directory.samples_file, model)
            return
        policies = drawn(self.problem.space, how.samples, how.held_out, self.config.search.seeds[0])
        count = sum(map(len, policies.values()))
        self._stage("samples", f"Samples: {count} sub-networks, evaluated")
        imports_from = self.directory.info().working_directory
        session = ray_session(cpus_of(self.config.search), modules=modules_of(self.config, imports_from))
        with self.directory.timed("samples"), session as _:
            from automl.orchestration.crew import evaluators  # Ray reads its environment when it is imported

            of = (self.problem.config, self.directory.baseline_file, imports_from)
            with evaluators(*of, self.problem.constraints) as crew:
                evaluate_samples(self.problem, policies, crew, self.directory.store_file, self._sampled)
        write_samples(self.directory.samples_file, model, samples_of(self.directory.store_file))

    def _sampled(self, done: int, total: int) -> None:
        self.progress.update("sub-networks evaluated", done, total)
        self.clock.beat()
        self.stop.check()

    def _predict(self) -> None:
        """Fit a predictor to the samples, and find out how well it ranks those that it has not learned from."""
        from automl.once_for_all.quality import judged

        if self.directory.predictor_file.exists():
            self.directory.predictor()
            return
        how = self.config.supernet.predictor
        self._stage("predictor", f"Predictor: {how.kind}, of the accuracy of sub-networks")
        with self.directory.timed("predictor"):
            samples = read_samples(self.directory.samples_file, self.problem.graph.digest)
            found = judged(how.kind, self.problem.space, samples, self.config.search.seeds[0])
        write_json(self.directory.predictor_file, found)
        self.progress.say(f"  {predictor_text(found)}")

    def _search(self, parallel: int | None) -> None:
        """The runs of all devices."""
        names = [name for name in self.config.devices if not self._ended(name)]
        if not names:
            return
        runs = [self._run(name) for name in names]
        self._stage("devices", f"Devices: {len(runs)} of {len(self.config.devices)}")
        at_once = parallel or fitting(self.config.of_device(name) for name in names)
        drive(runs, at_once, self.stop, self._driven)

    def _ended(self, name: str) -> bool:
        run = self.directory.device(name)
        return run.info_file.exists() and run.info().state in ENDED

    def _run(self, name: str) -> RunDirectory:
        """The run directory of a device, made where it is not there."""
        run = self.directory.device(name)
        if not run.info_file.exists():
            shutil.rmtree(run.path, ignore_errors=True)  # what a kill left half made
            create_run(run.path, self.config.of_device(name, self.directory.path))
        return run

    def _driven(self, runs: Sequence[RunDirectory]) -> None:
        show_runs(runs, self.progress, "device")
        self.clock.beat()
