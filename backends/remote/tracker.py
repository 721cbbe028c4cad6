"""A client of TVM's RPC tracker that waits for nothing longer than it is told to; TVM's own waits for ever.

The protocol is TVM's (`tvm.rpc.tracker`): each side says a magic number, then come JSON texts behind their length. A
tracker that was asked for a device answers as soon as one is free.
"""

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from backends.remote.device import Place
from search_spaces.errors import InputError, TrimtabError, did_you_mean

_MAGIC = struct.pack("<i", 0x2F271)
_SUCCESS, _REQUEST, _SUMMARY = 0, 4, 6
_SIZE = struct.Struct("<i")
_LONGEST_ANSWER = 1 << 20
_PRIORITY = 1


class Tracker:
    """A tracker at an address.

    Args:
        address: "host:port".
        timeout_s: after which a tracker that does not answer is given up.

    Raises:
        InputError: that is no address.
    """

    def __init__(self, address: str, timeout_s: float) -> None:
        self.address = address
        self._host, self._port = split_address(address)
        self._timeout_s = timeout_s

    def devices(self, key: str) -> list[str]:
        """Names of the devices of that kind, busy ones among them.

        Raises:
            InputError: there is none, or the address is no tracker's.
            TrimtabError: the tracker does not answer.
        """
        with self._connected() as connection:
            _send(connection, [_SUMMARY])
            servers = _successful(_receive(connection))["server_info"]
        kinds: dict[str, list[str]] = {}
        for server in servers:
            host, port = server["addr"]
            kinds.setdefault(str(server["key"]).removeprefix("server:"), []).append(f"{host}:{port}")
        if key not in kinds:
            raise InputError(
                f"no device of kind {key!r} is registered at the tracker {self.address}{did_you_mean(key, kinds)}; "
                "start its server with --tracker and --key, on a --port below its --port-end"
            )
        return sorted(kinds[key])

    def request(self, key: str, wait_s: float) -> Place | None:
        """A free device of that kind; None where none becomes free in that time. Raises as `devices`."""
        with self._connected() as connection:
            _send(connection, [_REQUEST, key, "", _PRIORITY])
            connection.settimeout(wait_s)
            try:
                first = _read(connection, _SIZE.size)
            except TimeoutError:
                return None
            connection.settimeout(self._timeout_s)
            host, port, match = _successful(_receive(connection, first))
        return Place(str(host), int(port), str(match))

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        """A connection on which the tracker has said who it is; what goes wrong on it is told in one line."""
        remedy = f"start it with `python -m tvm.exec.rpc_tracker --host {self._host} --port {self._port}`"
        try:
            with socket.create_connection((self._host, self._port), self._timeout_s) as connection:
                connection.sendall(_MAGIC)
                if _read(connection, len(_MAGIC)) != _MAGIC:
                    raise InputError(f"what answers at {self.address} is no tracker of TVM's RPC; {remedy}")
                yield connection
        except TimeoutError:
            raise TrimtabError(
                f"the tracker {self.address} did not answer within {self._timeout_s:g} s; see whether it runs, or "
                f"{remedy}"
            ) from None
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise TrimtabError(f"no tracker answers at {self.address} ({reason}); {remedy}") from None
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise InputError(f"what answers at {self.address} is no tracker of this TVM's RPC ({error})") from None


def split_address(text: str) -> tuple[str, int]:
    """Host and port of "host:port", an IPv6 host in brackets. InputError where it is none.

    >>> split_address("[::1]:9190")
    ('::1', 9190)
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise InputError(
            f"a tracker is 'host:port' with a port from 1 to 65535, such as '127.0.0.1:9190', got {text!r}"
        )
    return host.strip("[]"), int(port)


def _send(connection: socket.socket, message: Any) -> None:
    text = json.dumps(message).encode()
    connection.sendall(_SIZE.pack(len(text)) + text)


def _receive(connection: socket.socket, first: bytes | None = None) -> Any:
    """The next message, whose first bytes may have been read already."""
    (size,) = _SIZE.unpack(_read(connection, _SIZE.size) if first is None else first)
    if not 0 < size <= _LONGEST_ANSWER:
        raise ValueError(f"an answer of {size} bytes")
    return json.loads(_read(connection, size))


def _read(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise ValueError("it hung up")
        parts += part
    return bytes(parts)


def _successful(answer: Any) -> Any:
    if answer[0] != _SUCCESS:
        raise ValueError(f"it answered {answer[0]}")
    return answer[1]
