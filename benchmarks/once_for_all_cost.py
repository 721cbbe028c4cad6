"""From how many devices on does a supernet cost less than a search and fine-tuning for each of them?

    trimtab supernet configs/glyphs_supernet.yaml --out DIR
    python benchmarks/once_for_all_cost.py DIR

Three ways to a network for each device, all with the controls that every run has: the search over the supernet, of
which nothing is trained; the run in DIR, which fine-tunes what it finds; and the same search without a supernet, from
the largest network trained alone, by Trimtab's default algorithm, fine-tuned for as many epochs. All begin with latency
tables that are warm, but for what their searches ask for first. The seconds are those of this machine; run it while
nothing else does. It goes on where it was stopped.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from automl.api import resume, start
from automl.config import Config, load_config
from automl.errors import TrimtabError
from automl.once_for_all.directory import SupernetDirectory
from automl.progress import Progress
from automl.run.directory import RunDirectory

NUMBERS = (1, 4, 16)


@dataclass(frozen=True)
class Way:
    """A device's run.

    Attributes:
        seconds: of all of it, controls included.
        accuracy: of the test.
    """

    seconds: float
    accuracy: float

    @classmethod
    def of(cls, run: RunDirectory) -> "Way":
        return cls(run.info().wall_s, float(run.summary()["best"]["accuracy"]))


@dataclass(frozen=True)
class Device:
    """What each way came to."""

    name: str
    untrained: Way
    fine_tuned: Way
    own: Way


def untrained(directory: SupernetDirectory, name: str) -> Config:
    """The config of a device's run, of which nothing is trained."""
    config = directory.config().of_device(name, directory.path)
    return config.model_copy(update={"fine_tune": config.fine_tune.model_copy(update={"epochs": 0})})


def without_supernet(directory: SupernetDirectory, name: str) -> Config:
    """The config of a device's run, of the largest network as it is trained alone."""
    document = directory.config().of_device(name).model_dump()
    document["supernet"] = None
    document["search"] |= {"algorithm": "auto", "options": {}}
    if document["further_budgets"]:
        document["budget"] = [document["budget"], *document["further_budgets"]]
    del document["further_budgets"]
    return load_config(document)


def searched(config: Config, out: Path) -> RunDirectory:
    """The run of a config, driven to its end."""
    run = RunDirectory(out)
    with Progress() as progress:
        result = resume(run, progress) if run.info_file.exists() else start(config, out, progress)
    if result.state != "done":
        raise TrimtabError(f"the run in {str(out)!r} is {result.state}: {result.reason}")
    return run


def devices(directory: SupernetDirectory) -> Iterator[Device]:
    """All ways for every device that has a network."""
    for name in directory.config().devices:
        run = directory.device(name)
        if not run.summary().get("best"):
            continue
        first = searched(untrained(directory, name), directory.path / "untrained" / name)
        own = searched(without_supernet(directory, name), directory.path / "without_supernet" / name)
        yield Device(name, *map(Way.of, (first, run, own)))


def report(directory: SupernetDirectory, found: Sequence[Device]) -> Iterator[str]:
    """Two tables, and where the ways cross."""
    seconds = directory.seconds()
    supernet = sum(float(epoch["seconds"]) for epoch in directory.training())
    teacher = max(0.0, seconds.get("training", 0.0) - supernet)
    once = seconds.get("training", 0.0) + seconds.get("samples", 0.0)
    yield f"The largest network alone: {teacher:.0f} s; with its supernet and the samples: {once:.0f} s.\n"
    yield "| device | from the supernet, s | test | fine-tuned, s | test | own search, s | test |"
    yield "|---|---|---|---|---|---|---|"
    for each in found:
        ways = (each.untrained, each.fine_tuned, each.own)
        cells = [f"{way.seconds:.0f} | {100 * way.accuracy:.1f} %" for way in ways]
        yield f"| {' | '.join([each.name, *cells])} |"
    served = mean(each.untrained.seconds for each in found)
    tuned = mean(each.fine_tuned.seconds for each in found)
    own = mean(each.own.seconds for each in found)
    yield "\n| devices | once for all, s | and fine-tuned, s | one by one, s |"
    yield "|---|---|---|---|"
    for number in NUMBERS:
        totals = (once + number * served, once + number * tuned, teacher + number * own)
        yield f"| {number} | {' | '.join(f'{total:.0f}' for total in totals)} |"
    yield ""
    for name, each_s in (("once for all", served), ("once for all, fine-tuned,", tuned)):
        if own > each_s:
            yield f"From {(once - teacher) / (own - each_s):.1f} devices on, {name} takes less time than one by one."
        else:
            yield f"However many devices, {name} takes no less time than one by one."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="of `trimtab supernet`, that is done")
    directory = SupernetDirectory.open(parser.parse_args().directory.resolve())
    print("\n".join(report(directory, list(devices(directory)))))


if __name__ == "__main__":
    sys.exit(main())
