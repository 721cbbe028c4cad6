"""A tracker and devices on loopback, each a process of its own with TVM's runtime alone; some of them misbehave.

    python tests/rpc_devices.py KEY:MODE ...

TVM is imported once, since that takes seconds; the tracker and the devices are forked off. It tells
the tracker's port in a line, then each device as a JSON object. All end when its stdin closes.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_COPY = 8
"""Code of the frames that hold an array which a device gives back."""
_PORTS = 19_000, 29_000


@dataclass(frozen=True)
class Device:
    """A device: its process, with its sessions in the same process group."""

    pid: int
    port: int
    key: str

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.port}"

    def signal(self, number: int) -> None:
        os.killpg(self.pid, number)


@contextmanager
def devices(*specifications: str) -> Iterator[tuple[str, list[Device]]]:
    """A tracker's address and devices, each given as "key:mode": a name (see `_MODES`), or a command as JSON whose
    process serves each session, given the connection's descriptor and a folder."""
    command = [sys.executable, str(Path(__file__)), *specifications]
    environment = {**os.environ, "TVM_USE_RUNTIME_LIB": "1", "OMP_NUM_THREADS": "1", "TVM_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as farm:
        assert farm.stdout is not None
        assert farm.stdin is not None
        tracker = f"127.0.0.1:{farm.stdout.readline().strip()}"
        found = [Device(**json.loads(farm.stdout.readline())) for _ in specifications]
        try:
            _wait_until_registered(tracker, found)
            yield tracker, found
        finally:
            farm.stdin.close()
            farm.wait()


def _wait_until_registered(tracker: str, expected: Sequence[Device]) -> None:
    from backends.remote.tracker import Tracker
    from search_spaces.errors import InputError

    client, deadline = Tracker(tracker, 60.0), time.monotonic() + 60.0
    for device in expected:
        while True:
            with suppress(InputError):
                if device.name in client.devices(device.key):
                    break
            assert time.monotonic() < deadline, f"{device} is not registered"
            time.sleep(0.01)


def _main(specifications: Sequence[str]) -> None:
    from tvm.rpc import server, tracker

    ready, told = os.pipe()
    children = [_forked(lambda: _run_tracker(tracker, told))]
    with os.fdopen(ready) as lines:
        tracker_port = int(lines.readline())
        _tell(str(tracker_port))
        for specification in specifications:
            key, mode = specification.split(":", 1)
            children.append(_forked(lambda: _run_device(server, tracker_port, key, mode, told)))  # noqa: B023  at once
            port = int(lines.readline())
            _tell(json.dumps({"pid": children[-1], "port": port, "key": key}))
        sys.stdin.read()
    for child in children:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _forked(run: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    try:
        run()
    finally:
        os._exit(1)


def _run_tracker(tracker: Any, told: int) -> None:
    state = tracker.PopenTrackerServerState("127.0.0.1", *_PORTS, silent=True)
    os.write(told, f"{state.port}\n".encode())
    state.thread.join()


def _run_device(server: Any, tracker_port: int, key: str, mode: str, told: int) -> None:
    if mode.startswith("["):
        _elsewhere(server, json.loads(mode))
    else:
        _MODES[mode](server)
    server.logger.setLevel("ERROR")
    state = server.PopenRPCServerState("127.0.0.1", *_PORTS, tracker_addr=("127.0.0.1", tracker_port), key=key)
    os.write(told, f"{state.port}\n".encode())
    state.thread.join()


def _sound(server: Any) -> None:
    pass


def _wrong(server: Any) -> None:
    """Every array of float32 that it gives back is 1 % off."""

    def spoil(frame: bytes) -> bytes:
        (code,) = struct.unpack_from("<i", frame)
        values = frame[4:]
        if code != _COPY or len(values) % 4 or len(values) == 8:
            return frame
        floats = struct.unpack(f"<{len(values) // 4}f", values)
        return frame[:4] + struct.pack(f"<{len(floats)}f", *(value * 1.01 for value in floats))

    _relay(server, to_client=spoil)


def _miscounting(server: Any) -> None:
    """The whole number that it gives back is one too many."""

    def spoil(frame: bytes) -> bytes:
        (code,) = struct.unpack_from("<i", frame)
        if code != _COPY or len(frame) != 12:
            return frame
        return frame[:4] + struct.pack("<Q", struct.unpack_from("<Q", frame, 4)[0] + 1)

    _relay(server, to_client=spoil)


def _older(server: Any) -> None:
    """A runtime without a function that this TVM's has."""
    import tvm_ffi

    tvm_ffi.registry.remove_global_func("vm.builtin.check_string_info")


def _foreign(server: Any) -> None:
    """A runtime that speaks another version of the protocol."""
    _relay(server, to_server=lambda frame: frame.replace(b"0.8.0", b"0.7.0"))


_MODES: dict[str, Callable[[Any], None]] = {
    "sound": _sound,
    "wrong": _wrong,
    "miscounting": _miscounting,
    "older": _older,
    "foreign": _foreign,
}


def _elsewhere(server: Any, command: Sequence[str]) -> None:
    """Sessions are served by another program."""

    def serving(connection: socket.socket, address: Any, options: Any, libraries: Any) -> None:
        with connection, tempfile.TemporaryDirectory() as folder:
            descriptor = connection.fileno()
            with suppress(subprocess.TimeoutExpired):
                limit_s = options.get("timeout")
                subprocess.run([*command, str(descriptor), folder], pass_fds=[descriptor], timeout=limit_s, check=False)

    server._serving = serving


Change = Callable[[bytes], bytes]


def _relay(server: Any, to_client: Change = bytes, to_server: Change = bytes) -> None:
    """Has the server's sessions talk through us, who change the frames."""
    serving = server._serving

    def relayed(connection: socket.socket, *rest: Any) -> None:
        ours, theirs = socket.socketpair()
        for pair, change in (((connection, ours), to_server), ((ours, connection), to_client)):
            threading.Thread(target=_pump, args=(*pair, change), daemon=True).start()
        try:
            serving(theirs, *rest)
        finally:
            for end in (ours, connection):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    server._serving = relayed


def _pump(source: socket.socket, sink: socket.socket, change: Change) -> None:
    """Passes frames on: their length, then so many bytes."""
    with suppress(OSError), source.makefile("rb") as stream:
        while len(header := stream.read(8)) == 8:
            frame = change(stream.read(*struct.unpack("<Q", header)))
            sink.sendall(struct.pack("<Q", len(frame)) + frame)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    _main(sys.argv[1:])
