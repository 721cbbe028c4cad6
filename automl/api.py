"""Trimtab from Python: the same as the commands."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl.config import Config, load_config
from automl.config_sections import SearchSection, TrainingSection
from automl.costs.latency import local_prices
from automl.costs.latency_budget import LatencyBudget
from automl.errors import InputError, RunStoppedError, TrimtabError
from automl.loggers import logged, require_loggers
from automl.orchestration.address import at_address
from automl.orchestration.ray_session import cpus_of, modules_of, ray_session
from automl.progress import Progress
from automl.run.directory import RunClock, RunDirectory, State, make_importable, next_free, write_atomically
from automl.run.driving import driving
from automl.run.known import known_samples
from automl.run.remote import check_devices, require_devices
from automl.signals import StopSignal
from search_spaces.policy import CompressionPolicy

if TYPE_CHECKING:
    import gymnasium
    from stable_baselines3.common.vec_env import VecEnv

    from automl.problem import Problem


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        directory: the run directory.
        summary: what `summary.json` holds; empty where the run did not get that far.
        state: "done", "unfinished" (stopped, to be resumed) or "infeasible".
        reason: why it is not done.
    """

    directory: Path
    summary: Mapping[str, Any]
    state: State
    reason: str | None = None


def search(
    config: Config | str | Path | Mapping[str, Any], out: str | Path | None = None, *, address: str | None = None
) -> RunResult:
    """Search, fine-tune, measure and export, as the config says; quietly.

    Args:
        config: a `Config`, a mapping, or the path of a YAML file.
        out: the run directory, which must not exist or be empty; by default the next free `runs/search-<n>`.
        address: of a Ray cluster, as `trimtab search --address` has it; by default `RAY_ADDRESS`, or else a Ray of its
            own.

    Raises:
        InputError: the config cannot work; nothing has been written.
        TrimtabError: a stage failed; the run directory is kept, `resume` goes on with it.
    """
    checked = config if isinstance(config, Config) else load_config(config)
    name = Path(config).stem if isinstance(config, str | Path) else "search"
    directory = Path(out) if out is not None else next_free(Path("runs"), name)
    with at_address(address), Progress(quiet=True) as progress:
        return start(checked, directory, progress)


def compress_run(
    config: Config | str | Path | Mapping[str, Any],
    policy: CompressionPolicy | str | Path,
    out: str | Path | None = None,
    *,
    address: str | None = None,
) -> RunResult:
    """Apply a policy to a config's network, fine-tune, measure and export it beside its controls, as a run; quietly.

    Args:
        config: as of `search`; of its search section the evaluators and the device count. A budget is reported on.
        policy: what to apply, or the file that it stands in.
        out: as of `search`; by default the next free `runs/<policy>-<n>`.
        address: as of `search`.

    Raises:
        InputError: the config or the policy cannot work; nothing has been written.
        TrimtabError: a stage failed; the run directory is kept, `resume` goes on with it.
    """
    checked = config_for(config, policy)
    name = Path(policy).stem if isinstance(policy, str | Path) else "policy"
    directory = Path(out) if out is not None else next_free(Path("runs"), name)
    with at_address(address), Progress(quiet=True) as progress:
        return start(checked, directory, progress)


def config_for(
    config: Config | str | Path | Mapping[str, Any],
    policy: CompressionPolicy | str | Path,
    overrides: Sequence[str] = (),
) -> Config:
    """The config of a run that applies a policy instead of searching for one; the policy stands in it.

    Raises:
        InputError: the config or the policy's file cannot be read.
    """
    found = policy if isinstance(policy, CompressionPolicy) else CompressionPolicy.load(policy)
    section = {
        "algorithm": "given",
        "options": {"policies": [json.loads(found.to_json())]},
        "evaluations": 1,
        "seeds": [0],
        "mode": "resource",
        "reward": None,
        "faithful": False,
        "init_from": None,
    }
    given = [f"search.{key}={json.dumps(value)}" for key, value in section.items()]
    source = config.model_dump() if isinstance(config, Config) else config
    return load_config(source, [*overrides, *given])


def start(config: Config, out: Path, progress: Progress) -> RunResult:
    """A new run. Everything that can be checked is checked before the directory is made; raises as `search`."""
    RunDirectory.check_free(out)
    problem = outlined(config, progress)
    progress.say(f"Trimtab: {config.model.name} on {config.data.name}")
    directory = create_run(out, config)
    return _drive(directory, lambda: replace(problem, config=directory.config()), progress)


def outlined(config: Config, progress: Progress) -> "Problem":
    """The problem of a config whose devices are here, with all checked that can be; raises as `search`."""
    from automl.problem import Problem

    _require_devices(search=config.search, fine_tune=config.fine_tune)
    require_devices(config.measure)
    require_loggers(config.loggers)
    with local_prices(config, progress.operators) as prices:
        problem = Problem.outline(config, prices=prices)
    check_devices(config.measure)
    if not problem.trained:
        _require_devices(baseline=config.baseline)
    known_samples(config, problem.graph.digest)
    return problem


def create_run(out: Path, config: Config) -> RunDirectory:
    """The directory of a new run, with what it takes from other runs; raises as `search`."""
    from automl.orchestration.transfer import agent_file

    agent = agent_file(config.search)
    directory = RunDirectory.create(out, config)
    if agent is not None:
        write_atomically(directory.agent_file, agent)
    return directory


def resume(
    directory: str | Path | RunDirectory,
    progress: Progress | None = None,
    *,
    address: str | None = None,
    dashboard: bool = False,
) -> RunResult:
    """Go on with a run that was stopped or killed; one that is done is left as it is. As `search` otherwise.

    Args:
        directory: of the run.
        progress: shows how far it is; by default nothing does.
        address: as of `search`.
        dashboard: whether a local Ray has its dashboard, also where the config does not say so.
    """
    run = directory if isinstance(directory, RunDirectory) else RunDirectory.open(Path(directory))
    config = run.config()
    if dashboard:
        config = config.model_copy(update={"search": config.search.model_copy(update={"dashboard": True})})
    info = run.info()
    if info.state == "done" and run.report_file.exists():
        return RunResult(run.path, run.summary(), "done")
    require_loggers(config.loggers)
    if not Path(info.working_directory).is_dir():  # it was started on another machine
        info = replace(info, working_directory=str(Path.cwd()))
        run.write_info(info)
    make_importable(info.working_directory)

    def outline() -> "Problem":
        from automl.problem import Problem

        _require_devices(search=config.search, fine_tune=config.fine_tune)
        weights = run.baseline_file if run.baseline_file.exists() else None
        watch = progress.operators if progress is not None else None
        with local_prices(config, watch) as prices:
            return Problem.outline(config, weights, prices=prices, latency=LatencyBudget.read(run.budget_file))

    with at_address(address):
        if progress is not None:
            return _drive(run, outline, progress)
        with Progress(quiet=True) as silent:
            return _drive(run, outline, silent)


def make_env(
    config: Config | str | Path | Mapping[str, Any], name: str = "ChannelPruning", **options: Any
) -> "gymnasium.Env[Any, Any]":
    """The Gymnasium environment of a config's search, with an evaluator in this process.

    Args:
        config: a `Config`, a mapping, or the path of a YAML file.
        name: "ChannelPruning", "MixedPrecision", "LowRank" or "Joint".
        options: arguments of the environment that replace those of the config, such as `discrete=True`.

    Raises:
        InputError: the config cannot work, or there is no such environment.
    """
    import gymnasium

    import envs  # noqa: F401  (registers the environments)
    from automl.environments import ENVIRONMENTS, find_environment
    from automl.problem import Problem

    arguments = ENVIRONMENTS[find_environment(name)]
    checked = config if isinstance(config, Config) else load_config(config)
    problem = Problem.build(checked, prices=local_prices(checked))
    return gymnasium.make(f"trimtab/{name}-v0", **arguments(problem, options))


def make_vec_env(
    config: Config | str | Path | Mapping[str, Any], name: str = "ChannelPruning", count: int = 2, **options: Any
) -> "VecEnv":
    """Several environments of a config's search, for an agent of stable-baselines3 and a loop of one's own.

    They step side by side; the policies of their last steps are evaluated together on `search.evaluators` workers of a
    Ray that runs until the environments are closed. Policies and rewards are those of `make_env`.

    Args:
        config: a `Config`, a mapping, or the path of a YAML file.
        name: as of `make_env`.
        count: how many.
        options: arguments of the environments that replace those of the config.

    Raises:
        InputError: the config cannot work, there is no such environment, or one that is judged by other images.
        TrimtabError: Ray does not start.
    """
    from automl.environments import check_elsewhere, find_environment
    from automl.problem import Problem

    if count < 1:
        raise InputError(f"there is at least 1 environment, got {count}")
    find_environment(name)
    checked = config if isinstance(config, Config) else load_config(config)
    problem = Problem.build(checked, prices=local_prices(checked))
    check_elsewhere(problem, name, options)
    with ExitStack() as stack:
        modules = modules_of(checked, str(Path.cwd()))
        scratch = stack.enter_context(ray_session(cpus_of(checked.search), modules=modules))
        from automl.orchestration.vec_env import pooled_vec_env  # Ray reads its environment when it is imported

        return pooled_vec_env(problem, name, count, options, scratch / "baseline.safetensors", stack)


def export(directory: RunDirectory) -> Path:
    """Write `best/` of a run again, from its fine-tuned weights.

    Raises:
        TrimtabError: the run is not that far yet, or another process drives it.
    """
    from automl.problem import Problem
    from automl.run.exporting import export_best

    summary = directory.summary()
    if not summary.get("best"):
        raise TrimtabError(
            f"{str(directory.path)!r} has no best network yet; `trimtab resume {directory.path}` goes on"
        )
    make_importable(directory.info().working_directory)
    with directory.lock():
        latency = LatencyBudget.read(directory.budget_file)
        export_best(Problem.outline(directory.config(), directory.baseline_file, latency=latency), directory, summary)
    return directory.best


def _require_devices(**sections: SearchSection | TrainingSection) -> None:
    """InputError where a section of that name wants a device that is not here, before hours of work end at it."""
    from automl.training import torch_device

    for name, section in sections.items():
        try:
            torch_device(section.device)
        except InputError as error:
            raise InputError(f"{name}.device: {error}") from error


def _drive(directory: RunDirectory, outline: Callable[[], "Problem"], progress: Progress) -> RunResult:
    """Drive a run to its end."""
    config = directory.config()
    try:
        with driving(directory, progress, config.storage) as (clock, stop), logged(directory, config, progress.say):
            return _stages(directory, outline, progress, clock, stop)
    except RunStoppedError:
        return RunResult(directory.path, {}, "unfinished", "stopped")


def _stages(
    directory: RunDirectory,
    outline: Callable[[], "Problem"],
    progress: Progress,
    clock: RunClock,
    stop: StopSignal,
) -> RunResult:
    from automl.report import write_report
    from automl.run.stages import InfeasibleError, Run

    run = Run(directory, outline(), progress, clock, stop)
    try:
        summary = run.drive()
    except InfeasibleError as error:
        clock.set("infeasible", reason=str(error))
        write_report(directory.path)
        return RunResult(directory.path, {}, "infeasible", str(error))
    clock.set("done", "done")
    write_report(directory.path)
    return RunResult(directory.path, summary, "done")
