"""The client of TVM's tracker: what it asks, and that it waits for nothing longer than it is told to."""

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from backends.remote.device import Place
from backends.remote.tracker import Tracker, split_address
from search_spaces.errors import InputError, TrimtabError

MAGIC = struct.pack("<i", 0x2F271)
Answer = Callable[[Any], bytes | None]


@contextmanager
def listening(greeting: bytes | None, answer: Answer = lambda _: None) -> Iterator[str]:
    """The address of a server that greets, then answers each message; None: not at all."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=talk, args=(connection,), daemon=True).start()

        def talk(connection: socket.socket) -> None:
            with connection, suppress(OSError), connection.makefile("rb") as stream:
                if stream.read(4) != MAGIC or greeting is None:
                    stream.read()
                    return
                connection.sendall(greeting)
                while len(size := stream.read(4)) == 4:
                    reply = answer(json.loads(stream.read(*struct.unpack("<i", size))))
                    if reply is not None:
                        connection.sendall(reply)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def framed(value: Any) -> bytes:
    text = json.dumps(value).encode()
    return struct.pack("<i", len(text)) + text


def registered(*servers: tuple[str, str, int]) -> Answer:
    """A tracker with servers of (key, host, port); the first of a kind is free."""
    info = [{"key": f"server:{key}", "addr": [host, port]} for key, host, port in servers]

    def answer(message: Any) -> bytes | None:
        if message == [6]:
            return framed([0, {"queue_info": {}, "server_info": info}])
        code, key, _, _ = message
        assert code == 4
        return next((framed([0, [host, port, f"{kind}:0.5"]]) for kind, host, port in servers if kind == key), None)

    return answer


def test_devices_are_those_of_the_kind() -> None:
    with listening(
        MAGIC, registered(("pi", "10.0.0.2", 9091), ("phone", "10.0.0.3", 9090), ("pi", "10.0.0.1", 9090))
    ) as at:
        assert Tracker(at, 5).devices("pi") == ["10.0.0.1:9090", "10.0.0.2:9091"]
        assert Tracker(at, 5).request("phone", 5) == Place("10.0.0.3", 9090, "phone:0.5")
        assert Place("10.0.0.3", 9090, "phone:0.5").name == "10.0.0.3:9090"


def test_a_kind_that_is_not_there_is_told_with_those_that_are() -> None:
    with listening(MAGIC, registered(("pi4", "10.0.0.1", 9090))) as at:
        with pytest.raises(InputError, match=r"no device of kind 'pi5' is registered .*; did you mean 'pi4'\?; start"):
            Tracker(at, 5).devices("pi5")
        assert Tracker(at, 5).request("pi5", 0.05) is None


@pytest.mark.parametrize(
    ("greeting", "answer", "error", "told"),
    [
        (None, lambda _: None, TrimtabError, r"did not answer within 0\.2 s"),
        (b"HTTP", lambda _: None, InputError, "is no tracker of TVM's RPC"),
        (b"", lambda _: None, TrimtabError, "did not answer"),
        (MAGIC, lambda _: None, TrimtabError, "did not answer"),
        (MAGIC, lambda _: framed([0, {"servers": []}]), InputError, r"no tracker of this TVM's RPC \('server_info'\)"),
        (MAGIC, lambda _: framed([-1, None]), InputError, "it answered -1"),
        (MAGIC, lambda _: struct.pack("<i", 1 << 30), InputError, "an answer of 1073741824 bytes"),
        (MAGIC, lambda _: struct.pack("<i", 3) + b"[0,", InputError, "no tracker of this TVM's RPC"),
    ],
)
def test_what_is_no_tracker_is_one_line(
    greeting: bytes | None, answer: Answer, error: type[TrimtabError], told: str
) -> None:
    with listening(greeting, answer) as at, pytest.raises(error, match=told) as caught:
        Tracker(at, 0.2).devices("pi")
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert at in str(caught.value)


def test_where_nobody_listens_the_remedy_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(
        TrimtabError, match=rf"no tracker answers at 127\.0\.0\.1:{port} \(.*rpc_tracker --host"
    ) as caught:
        Tracker(f"127.0.0.1:{port}", 5).devices("pi")
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(
    "text", ["", "9190", "host:", ":9190", "host:port", "host:0", "host:65536", "host:-1", "host:1e3"]
)
def test_an_address_is_host_and_port(text: str) -> None:
    with pytest.raises(InputError, match="a tracker is 'host:port' with a port from 1 to 65535"):
        split_address(text)


def test_addresses_may_be_names_and_of_ipv6() -> None:
    assert split_address("farm.example:9190") == ("farm.example", 9190)
    assert split_address("[fe80::1]:65535") == ("fe80::1", 65535)
