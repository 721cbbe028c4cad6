"""Jobs on a Ray cluster, through its dashboard: submitted, listed, followed and stopped.

Ray runs a job's command on the head node; it outlives the connection of whoever submitted it. Tokens are Ray's own
(`RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH`, `~/.ray/auth_token`): they go into the header of a request and nowhere else.
"""

import asyncio
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from automl.errors import InputError, TrimtabError
from automl.orchestration.address import environment

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
ANSWER_S = 15.0
"""For a dashboard to answer at all."""
STOP_S = 300
"""For a job that is told to stop: it ends at the next point that it can be resumed from, then it is killed."""
POLL_S = 0.5
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NAMED = "the name of a job is of at most 100 letters, digits and . _ -"
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")


@dataclass(frozen=True, slots=True)
class Job:
    """A job of Trimtab's, as its cluster knows it.

    Attributes:
        name: Ray's submission id.
        state: Ray's: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.
        command: of Trimtab, such as "search".
        config: name of the config; empty where a run is resumed.
        run: the run directory, on the cluster's head node.
        version: of Trimtab that submitted it.
        started: None before that.
        seconds: that it has taken, up to now or to its end.
        message: Ray's, why it failed.
    """

    name: str
    state: str
    command: str
    config: str
    run: str
    version: str
    started: datetime | None
    seconds: float
    message: str

    @property
    def ended(self) -> bool:
        """Whether it runs no more, and is not going to."""
        return self.state in ENDED


def address_of(given: str | None) -> str:
    """The address of a cluster's dashboard: the one given, or that of Ray's variables, or this machine's.

    Raises:
        InputError: it is no http address.
    """
    named = [(name, os.environ[name]) for name in ADDRESS_VARIABLES if os.environ.get(name)]
    origin, address = ("--address", given) if given is not None else (named or [("", ADDRESS)])[0]
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and parts.username is None
    except ValueError:
        valid = False
    if not valid:
        got = "one with a password" if "@" in address else repr(address)
        raise InputError(
            f"jobs go to a cluster's dashboard, at http://HOST:8265 or the like, got {got} by {origin}; give --address"
        )
    return address.rstrip("/")


class Cluster:
    """The jobs of a cluster.

    Raises:
        TrimtabError: it does not answer, or refuses the token; here and in every method.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        if "RAY_AUTH_MODE" not in os.environ and _has_token():
            os.environ["RAY_AUTH_MODE"] = "token"  # read when Ray is imported; without it a token would not be used
        with self._said_in_one_line():
            self._client = _client(address)

    def submit(
        self,
        name: str,
        command: Sequence[str],
        about: Mapping[str, str],
        folder: Path | None = None,
    ) -> None:
        """Have the head node run a command.

        Args:
            name: of the job.
            command: and its arguments; a leading "~/" in one is the home there.
            about: told by `jobs`: see `Job`.
            folder: what travels; the command starts in a copy of it.

        Raises:
            InputError: the cluster has a job of that name already.
        """
        # The environment of a job is also that of the actor that stops it: so the head needs no settings of its own.
        environment: dict[str, Any] = {
            "env_vars": {"RAY_JOB_STOP_SIGNAL": "SIGTERM", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
        }
        if folder is not None:
            environment["working_dir"] = str(folder)
        with self._said_in_one_line(name):
            self._client.submit_job(
                entrypoint=" ".join(_quoted(each) for each in command),
                submission_id=name,
                runtime_env=environment,
                metadata=dict(about),
            )

    def jobs(self) -> list[Job]:
        """Trimtab's, the newest first."""
        with self._said_in_one_line():
            found = [_job(each) for each in self._client.list_jobs() if "trimtab" in (each.metadata or {})]
        return sorted(found, key=lambda job: (job.started is None, job.started), reverse=True)

    def job(self, name: str) -> Job:
        """One of them.

        Raises:
            InputError: the cluster has no such job.
        """
        if not NAME.fullmatch(name):
            raise InputError(f"{NAMED}, got {name!r}; `trimtab jobs --address {self.address}` lists them")
        with self._said_in_one_line(name):
            return _job(self._client.get_job_info(name))

    def logs(self, name: str) -> str:
        """What a job has written so far."""
        self.job(name)
        with self._said_in_one_line(name):
            return str(self._client.get_job_logs(name))

    def follow(self, name: str, write: Callable[[str], object]) -> Job:
        """Pass on what a job has written and goes on to write, until it ends."""
        self.job(name)

        async def tail() -> None:
            async for lines in self._client.tail_job_logs(name):
                write(lines)

        with self._said_in_one_line(name):
            asyncio.run(tail())
        if not (job := self.job(name)).ended:
            raise TrimtabError(f"the cluster closed the logs of {name!r}, which is {job.state}; follow them again")
        return job

    def stop(self, name: str) -> Job:
        """Tell a job to end where it can be resumed from, and wait for that."""
        if (job := self.job(name)).ended:
            return job
        with self._said_in_one_line(name):
            self._client.stop_job(name)
        deadline = time.monotonic() + STOP_S + ANSWER_S
        while not (job := self.job(name)).ended:
            if time.monotonic() > deadline:
                raise TrimtabError(f"job {name!r} was told to stop and is still {job.state}; look at its logs")
            time.sleep(POLL_S)
        return job

    @contextmanager
    def _said_in_one_line(self, name: str | None = None) -> Iterator[None]:
        """Errors of the client as this project's; those of Ray hold whole pages, and never the token."""
        import aiohttp
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except BrokenPipeError:  # whoever read our output went away
            raise
        except AuthenticationError as error:
            missing = any(text in str(error) for text in ("required", "couldn't find", "cannot be opened"))
            raise TrimtabError(
                f"the cluster at {self.address} {'wants a token' if missing else 'refuses the token'}; give its own as "
                "RAY_AUTH_TOKEN, in the file RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token"
            ) from None
        except (requests.RequestException, aiohttp.ClientError, OSError, ValueError) as error:
            raise TrimtabError(
                f"no dashboard of Ray answers at {self.address} ({_reason(error)}); start the head with it "
                "(`ray start --head`, ray[default]), or give the --address that reaches it"
            ) from error
        except RuntimeError as error:
            text = " ".join(str(error).split())
            if "does not exist" in text:
                raise InputError(
                    f"the cluster at {self.address} has no job {name!r}; `trimtab jobs --address {self.address}` lists "
                    "them"
                ) from None
            if "already exists" in text:
                raise InputError(
                    f"the cluster at {self.address} has a job {name!r} already; choose another --name"
                ) from None
            raise TrimtabError(f"the cluster at {self.address} refuses: {text[:300]}") from error


def _client(address: str) -> "JobSubmissionClient":
    import requests

    answer = requests.get(f"{address}/api/version", timeout=ANSWER_S)  # Ray's own client would wait for minutes
    if answer.status_code not in (401, 403) and '"ray_version"' not in answer.text:
        raise ValueError(f"what does is another program, by HTTP {answer.status_code}")

    from ray.job_submission import JobSubmissionClient

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.ERROR)
    with environment({ADDRESS_VARIABLES[0]: address}):  # Ray's variables win over an address that is given
        return JobSubmissionClient(address)


def _reason(error: BaseException) -> str:
    """What the operating system says, which libraries bury in their own words."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"


def _has_token() -> bool:
    """Whether there is a token in one of Ray's places."""
    places = [Path(os.environ[name]) for name in ("RAY_AUTH_TOKEN_PATH",) if os.environ.get(name)]
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or any(
        place.is_file() for place in (*places, Path("~/.ray/auth_token").expanduser())
    )


def _job(details: Any) -> Job:
    about = details.metadata or {}
    started = datetime.fromtimestamp(details.start_time / 1000, UTC) if details.start_time else None
    ended = details.end_time / 1000 if details.end_time else time.time()
    return Job(
        name=str(details.submission_id),
        state=str(details.status.value),
        command=about.get("command", ""),
        config=about.get("config", ""),
        run=about.get("run", ""),
        version=about.get("trimtab", ""),
        started=started,
        seconds=max(0.0, ended - started.timestamp()) if started else 0.0,
        message=details.message or "",
    )


def _quoted(argument: str) -> str:
    """For the shell that runs it; "~/" stays the home of whoever runs it."""
    return f"~/{shlex.quote(argument[2:])}" if argument.startswith("~/") else shlex.quote(argument)
