"""Does compression here behave as the literature says? Eight known results, measured on glyphs at 16 px.

    OMP_NUM_THREADS=1 python benchmarks/methods.py [--out runs/methods] [--seeds 3] [--networks lstm] [--claims 1 2b]

A claim says that one figure is above another; `methods_claims.py` defines both. It holds where it does in every seed,
for each of which the network is trained anew. Accuracies are those of the test images, in per cent, their differences
points. Where neither network reads twice as many as chance would, nothing is compared.

Baselines stay in Trimtab's cache, accuracies in OUT, so the same command goes on after an interruption; use a new
folder for another version. OUT/results.json holds what the tables show, seed by seed.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from methods_claims import CLAIMS, Claim, Comparison
from rich.console import Console
from rich.table import Table
from trained import RECIPES, Accuracies, Subject

from automl.cache import atomic_path
from automl.data import load_data


@dataclass
class Row:
    """What was found for a claim, a network and a setting, seed by seed."""

    claim: str
    network: str
    setting: str
    chance: float
    found: list[Comparison] = field(default_factory=list)

    @property
    def margins(self) -> list[float]:
        return [each.more - each.less for each in self.found]

    @property
    def verdict(self) -> str:
        """Whether the claim holds: in all seeds, in none, or in how many."""
        if CLAIMS[self.claim].unit == "%" and max(max(each.more, each.less) for each in self.found) < 2 * self.chance:
            return "at chance"
        holds = sum(margin > 0 for margin in self.margins)
        return {0: "no", len(self.found): "yes"}.get(holds, f"{holds} of {len(self.found)}")

    def as_json(self) -> dict[str, Any]:
        names = ("more", "less", "note")
        by_seed = {name: [getattr(each, name) for each in self.found] for name in names}
        return {
            "claim": self.claim,
            "network": self.network,
            "setting": self.setting,
            **by_seed,
            "margin": self.margins,
            "holds": self.verdict,
        }


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if arguments.cache is not None:
        os.environ["TRIMTAB_CACHE"] = str(arguments.cache)
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    data = load_data("glyphs", {"size": 16, "images": 1000 if arguments.quick else arguments.images})
    accuracies = Accuracies(arguments.out / "accuracies.sqlite")
    baselines: dict[str, list[float]] = {}
    rows: dict[tuple[str, str, str], Row] = {}
    for seed in range(1 if arguments.quick else arguments.seeds):
        for name in arguments.networks:
            start = time.process_time()
            subject = Subject(name, seed, data, accuracies, arguments.quick)
            baselines.setdefault(name, []).append(subject.baseline)
            print(f"{name}, seed {seed}: {subject.baseline:.2f} %, {time.process_time() - start:.0f} s", flush=True)
            for number in arguments.claims:
                if name not in CLAIMS[number].networks:
                    continue
                start = time.process_time()
                for found in CLAIMS[number].compare(subject):
                    row = Row(number, name, found.setting, 100 / data.classes)
                    rows.setdefault((number, name, found.setting), row).found.append(found)
                print(f"  claim {number}: {time.process_time() - start:.0f} s", flush=True)
    console = Console(width=max(140, Console().width))  # no table is any use in 80 columns
    for number in arguments.claims:
        console.print(as_table(number, [row for row in rows.values() if row.claim == number]))
    write(arguments, baselines, rows.values())


def as_table(number: str, rows: Sequence[Row]) -> Table:
    """The medians over the seeds, the margin's range, and whether the claim holds."""
    claim: Claim = CLAIMS[number]
    table = Table(title=f"{number}. {claim.text} ({claim.unit})", title_justify="left")
    for title in ("network", "setting"):
        table.add_column(title)
    for title in (claim.more, claim.less, "difference", "from", "to"):
        table.add_column(title, justify="right")
    table.add_column("holds")
    if any(each.note for row in rows for each in row.found):
        table.add_column("seed by seed", overflow="fold")
    for row in rows:
        figures = [[each.more for each in row.found], [each.less for each in row.found], row.margins]
        medians = [f"{statistics.median(values):.2f}" for values in figures]
        ends = [f"{end(row.margins):+.2f}" for end in (min, max)]
        notes = ["; ".join(each.note for each in row.found)] * (len(table.columns) - 8)
        table.add_row(row.network, row.setting, *medians, *ends, row.verdict, *notes)
    return table


def write(arguments: argparse.Namespace, baselines: dict[str, list[float]], rows: Iterable[Row]) -> None:
    file: Path = arguments.out / "results.json"
    document = {
        "images": arguments.images,
        "seeds": arguments.seeds,
        "quick": arguments.quick,
        "torch": torch.__version__,
        "recipes": {name: asdict(RECIPES[name]) for name in arguments.networks},
        "claims": {number: CLAIMS[number].text for number in arguments.claims},
        "baselines": baselines,
        "rows": [row.as_json() for row in rows],
    }
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"written to {file}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"), help="folder of the results")
    parser.add_argument("--cache", type=Path, help="folder of the data and the baselines instead of Trimtab's cache")
    parser.add_argument("--seeds", type=int, default=3, help="baselines of each network")
    parser.add_argument("--images", type=int, default=20_000, help="size of the data set; a fifth is the test split")
    parser.add_argument("--networks", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--claims", nargs="+", choices=CLAIMS, default=list(CLAIMS))
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, 1,000 images: whether it runs")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
