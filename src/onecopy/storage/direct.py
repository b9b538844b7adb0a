"""Ranged GETs of S3 over plain sockets: the hot path of a fill.

obstore hands each range over as one new buffer: about 1.4 CPU-s/GB until the bytes lie in tmpfs, against 0.8 when the
socket is read into one reused buffer of 1 MiB that is then written (2 busy cores, SeaweedFS on loopback). `http.client`
was as cheap as hand-written HTTP. What must be right stays with obstore: it signs (one presigned URL a request, 60 µs),
with whatever credentials it found, and all else that a store does goes through it.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from onecopy.core.errors import IntegrityError, PreconditionFailed, RateLimited, StoreError, StoreUnreachable
from onecopy.core.units import KiB, MiB
from onecopy.storage.uri import StoreUri

PIECE = MiB
"""Read, digested and written at a time: it stays in the second-level cache; smaller pieces cost more system calls."""
_ERROR_BODY = 64 * KiB


class HttpAnswer(Exception):
    """An answer that is no success, in the words that the translation of errors reads."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"status: {status} {body}")
        self.status = status


class DirectReader:
    """sign: key → presigned URL. explain: an error and a key → ours. silence: seconds without a byte that end a request."""

    def __init__(
        self,
        uri: StoreUri,
        sign: Callable[[str], str],
        explain: Callable[[Exception, str], StoreError],
        *,
        ca_file: Path | None,
        connect_timeout: float,
        silence: float,
    ) -> None:
        self._uri, self._sign, self._explain = uri, sign, explain
        self._connect_timeout, self._silence, self._ca_file = connect_timeout, silence, ca_file
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._tls: ssl.SSLContext | None = None

    @contextmanager
    def open(self, key: str, start: int, end: int, if_match: str | None, timeout: float) -> Iterator[DirectBody]:
        """See `Store.open_range`."""
        url = urlsplit(self._sign(key))
        connection = self._take(url.scheme, url.netloc, timeout)
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        if if_match is not None:
            headers["If-Match"] = if_match
        body: DirectBody | None = None
        try:
            with named(self._uri.child(key)):
                connection.request("GET", f"{url.path}?{url.query}", headers=headers)
                answer = connection.getresponse()
            self._check(answer, key, start, end, if_match)
            body = DirectBody(answer, connection, self._uri.child(key), end - start)
            yield body
        finally:
            if body is not None and body.whole:
                with self._lock:
                    self._idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _take(self, scheme: str, netloc: str, timeout: float) -> _Connection:
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                if connection.netloc == netloc and not connection.stale():
                    return connection
                connection.close()
            if scheme == "https" and self._tls is None:
                self._tls = ssl.create_default_context(cafile=self._ca_file)
        context = self._tls if scheme == "https" else None
        return _Connection(netloc, context, min(self._connect_timeout, timeout), self._silence)

    def _check(self, answer: http.client.HTTPResponse, key: str, start: int, end: int, if_match: str | None) -> None:
        where = self._uri.child(key)
        if answer.status not in (200, 206):
            with named(where):
                text = answer.read(_ERROR_BODY).decode(errors="replace")
            raise self._refusal(answer, text, key) from HttpAnswer(answer.status, text)
        length = answer.getheader("Content-Length", "")
        if length != str(end - start):
            raise IntegrityError(f"{where}: asked for bytes {start}–{end}, got {length or 'an unknown number'}")
        etag = answer.getheader("ETag")
        if if_match is not None and etag is not None and etag.strip('"') != if_match.strip('"'):
            raise PreconditionFailed(f"{where}: another version is there")

    def _refusal(self, answer: http.client.HTTPResponse, text: str, key: str) -> StoreError:
        error = self._explain(HttpAnswer(answer.status, text), key)
        if isinstance(error, RateLimited):
            after = answer.getheader("Retry-After", "")
            error.retry_after = float(after) if re.fullmatch(r"\d{1,4}", after) else None
        return error


@contextmanager
def named(where: StoreUri) -> Iterator[None]:
    """What sockets and http.client raise, as an error that names the object."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        reason = "silence" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        raise StoreUnreachable(
            f"no answer from the store for {where}: {reason}",
            hint="check the endpoint and the network: `onecopy doctor`",
        ) from error


class DirectBody:
    """One answer's body, in pieces. Each piece is a view of one buffer and holds until the next is asked for."""

    def __init__(self, answer: http.client.HTTPResponse, connection: _Connection, where: StoreUri, size: int) -> None:
        self._answer, self._connection, self._where, self._size = answer, connection, where, size
        self.whole = False

    def __iter__(self) -> Iterator[memoryview]:
        buffer = self._connection.buffer
        left = self._size
        while left:
            with named(self._where):
                count = self._answer.readinto(buffer[: min(len(buffer), left)])
            if not count:
                raise StoreUnreachable(f"the store's answer was cut: {self._where}, {left} bytes were to come")
            left -= count
            yield buffer[:count]
        self.whole = not self._connection.will_close(self._answer)

    def cancel(self) -> None:
        """Ends the transfer, from any thread: its reader meets an error."""
        self._connection.shut()


class _Connection(http.client.HTTPConnection):
    """With TLS where a context is given, a connect that keeps its time-out even while a name is looked up, a buffer."""

    def __init__(self, netloc: str, tls: ssl.SSLContext | None, connect_timeout: float, silence: float) -> None:
        host, port = _split(netloc, 443 if tls else 80)
        super().__init__(host, port, timeout=silence)
        if tls:
            self.default_port = 443  # so that the Host header is the one that was signed
        self.netloc, self._tls, self._connect_timeout = netloc, tls, connect_timeout
        self.buffer = memoryview(bytearray(PIECE))

    def connect(self) -> None:
        deadline = time.monotonic() + self._connect_timeout
        last: OSError = TimeoutError(f"{self.host} has no address")
        for family, kind, proto, _, address in _resolve(self.host, self.port, self._connect_timeout):
            made = socket.socket(family, kind, proto)
            try:
                made.settimeout(max(0.1, deadline - time.monotonic()))
                made.connect(address)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.sock = self._tls.wrap_socket(made, server_hostname=self.host) if self._tls else made
                self.sock.settimeout(self.timeout)
            except OSError as error:
                made.close()
                last = error
            else:
                return
        raise last

    def stale(self) -> bool:
        """The server closed it while it was idle, or it says something that nobody asked for."""
        if self.sock is None:
            return True
        self.sock.setblocking(False)
        try:
            waiting = socket.socket.recv(self.sock, 1, socket.MSG_PEEK)
        except BlockingIOError:
            waiting = b"-" if self._tls else None
        except OSError:
            return True
        self.sock.settimeout(self.timeout)
        return waiting == b"" or (waiting is not None and self._tls is None)  # TLS sends records of its own

    def will_close(self, answer: http.client.HTTPResponse) -> bool:
        return answer.will_close or self.sock is None

    def shut(self) -> None:
        if (sock := self.sock) is not None:
            with suppress(OSError):  # not SSLSocket's own, which takes the TLS state away under its reader
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _split(netloc: str, default: int) -> tuple[str, int]:
    parts = urlsplit(f"//{netloc}")
    return parts.hostname or netloc, parts.port or default


def _resolve(host: str, port: int, timeout: float) -> list[tuple[int, int, int, str, tuple[str, int]]]:
    """getaddrinfo, which knows no time-out: it is left behind on a thread of its own when it takes too long."""
    found: list[object] = []

    def ask() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(timeout)
    if not found:
        raise TimeoutError(f"no answer from the name service for {host}")
    if isinstance(found[0], OSError):
        raise found[0]
    return found[0]  # pyright: ignore[reportReturnType]
