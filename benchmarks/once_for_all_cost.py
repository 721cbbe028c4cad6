"""From how many devices on does a supernet cost less than a search and fine-tuning for each of them?

    trimtab supernet configs/glyphs_supernet.yaml --out DIR
    python benchmarks/once_for_all_cost.py DIR

Beside the run of each device in DIR: the same search without a supernet, from the largest network trained alone, by
Trimtab's default algorithm, fine-tuned for as many epochs. Both begin with latency tables that are warm, but for what
their searches ask for first. The seconds are those of this machine; run it while nothing else does. It goes on where it
was stopped.
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
class Device:
    """What a device took, in seconds, and the test accuracies that came of it."""

    name: str
    from_supernet_s: float
    own_s: float
    from_supernet: float
    own: float


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
    """Both ways for every device that has a network."""
    for name in directory.config().devices:
        run = directory.device(name)
        if not run.summary().get("best"):
            continue
        own = searched(without_supernet(directory, name), directory.path / "without_supernet" / name)
        accuracies = [float(each.summary()["best"]["accuracy"]) for each in (run, own)]
        yield Device(name, run.info().wall_s, own.info().wall_s, *accuracies)


def report(directory: SupernetDirectory, found: Sequence[Device]) -> Iterator[str]:
    """Two tables, and where they cross."""
    seconds = directory.seconds()
    supernet = sum(float(epoch["seconds"]) for epoch in directory.training())
    teacher = max(0.0, seconds.get("training", 0.0) - supernet)
    once = seconds.get("training", 0.0) + seconds.get("samples", 0.0)
    yield f"The largest network alone: {teacher:.0f} s; with its supernet and the samples: {once:.0f} s.\n"
    yield "| device | from the supernet, s | test | own search, s | test |"
    yield "|---|---|---|---|---|"
    for each in found:
        yield (
            f"| {each.name} | {each.from_supernet_s:.0f} | {100 * each.from_supernet:.1f} % "
            f"| {each.own_s:.0f} | {100 * each.own:.1f} % |"
        )
    served, own = mean(each.from_supernet_s for each in found), mean(each.own_s for each in found)
    yield "\n| devices | once for all, s | one by one, s |"
    yield "|---|---|---|"
    for number in NUMBERS:
        yield f"| {number} | {once + number * served:.0f} | {teacher + number * own:.0f} |"
    if own > served:
        yield f"\nThey cross at {(once - teacher) / (own - served):.1f} devices."
    else:
        yield "\nThey do not cross: a device takes no less time with the supernet."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="of `trimtab supernet`, that is done")
    directory = SupernetDirectory.open(parser.parse_args().directory.resolve())
    print("\n".join(report(directory, list(devices(directory)))))


if __name__ == "__main__":
    sys.exit(main())
