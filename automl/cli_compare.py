"""`trimtab compare`."""

import argparse
from pathlib import Path

from automl.cli_output import DONE, show


def takes_options(parser: argparse.ArgumentParser) -> None:
    """What is compared, and where to."""
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run directory, or a directory of runs, such as a sweep's"
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw best value against effort, as SVG")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, and the whole Pareto front")


def compare(options: argparse.Namespace) -> int:
    """Rank search algorithms; those of a sweep over devices for each device apart, unless a file is asked for."""
    from automl.compare import compare as compared
    from automl.compare import compare_apart, comparison_tables, write_comparison, write_figures
    from automl.sweeps.directory import SweepDirectory

    if options.json is None and options.picture is None and any(map(SweepDirectory.is_at, options.runs)):
        show(*(table for each in compare_apart(options.runs) for table in comparison_tables(each)))
        return DONE
    comparison = compared(options.runs)
    show(*comparison_tables(comparison))
    if options.json is not None:
        print(write_figures(comparison, options.json))
    if options.picture is not None:
        print(write_comparison(comparison, options.picture))
    return DONE
