"""`trimtab submit`, `jobs`, `logs` and `stop`: runs as jobs of a Ray cluster; and what a job runs there."""

import argparse
import os
import re
import secrets
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from automl.cli_options import AddCommand, takes_config
from automl.cli_output import DONE, FAILED, complain, show
from automl.errors import InputError

if TYPE_CHECKING:
    from automl.orchestration.jobs import Cluster, Job

RUNS = "~/trimtab-runs"
"""On the head node, where TRIMTAB_RUNS of whoever submits names no other place."""


def add_commands(add: AddCommand) -> None:
    """Add the commands to the parser."""
    submit = add("submit", _submit, "run a config on a Ray cluster, as a job that goes on without this terminal")
    takes_config(submit, required=False, help="YAML file: of a search, a sweep, a supernet or a tuning")
    submit.add_argument(
        "--resume", metavar="RUN", help="go on with the run of a job, by its name, or with a run directory there"
    )
    submit.add_argument("--out", metavar="DIR", help=f"run directory on the head node (default: {RUNS}/NAME)")
    submit.add_argument("--name", help="of the job (default: CONFIG and a random ending)")
    submit.add_argument(
        "--include",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="of the current directory, that modules of yours read: travels, too (may be given several times)",
    )
    submit.add_argument("-f", "--follow", action="store_true", help="then follow its logs")
    jobs = add("jobs", _jobs, "the jobs of a Ray cluster, and where their runs lie")
    logs = add("logs", _logs, "what a job has written")
    logs.add_argument("-f", "--follow", action="store_true", help="and goes on to write, until it ends")
    stop = add("stop", _stop, "have a job end where it can be resumed from")
    for parser in (logs, stop):
        parser.add_argument("job", help="its name, as `trimtab jobs` lists it")
    for parser in (submit, jobs, logs, stop):
        parser.add_argument(
            "--address", metavar="URL", help="of the cluster's dashboard (default: RAY_ADDRESS, or this machine's)"
        )
    runs = add("run-job", _run_job, "what a submitted job runs on the cluster, where Trimtab is installed as well")
    runs.add_argument("what", choices=("search", "supernet", "tune", "resume"))
    runs.add_argument("--out", type=Path, required=True, metavar="DIR", help="run directory")
    runs.add_argument("--submitted-by", required=True, metavar="VERSION", help="which is to be installed here")


def _submit(options: argparse.Namespace) -> int:
    from automl.orchestration.jobs import Cluster, address_of

    if (options.config is None) == (options.resume is None):
        raise InputError("a job is submitted by a config, or goes on with --resume RUN; give one of them")
    address = address_of(options.address)
    if options.resume is not None:
        if options.overrides or options.out or options.include:
            raise InputError("a run is resumed as it was started: leave out --set, --out and --include")
        cluster = Cluster(address)
        run = options.resume if "/" in options.resume else cluster.job(options.resume).run
        name = _name(options.name, Path(run))
        _submitted(cluster, name, "resume", _on_cluster(run))
    else:
        from automl.submission import pack

        name = _name(options.name, options.config)
        run = _on_cluster(options.out or f"{os.environ.get('TRIMTAB_RUNS', RUNS).rstrip('/')}/{name}")
        with TemporaryDirectory(prefix="trimtab-submit-") as temporary:
            parcel = pack(options.config, options.overrides, Path(temporary), include=options.include)
            cluster = Cluster(address)
            _submitted(cluster, name, parcel.command, run, config=parcel.name, folder=Path(temporary))
        print(f"travelled: {', '.join(parcel.files)} ({parcel.size_bytes / 1000:.1f} kB)")
    print(f"run directory on the cluster: {run}")
    if options.follow:
        return _followed(cluster, name)
    print(f"job {name}; follow it with `trimtab logs {name} -f --address {address}`")
    return DONE


def _submitted(
    cluster: "Cluster", name: str, command: str, run: str, config: str = "", folder: Path | None = None
) -> None:
    from automl.run.directory import trimtab_version

    version = trimtab_version()
    entry_point = ["trimtab", "run-job", command, "--out", run, "--submitted-by", version]
    about = {"trimtab": version, "command": command, "config": config, "run": run}
    about["job_name"] = config or Path(run).name  # which Ray's dashboard shows
    cluster.submit(name, entry_point, about, folder)


def _name(given: str | None, path: Path) -> str:
    """That of a job: as given, or after a path with an ending that makes it another's."""
    from automl.orchestration.jobs import NAME, NAMED

    name = given or f"{re.sub(r'[^A-Za-z0-9._-]+', '-', path.stem).strip('-._') or 'run'}-{secrets.token_hex(3)}"
    if not NAME.fullmatch(name):
        raise InputError(f"{NAMED}, got {name!r}; give another --name")
    return name


def _on_cluster(run: str) -> str:
    if not run.startswith(("/", "~/")) and "://" not in run:
        raise InputError(f"a run directory on the cluster is given from / or '~/' on, got {run!r}")
    return run


def _jobs(options: argparse.Namespace) -> int:
    from automl.orchestration.jobs import Cluster, address_of

    show(_job_table(Cluster(address_of(options.address)).jobs()))
    return DONE


def _logs(options: argparse.Namespace) -> int:
    from automl.orchestration.jobs import Cluster, address_of

    cluster = Cluster(address_of(options.address))
    if options.follow:
        return _followed(cluster, options.job)
    _write(cluster.logs(options.job))
    return DONE


def _followed(cluster: "Cluster", name: str) -> int:
    """What a job writes, until it ends; DONE where it ended well."""
    try:
        job = cluster.follow(name, _write)
    except KeyboardInterrupt:
        complain(f"no longer followed; the job goes on, `trimtab stop {name} --address {cluster.address}` ends it")
        return FAILED
    if job.state == "SUCCEEDED":
        return DONE
    complain(f"job {name} is {job.state}{_remedy(job, cluster)}")
    return FAILED


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _stop(options: argparse.Namespace) -> int:
    from automl.orchestration.jobs import Cluster, address_of

    cluster = Cluster(address_of(options.address))
    job = cluster.stop(options.job)
    print(f"job {job.name} is {job.state}{_remedy(job, cluster)}")
    return DONE


def _remedy(job: "Job", cluster: "Cluster") -> str:
    resume = f"`trimtab submit --resume {job.name} --address {cluster.address}`"
    if job.state == "FAILED":
        return f": its logs say why; where the run had begun, {resume} goes on with it"
    return f"; go on with {resume}" if job.state == "STOPPED" else ""


def _job_table(jobs: "list[Job]") -> object:
    from rich.table import Table

    table = Table(title=None if jobs else "no job of Trimtab's")
    for title in ("job", "state", "command", "config", "run directory on the cluster", "Trimtab", "started"):
        table.add_column(title, overflow="fold")
    table.add_column("seconds", justify="right")
    for job in jobs:
        started = "" if job.started is None else job.started.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(
            job.name, job.state, job.command, job.config, job.run, job.version, started, f"{job.seconds:,.0f}"
        )
    return table


def _run_job(options: argparse.Namespace) -> int:
    """In a job: become the command that it is for, connected to the cluster that runs it."""
    from automl.submission import CONFIG, check_version, resuming, unpack

    if options.what == "resume":
        check_version(options.submitted_by)
        command = resuming(options.out)
    else:
        os.chdir(unpack(options.out, options.submitted_by))
        command = [options.what, CONFIG, "--out", str(options.out)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "automl", *command, "--address", "auto"])
