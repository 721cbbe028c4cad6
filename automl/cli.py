"""The `trimtab` command. Exit codes: 0 done, 1 failed or unfinished, 2 bad input."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from automl import cli_compare, cli_export, cli_jobs, cli_network, cli_supernet, cli_sweep, cli_watch
from automl.cli_cluster import here, takes_address, takes_copy
from automl.cli_options import takes_config
from automl.cli_output import BAD_INPUT, DONE, FAILED, complain, show
from automl.errors import InputError, TrimtabError
from automl.orchestration.address import at_address

if TYPE_CHECKING:
    from automl.api import RunResult
    from automl.config import Config

# Everything heavier is imported by the command that needs it: `list`, `status` and `--help` answer at once.


class _Parser(argparse.ArgumentParser):
    """Refuses a wrong command line with one line, as everything else is refused."""

    def error(self, message: str) -> NoReturn:
        complain(f"{message}; see `{self.prog} --help`")
        sys.exit(BAD_INPUT)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        _prepare_libraries()
        with at_address(getattr(options, "cluster", None)):
            code = command(options)
        sys.stdout.flush()
        return code
    except InputError as error:
        return _refused(error, BAD_INPUT, options.debug)
    except TrimtabError as error:
        return _refused(error, FAILED, options.debug)
    except KeyboardInterrupt:
        complain("interrupted")
        return FAILED
    except BrokenPipeError:  # the reader of our output went away: nothing to say, and nobody to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # the last line of defence
        if options.debug:
            traceback.print_exc()
        complain(f"unexpected {type(error).__name__}: {error}; --debug shows where")
        return FAILED


def _prepare_libraries() -> None:
    """Settings that libraries read when they are imported, where the user has not made them."""
    from automl.cache import cache_dir

    # OpenMP's threads spin while they wait: on a busy machine a training on two threads takes 25 times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "MPLCONFIGDIR" not in os.environ:  # matplotlib keeps its font list in our cache instead of the user's home
        with suppress(TrimtabError):  # whoever needs the cache will say that it cannot be made
            os.environ["MPLCONFIGDIR"] = str(cache_dir("matplotlib"))


def _refused(error: TrimtabError, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    complain(str(error))
    return code


def _parser() -> _Parser:
    parser = _Parser(prog="trimtab", description="Search compression policies for neural networks.")
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(command=_version_or_help(parser))
    commands = parser.add_subparsers(title="commands", parser_class=_Parser, metavar="COMMAND")

    def add(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of errors")
        sub.set_defaults(command=function)
        return sub

    search = add("search", _search, "search, fine-tune, measure and export, as a config says")
    takes_config(search)
    search.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: runs/<config>-<n>)")
    cli_sweep.takes_parallel(search)
    takes_address(search)
    cli_watch.takes_dashboard(search)
    compress = add("compress", _compress, "apply a given policy to a config's network, and compare it: a run as any")
    takes_config(compress)
    compress.add_argument("policy", type=Path, help="JSON file, such as best/policy.json of a run")
    compress.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: runs/<policy>-<n>)")
    takes_address(compress)
    resume = add("resume", _resume, "go on with a run or a sweep that was stopped or killed")
    takes_copy(resume)
    cli_sweep.resumes(resume)
    takes_address(resume)
    resume.add_argument("--dashboard", action="store_true", help=cli_watch.DASHBOARD)
    tune = add("tune", _tune, "tune the options of a search algorithm by Ray Tune, as a config's section `tune` says")
    takes_config(tune)
    tune.add_argument("--out", type=Path, metavar="DIR", help="its directory (default: runs/<config>-<n>)")
    tune.add_argument("--resume", action="store_true", help="go on with the tuning whose directory stands for CONFIG")
    takes_address(tune)
    supernet = add(
        "supernet", cli_supernet.supernet, "train one network for many devices, and search for each, as a config says"
    )
    takes_config(supernet)
    cli_supernet.takes_options(supernet)
    takes_address(supernet)
    cli_network.add_commands(add)
    report = add("report", _report, "write the report of a run again")
    report.add_argument("run", type=Path)
    report.add_argument("--picture", type=Path, metavar="FILE", help="also write its main chart as an SVG file")
    report.add_argument(
        "--optuna", type=Path, metavar="FILE", help="write its searches as studies for optuna-dashboard"
    )
    compare = add("compare", cli_compare.compare, "search algorithms, ranked over the runs that tried them")
    cli_compare.takes_options(compare)
    cli_export.add_commands(add)
    status = add("status", _status, "where a run stands, and its best policy layer by layer")
    status.add_argument("run", type=Path)
    status.add_argument("--json", action="store_true", help="as JSON")
    status.add_argument(
        "--front",
        nargs="?",
        const="",
        metavar="METRIC",
        help="instead, what no cheaper policy is as accurate as; with --json the policies, too (default: the budget's)",
    )
    cli_watch.add_commands(add)
    cli_jobs.add_commands(add)
    return parser


def _version_or_help(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    def command(options: argparse.Namespace) -> int:
        if not options.version:
            parser.print_help()
            return BAD_INPUT
        from automl.run.directory import trimtab_version

        print(f"trimtab {trimtab_version()}")
        return DONE

    return command


def _search(options: argparse.Namespace) -> int:
    from automl.config import load_config
    from automl.run.directory import RunDirectory, next_free

    if (sweep := cli_sweep.asked_for(options)) is not None:
        return cli_sweep.search(sweep, options)
    config = load_config(options.config, options.overrides)
    out = options.out or next_free(Path("runs"), options.config.stem)
    RunDirectory.check_free(out)
    return _started(config, out)


def _compress(options: argparse.Namespace) -> int:
    from automl.run.directory import RunDirectory, next_free

    out = options.out or next_free(Path("runs"), options.policy.stem)
    RunDirectory.check_free(out)

    from automl.api import config_for

    return _started(config_for(options.config, options.policy, options.overrides), out)


def _started(config: "Config", out: Path) -> int:
    """A new run, driven to its end."""
    from automl.api import start
    from automl.progress import Progress

    with Progress() as progress:
        result = start(config, out, progress)
    return _ended(result)


def _resume(options: argparse.Namespace) -> int:
    from automl.run.directory import RunDirectory

    run = here(options.run, options.out)
    if options.take_over:
        cli_sweep.take_over(run)
    cli_supernet.refuse(run)
    if cli_sweep.is_sweep(run):
        return cli_sweep.resume(run, options.parallel)
    cli_sweep.refuse_parallel(options)
    directory = RunDirectory.open(run)

    from automl.api import resume
    from automl.progress import Progress

    with Progress() as progress:
        result = resume(directory, progress, dashboard=options.dashboard)
    return _ended(result)


def _tune(options: argparse.Namespace) -> int:
    from automl.config import load_config
    from automl.run.directory import next_free
    from automl.tuning.config import TuningConfig
    from automl.tuning.records import TuningDirectory

    if options.resume:
        if options.out is not None or options.overrides:
            raise InputError("a tuning is resumed as it was started: leave out --out and --set")
        TuningDirectory.open(options.config)
    else:
        config = load_config(options.config, options.overrides, kind=TuningConfig)
        out = options.out or next_free(Path("runs"), options.config.stem)
        TuningDirectory.check_free(out)

    from automl.progress import Progress
    from automl.tables import tuning_table
    from automl.tuning.api import resume_tuning, tune

    with Progress() as progress:
        result = resume_tuning(options.config, progress) if options.resume else tune(config, out, progress)
    if result.stopped:
        complain(f"the tuning is unfinished; go on with `{TuningDirectory.RESUME.format(result.directory)}`")
        return FAILED
    show(tuning_table(result.trials))
    if result.best is None:
        complain("no trial got as far as a report")
        return FAILED
    print(f"a search with the best options: {result.best}")
    return DONE


def _ended(result: "RunResult") -> int:
    """Say what a run came to."""
    if result.state != "done":
        remedy = f"; go on with `trimtab resume {result.directory}`" if result.state == "unfinished" else ""
        complain(f"the run is {result.state}: {result.reason}{remedy}")
        return FAILED

    from automl.tables import summary_table

    show(summary_table(result.summary))
    print(f"report: {result.directory / 'report.html'}")
    print(f"exported network: {result.directory / 'best'}")
    return DONE


def _report(options: argparse.Namespace) -> int:
    from automl.once_for_all.directory import SupernetDirectory
    from automl.run.directory import RunDirectory

    if SupernetDirectory.is_at(options.run):
        return cli_supernet.report(options.run, options.picture or options.optuna)
    if cli_sweep.is_sweep(options.run):
        return cli_sweep.report(options.run, options.picture or options.optuna)
    directory = RunDirectory.open(options.run)
    if options.optuna is not None:
        return cli_watch.study(directory, options.optuna)

    from automl.report import write_picture, write_report

    print(write_report(directory.path))
    if options.picture is not None:
        print(write_picture(directory.path, options.picture))
    return DONE


def _status(options: argparse.Namespace) -> int:
    from automl.once_for_all.directory import SupernetDirectory
    from automl.run.directory import RunDirectory
    from automl.run.explanation import Explanation
    from automl.run.status import run_status

    if options.front is not None:
        return _front(options)
    if SupernetDirectory.is_at(options.run):
        return cli_supernet.status(options.run, options.json)
    if cli_sweep.is_sweep(options.run):
        return cli_sweep.status(options.run, options.json)
    directory = RunDirectory.open(options.run)
    status = run_status(directory)
    if options.json:
        print(json.dumps(status, indent=2))
        return DONE

    from automl.tables import explanation_table, status_table

    explanation = Explanation.read(directory.explanation_file)
    show(*status_table(status), *([] if explanation is None else [explanation_table(explanation)]))
    return DONE


def _front(options: argparse.Namespace) -> int:
    from automl.run.directory import RunDirectory
    from automl.run.status import run_front

    cli_supernet.refuse(options.run)
    cli_sweep.refuse(options.run)
    front = run_front(RunDirectory.open(options.run), options.front or None)
    if options.json:
        print(json.dumps(front, indent=2))
        return DONE

    from automl.tables import front_table

    show(front_table(front))
    return DONE
