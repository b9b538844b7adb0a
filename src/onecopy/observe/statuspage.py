"""The status page and the metrics of a running stack over loopback HTTP. Standard library, no state of its own.

GET /              the page            GET /live      a snapshot a second, as server-sent events
GET /snapshot.json one snapshot        GET /metrics   Prometheus: the stack
GET /targets.json  the replicas, for Prometheus' HTTP discovery
POST /ask          {"prompt": …} → the answer as server-sent events, the last one naming the replica that gave it

Only calls that name this server as their host are answered, so that no other web page can reach it by a name of its own.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from onecopy.core import exposition
from onecopy.core.errors import OnecopyError, UsageError
from onecopy.observe import vllm
from onecopy.observe.metrics import samples
from onecopy.observe.snapshot import Snapshot, Source

INTERVAL = 1.0
"""Seconds between two snapshots. Every reader gets the same one: ten open pages ask the replicas no more than one does."""
LONGEST_PROMPT = 8000
ANSWER_TOKENS = 256
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class StatusServer:
    """Serves until closed. port 0 takes a free one. Raises UsageError when the port is taken."""

    def __init__(self, source: Source, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._source, self._lock = source, threading.Lock()
        self._taken, self._at = Snapshot("absent"), -INTERVAL
        server = self
        self.closing = threading.Event()

        class Handler(_Handler):
            status = server

        try:
            self._http = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise UsageError(f"port {port} on {host}: {error.strerror}", hint="--port 0 takes a free one") from error
        self._http.daemon_threads = True
        self.address = f"{host}:{self._http.server_address[1]}"
        self.url = f"http://{self.address}/"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def snapshot(self) -> Snapshot:
        """At most INTERVAL old. A home that cannot be read is a snapshot that says so."""
        with self._lock:
            if time.monotonic() - self._at >= INTERVAL * 0.9:
                try:
                    self._taken = self._source()
                except OnecopyError as error:
                    self._taken = Snapshot("unreadable", error=error.message, hint=error.hint)
                except (OSError, ValueError, KeyError) as error:  # a file that vanished, or is not as it was left
                    self._taken = Snapshot("unreadable", error=f"{type(error).__name__}: {error}")
                self._at = time.monotonic()
            return self._taken

    def wait(self) -> None:
        """Until closed; an interrupt gets through."""
        while not self.closing.wait(1):
            pass

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    status: StatusServer
    protocol_version = "HTTP/1.1"
    server_version = "onecopy"
    sys_version = ""

    def do_GET(self) -> None:
        if not self._allowed():
            return
        match self.path.partition("?")[0]:
            case "/":
                page = resources.files("onecopy.observe").joinpath("data/status.html").read_bytes()
                self._send(200, "text/html; charset=utf-8", page)
            case "/snapshot.json":
                self._send(200, "application/json", json.dumps(self.status.snapshot().as_dict()).encode())
            case "/metrics":
                self._send(200, exposition.CONTENT_TYPE, exposition.text(samples(self.status.snapshot())).encode())
            case "/targets.json":
                self._send(200, "application/json", json.dumps(_targets(self.status.snapshot())).encode())
            case "/live":
                self._stream(self._live())
            case _:
                self._send(404, "text/plain", b"there is no such page\n")

    def do_POST(self) -> None:
        if not self._allowed():
            return
        if self.path != "/ask" or self.headers.get("Content-Type") != "application/json":
            self._send(404, "text/plain", b"POST /ask takes JSON\n")
            return
        try:
            prompt = str(
                json.loads(self.rfile.read(max(0, min(int(self.headers["Content-Length"]), 1 << 20))))["prompt"]
            )
        except (ValueError, TypeError, KeyError):
            self._send(400, "text/plain", b'the body is not {"prompt": "..."}\n')
            return
        self._stream(self._ask(prompt[:LONGEST_PROMPT]))

    def _allowed(self) -> bool:
        """This server's own name as host, and no other page as origin."""
        names = {self.status.address, self.status.address.replace("127.0.0.1", "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in names and (origin is None or urlsplit(origin).netloc in names):
            return True
        self._send(403, "text/plain", b"this page answers only under its own address\n")
        return False

    def _live(self) -> Generator[dict[str, Any], None, None]:
        while not self.status.closing.is_set():
            yield {"data": self.status.snapshot().as_dict()}
            self.status.closing.wait(INTERVAL)

    def _ask(self, prompt: str) -> Generator[dict[str, Any], None, None]:
        before = self.status.snapshot()
        if before.endpoint is None or before.model is None or before.state not in ("ready", "degraded"):
            yield {"event": "failed", "data": f"the stack is {before.state}; it cannot be asked yet"}
            return
        served = {r.name: vllm.read(r.endpoint) for r in before.replicas}
        url = urlsplit(before.endpoint)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=120)
        body = {
            "model": before.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": ANSWER_TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        begun = time.monotonic()
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                text = response.read(400).decode(errors="replace")
                yield {"event": "failed", "data": f"the router answered {response.status}: {text}"}
                return
            first: float | None = None
            tokens = 0
            for raw in response:
                line = raw.strip()
                if not line.startswith(b"data: ") or line == b"data: [DONE]":
                    continue
                chunk: dict[str, Any] = json.loads(line[6:])
                if chunk.get("usage"):
                    tokens = chunk["usage"].get("completion_tokens", 0)
                for choice in chunk.get("choices", ()):
                    delta: dict[str, Any] = choice.get("delta") or {}
                    if text := delta.get("content"):
                        first = first or time.monotonic()
                        yield {"data": text}
        except (OSError, http.client.HTTPException, ValueError) as error:
            yield {"event": "failed", "data": f"the answer was cut off: {error or type(error).__name__}"}
            return
        finally:
            connection.close()
        ended = time.monotonic()
        yield {
            "event": "replica",
            "data": {
                "names": self._who_served(before, served),
                "seconds_to_first": None if first is None else round(first - begun, 3),
                "tokens": tokens,
                "tokens_per_second": None
                if first is None or tokens < 2 or ended <= first
                else round((tokens - 1) / (ended - first), 1),
            },
        }

    def _who_served(self, before: Snapshot, served: dict[str, vllm.Counters | None]) -> list[str]:
        """Those whose own count of finished requests grew meanwhile: one, unless others asked too."""
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            grown: list[str] = []
            for replica in before.replicas:
                then, now = served[replica.name], vllm.read(replica.endpoint)
                if then is not None and now is not None and now.requests > then.requests:
                    grown.append(replica.name)
            if grown:
                return grown
            time.sleep(0.1)
        return []

    def _send(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        for name, value in _headers(kind).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if code >= 400:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, events: Generator[dict[str, Any], None, None]) -> None:
        self.send_response(200)
        for name, value in _headers("text/event-stream").items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(ConnectionError), contextlib.closing(events):
            for event in events:
                name = f"event: {event['event']}\n" if "event" in event else ""
                self.wfile.write(f"{name}data: {json.dumps(event['data'])}\n\n".encode())
                self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: the page asks every second."""


def _targets(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Each replica under its name, as `http_sd_configs` wants it."""
    return [
        {"targets": [urlsplit(replica.endpoint).netloc], "labels": {"replica": replica.name}}
        for replica in snapshot.replicas
    ]


def _headers(kind: str) -> dict[str, str]:
    return {
        "Content-Type": kind,
        "Cache-Control": "no-store",
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
