"""Finishing the networks that a run compares: trained on any node, kept and compiled on the driver's."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from automl.orchestration.crew import Crew, Watch, spread
from automl.orchestration.keeper import Keeper, RemoteFolder
from automl.orchestration.placement import free_name, on_this_node
from automl.run.finalist_folder import FinalistFolder, Trained
from automl.run.finalists import Compiled, Finalist, read_result


def train_finalists(finalists: Sequence[Finalist], folder: Path, crew: Crew, watch: Watch) -> None:
    """Train and test those that are not finished; one that was interrupted goes on from its last epoch.

    Args:
        finalists: the networks.
        folder: of their folders, in the run directory.
        crew: the run's evaluators.
        watch: as of `spread`.

    Raises:
        TrimtabError: training diverged, or the process of one died twice.
    """
    folders = {finalist.name: FinalistFolder(folder / finalist.name) for finalist in finalists}
    todo = [each for each in finalists if read_result(folders[each.name].path, each) is None]
    kept: set[str] = set()

    def keep(running: Sequence[str], results: dict[str, Trained]) -> None:
        for name in results.keys() - kept:
            folders[name].finish(results[name])
            kept.add(name)
        watch(running, results)

    if not todo:
        return
    with _keeper(folder) as keeper:
        jobs = {
            each.name: lambda worker, each=each: worker.train.remote(
                each, folders[each.name].unfinished(), RemoteFolder(keeper, each.name)
            )
            for each in todo
        }
        spread(jobs, crew, keep)  # type: ignore[arg-type]  # its results are those of the jobs


def compile_finalists(
    finalists: Sequence[Finalist], folder: Path, crew: Crew, scratch: Path, watch: Watch
) -> dict[str, tuple[Compiled, str | None]]:
    """Compile finished networks, on the driver's node: that is where they are measured, and what the code is for.

    Args:
        finalists, folder, crew, watch: as of `train_finalists`.
        scratch: directory for their files.

    Returns:
        By name what engines run, and why there is nothing for the config's own.
    """
    whole = folder.resolve()
    jobs = {
        each.name: lambda worker, each=each: worker.compile_finalist.remote(each, whole / each.name, scratch)
        for each in finalists
    }
    return spread(jobs, crew, watch, here=True)


@contextmanager
def _keeper(folder: Path) -> Iterator[Any]:
    actor: Any = ray.remote(Keeper)
    keeper = actor.options(name=free_name("finalists"), num_cpus=0, scheduling_strategy=on_this_node()).remote(
        folder.resolve()
    )
    try:
        yield keeper
    finally:
        ray.kill(keeper)
