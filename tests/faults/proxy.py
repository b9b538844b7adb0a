"""A TCP proxy in front of a real S3 server that does to chosen answers what networks and servers do to them.

Requests pass through byte for byte (a signature covers the Host header, so nothing may be changed); faults are done to
the answers. It speaks just enough HTTP/1.1 for that: heads, Content-Length, keep-alive.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

PIECE = 64 << 10


@dataclass(frozen=True)
class Request:
    """number: from 0, over all GETs of a range that came through. path: without its query. start, end: of the range, [start, end)."""

    number: int
    path: str
    start: int
    end: int


@dataclass(frozen=True)
class Fault:
    """What is done to one answer. The body's first `after` bytes are passed on untouched.

    status: answered in the server's stead, with `code` as S3's error code. cut: the connection is closed. reset: closed
    with RST. stall: seconds of silence, then cut. flip: one bit of byte `after`. short/long: so many bytes fewer or more
    than asked for, under a Content-Length that fits. rate: bytes a second.
    """

    after: int = 0
    status: int = 0
    code: str = ""
    cut: bool = False
    reset: bool = False
    stall: float = 0.0
    flip: bool = False
    short: int = 0
    long: int = 0
    rate: float = 0.0


Decide = Callable[[Request], Fault | None]


class FaultProxy:
    """decide: asked at every ranged GET before it goes to the server; it may be replaced at any time. `bytes_sent`: of bodies, to clients."""

    def __init__(self, endpoint: str, decide: Decide = lambda _: None) -> None:
        parts = urlsplit(endpoint)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.decide = decide
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._stop = threading.Event()
        self.requests = 0
        self.bytes_sent = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server: socket.socket | None = None
        with client, suppress(OSError, _Broken):
            server = socket.create_connection(self._upstream, timeout=30)
            client.settimeout(None)
            with self._lock:
                self._open |= {client, server}
            to_client, from_client, from_server = client, _Reader(client), _Reader(server)
            while True:
                head = from_client.head()
                method, path = head.split(b" ", 2)[:2]
                span = re.search(rb"(?im)^range:\s*bytes=(\d+)-(\d+)", head)
                fault = None
                if method == b"GET" and span is not None:
                    with self._lock:
                        number, self.requests = self.requests, self.requests + 1
                    fault = self.decide(
                        Request(number, path.partition(b"?")[0].decode(), int(span[1]), int(span[2]) + 1)
                    )
                server.sendall(head)
                _relay(from_client, server, _length(head), 0)
                answer = from_server.head()
                length = 0 if method == b"HEAD" or answer[9:12] in (b"204", b"304") else _length(answer)
                if fault is not None and fault.status:
                    _relay(from_server, None, length, 0)
                    to_client.sendall(_error(fault))
                elif fault is None or answer[9:10] != b"2":
                    to_client.sendall(answer)
                    self._count(_relay(from_server, to_client, length, 0))
                else:
                    self._hurt(fault, answer, length, from_server, to_client)
        with self._lock:
            self._open -= {client, server}  # type: ignore[arg-type]
        if server is not None:
            server.close()

    def _hurt(self, fault: Fault, answer: bytes, length: int, source: _Reader, client: socket.socket) -> None:
        promised = length - fault.short + fault.long
        client.sendall(re.sub(rb"(?im)^(content-length:\s*)\d+", rb"\g<1>%d" % promised, answer))
        before = min(fault.after, length)
        self._count(_relay(source, client, before, fault.rate))
        left = length - before
        if fault.stall:
            self._stop.wait(fault.stall)
        if fault.reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fault.cut or fault.reset or fault.stall:
            raise _Broken
        if fault.flip and left:
            client.sendall(bytes([source.exactly(1)[0] ^ 1]))
            left -= 1
        self._count(_relay(source, client, left - fault.short, fault.rate))
        _relay(source, None, fault.short, 0)
        client.sendall(b"\0" * fault.long)

    def _count(self, size: int) -> None:
        with self._lock:
            self.bytes_sent += size


class _Broken(Exception):
    """The connection ends here: on purpose, or because the other side is gone."""


class _Reader:
    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._kept = connection, b""

    def head(self) -> bytes:
        while b"\r\n\r\n" not in self._kept:
            more = self._connection.recv(PIECE)
            if not more:
                raise _Broken
            self._kept += more
        head, _, self._kept = self._kept.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    def some(self, limit: int) -> bytes:
        if not self._kept:
            self._kept = self._connection.recv(PIECE)
            if not self._kept:
                raise _Broken
        data, self._kept = self._kept[:limit], self._kept[limit:]
        return data

    def exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self.some(count - len(data))
        return data


def _relay(source: _Reader, target: socket.socket | None, count: int, rate: float) -> int:
    left = count
    while left > 0:
        data = source.some(min(left, int(rate / 20) or 1) if rate else left)
        if target is not None:
            target.sendall(data)
        left -= len(data)
        if rate:
            time.sleep(len(data) / rate)
    return count


def _length(head: bytes) -> int:
    found = re.search(rb"(?im)^content-length:\s*(\d+)", head)
    return int(found[1]) if found else 0


def _error(fault: Fault) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>on purpose</Message></Error>".encode()
    head = f"HTTP/1.1 {fault.status} Fault\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
