"""Where jobs go, and what is said of a cluster that does not take them; its dashboard is a small server."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from automl.cli import main
from automl.cli_output import BAD_INPUT, DONE, FAILED
from automl.errors import InputError
from automl.orchestration.jobs import address_of

TOKEN = "a-token-that-nobody-is-told"
Answers = dict[str, tuple[int, Any]]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # Ray reads it once in a process
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@contextmanager
def dashboard(answers: Answers) -> Iterator[str]:
    """The address of a server that gives these answers to "METHOD /path", else 404."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            code, value = answers.get(f"{self.command} {self.path}", (404, "nothing"))
            content = (value if isinstance(value, str) else json.dumps(value)).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


VERSION: Answers = {"GET /api/version": (200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "0"})}


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Exit code and the one line that a refused command says."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(arguments)
        out, err = capsys.readouterr()
        assert TOKEN not in out + err
        assert out == ""
        assert err.count("\n") == 1
        return code, err

    return run


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"GET /api/version": (401, "Unauthorized: Missing authentication token")}, "wants a token; give its own as"),
        ({"GET /api/version": (403, "Forbidden: Invalid authentication token")}, "refuses the token; give its own as"),
        ({}, "what does is another program, by HTTP 404"),
        ({"GET /api/version": (200, "<html>welcome</html>")}, "what does is another program, by HTTP 200"),
        (VERSION | {"GET /api/jobs/": (500, "out of order")}, "refuses: Request failed with status code 500"),
        (VERSION | {"GET /api/jobs/": (200, "<html>")}, "no dashboard of Ray answers"),
    ],
)
def test_a_cluster_that_does_not_take_jobs_is_told_apart(
    answers: Answers, expected: str, said: Callable[..., tuple[int, str]]
) -> None:
    with dashboard(answers) as address:
        code, line = said("jobs", "--address", address)
    assert code == FAILED
    assert expected in line
    assert address in line


def test_a_cluster_that_is_not_there(said: Callable[..., tuple[int, str]]) -> None:
    with dashboard({}) as address:
        pass
    code, line = said("logs", "some", "--address", address)
    assert code == FAILED
    assert f"no dashboard of Ray answers at {address} (Connection refused)" in line


@pytest.mark.parametrize(
    "command", [("logs", "some"), ("logs", "some", "-f"), ("stop", "some"), ("submit", "--resume", "some")]
)
def test_a_job_that_is_not_there(command: tuple[str, ...], said: Callable[..., tuple[int, str]]) -> None:
    answers = VERSION | {"GET /api/jobs/some": (404, "Job some does not exist.")}
    with dashboard(answers) as address:
        code, line = said(*command, "--address", address)
    assert code == BAD_INPUT
    assert f"has no job 'some'; `trimtab jobs --address {address}` lists them" in line


def test_a_name_cannot_lead_elsewhere(said: Callable[..., tuple[int, str]]) -> None:
    with dashboard(VERSION) as address:
        code, line = said("logs", "../version", "--address", address)
    assert code == BAD_INPUT
    assert "letters, digits and . _ -, got '../version'" in line


def test_jobs_of_others_are_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    theirs = {"type": "SUBMISSION", "status": "RUNNING", "entrypoint": "x", "submission_id": "theirs"}
    about = {"trimtab": "0.1.0", "command": "search", "config": "digits", "run": "~/trimtab-runs/ours"}
    ours = {**theirs, "submission_id": "ours", "metadata": about, "start_time": 1_000, "end_time": 62_000}
    with dashboard(VERSION | {"GET /api/jobs/": (200, [theirs, ours])}) as address:
        assert main(["jobs", "--address", address]) == DONE
    table = capsys.readouterr().out
    assert "theirs" not in table
    assert [text for text in ("ours", "RUNNING", "digits", "~/trimtab-runs/ours", " 61 ") if text not in table] == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "a job is submitted by a config, or goes on with --resume RUN; give one of them"),
        (("own.yaml", "--resume", "run"), "a job is submitted by a config, or goes on with --resume RUN"),
        (("--resume", "run", "--set", "a=1"), "a run is resumed as it was started: leave out --set"),
        (("own.yaml", "--out", "runs/mine"), "given from / or '~/' on, got 'runs/mine'"),
        (("own.yaml", "--name", "a job"), "letters, digits and . _ -, got 'a job'"),
        (("own.yaml",), "own.yaml"),
    ],
)
def test_what_is_no_submission_is_refused_before_the_cluster_is_asked(
    arguments: tuple[str, ...],
    expected: str,
    said: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, line = said("submit", *arguments, "--address", "http://127.0.0.1:1")
    assert code == BAD_INPUT
    assert expected in line


def test_an_address_is_given_or_that_of_ray_or_this_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address_of(None) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "https://cluster.example/")
    assert address_of(None) == "https://cluster.example"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    assert address_of(None) == "http://head:8265"
    assert address_of("http://other:1") == "http://other:1"


@pytest.mark.parametrize("address", ["head:8265", "ray://head:10001", "http://", "http://head:port", "auto", ""])
def test_what_is_no_address_of_a_dashboard(address: str) -> None:
    with pytest.raises(InputError, match=r"jobs go to a cluster's dashboard.* by --address; give --address"):
        address_of(address)


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(InputError, match="one with a password") as caught:
        address_of("http://me:secret@head:8265")
    assert "secret" not in str(caught.value)
