"""A Ray cluster of one node with its dashboard, as `ray start --head` makes it: on loopback, with a token."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

STARTS_S = 120


@dataclass(frozen=True)
class Head:
    """A running head.

    Attributes:
        address: of its dashboard.
        home: of whoever runs it.
        token: that it wants.
    """

    address: str
    home: Path
    token: str


@contextmanager
def ray_head(home: Path, cpus: int = 2) -> Iterator[Head]:
    """Start a head, and end it with all that it started.

    Args:
        home: of its processes; its cache is there, too.
        cpus: slots.
    """
    token = secrets.token_hex(32)
    folder = Path(tempfile.mkdtemp(prefix="trimtab-head-"))  # Unix sockets lie in it, and their paths are bounded
    gcs, dashboard, client, agent, metrics = _free_ports(5)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "HOME": str(home),
        "TRIMTAB_CACHE": str(home / "cache"),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only
    }
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true"),
        *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"),
        *(f"--num-cpus={cpus}", f"--object-store-memory={200 * 2**20}", f"--temp-dir={folder}"),
    ]
    with (home / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(address, process, home / "head.log")
        yield Head(address, home, token)
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + STARTS_S
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            urlopen(f"{address}/api/version", timeout=5).close()
            raise AssertionError("it wants no token")
        except HTTPError:  # it wants its token
            return
        except (URLError, OSError):
            time.sleep(0.2)
