"""The long-running form of the node cache: keeps wanted revisions on this node, and tells how that goes.

One loop: look up each wanted revision (a ref may have moved), fill what is not there, evict what nobody wants or holds.
A fill that finds no space evicts all that is neither wanted nor leased and tries once more. /healthz answers while the
process runs, /readyz when every wanted revision is whole, /metrics with what `core/metrics.py` declares for the agent.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from onecopy.core import exposition, metrics
from onecopy.core.errors import NoSpace, OnecopyError, StackError
from onecopy.core.events import Event, Reporter
from onecopy.storage.layout import MANIFEST
from onecopy.storage.store import Store
from onecopy.weights.cache import FillResult, NodeCache
from onecopy.weights.manifest import Manifest

LOOK_EVERY = 30.0
"""Seconds between two looks at refs, space and leases."""
_FIRST_RETRY, _LAST_RETRY = 1.0, 60.0


@dataclass(slots=True)
class _Wanted:
    """One model at a ref or revision. manifest: as last resolved."""

    model: str
    wanted: str
    manifest: Manifest | None = None
    failures: int = 0
    retry_at: float = 0.0
    trouble: str = ""


@dataclass(slots=True)
class _Totals:
    read: Counter[str] = field(default_factory=Counter[str])
    filled: Counter[str] = field(default_factory=Counter[str])
    fills: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    retries: Counter[str] = field(default_factory=Counter[str])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    hedges: int = 0
    evicted: int = 0


class Agent:
    """resolve: (model, ref or revision) → manifest. max_bytes, max_age: of what is not wanted; None keeps it while it fits."""

    def __init__(
        self,
        cache: NodeCache,
        store: Store,
        wanted: Sequence[tuple[str, str]],
        resolve: Callable[[str, str], Manifest],
        *,
        max_bytes: int | None = None,
        max_age: float | None = None,
        look_every: float = LOOK_EVERY,
        report: Reporter,
    ) -> None:
        self._cache, self._store, self._resolve, self._report = cache, store, resolve, report
        self._wanted = [_Wanted(model, name) for model, name in wanted]
        self._max_bytes, self._max_age = max_bytes, max_age
        self._look_every, self._totals = look_every, _Totals()

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set, or an exception that is none of ours (SystemExit by a signal) comes."""
        while not stop.is_set():
            for want in self._wanted:
                if time.monotonic() >= want.retry_at:
                    self._look_after(want)
            self._evict(self._max_bytes, self._max_age)
            now = time.monotonic()
            stop.wait(max(0.0, min([now + self._look_every, *(want.retry_at for want in self._wanted)]) - now))

    @property
    def missing(self) -> list[str]:
        """What is wanted and not whole yet, each with its trouble."""
        return [
            f"{want.model}@{want.wanted}: {want.trouble or 'being fetched'}"
            for want in self._wanted
            if want.manifest is None or not self._whole(want.manifest)
        ]

    def metrics(self) -> str:
        totals, samples = self._totals, list[exposition.Sample]()
        for model in sorted(set(totals.read) | set(totals.filled)):
            read, filled = totals.read[model], totals.filled[model]
            samples += [
                (metrics.AGENT_STORE_READ_BYTES, (model,), read),
                (metrics.AGENT_FILLED_BYTES, (model,), filled),
            ]
            if filled:
                samples.append((metrics.AGENT_AMPLIFICATION, (model,), read / filled))
        samples += [(metrics.AGENT_FILLS, key, count) for key, count in sorted(totals.fills.items())]
        samples += [(metrics.AGENT_FILL_SECONDS, (model,), last) for model, last in sorted(totals.seconds.items())]
        samples += [(metrics.AGENT_RETRIES, (cause,), count) for cause, count in sorted(totals.retries.items())]
        samples += [(metrics.AGENT_HEDGES, (), totals.hedges), (metrics.AGENT_EVICTED_BYTES, (), totals.evicted)]
        samples += [
            (metrics.AGENT_READY, (want.model, want.wanted), float(bool(want.manifest and self._whole(want.manifest))))
            for want in self._wanted
        ]
        for entry in self._cache.list():
            name = (entry.model, entry.revision)
            samples += [
                (metrics.AGENT_CACHE_BYTES, name, entry.bytes),
                (metrics.AGENT_LEASED, name, float(entry.leased)),
            ]
        samples.append((metrics.AGENT_FREE_BYTES, (), shutil.disk_usage(self._cache.root).free))
        return exposition.text(samples)

    def _whole(self, manifest: Manifest) -> bool:
        return (self._cache.root / manifest.model / manifest.revision / MANIFEST).exists()

    def _look_after(self, want: _Wanted) -> None:
        try:
            want.manifest = self._resolve(want.model, want.wanted)
            if not self._whole(want.manifest):
                self._note(want.model, self._fill(want.manifest))
        except OnecopyError as error:
            want.failures += 1
            want.trouble = error.message
            self._totals.fills[(want.model, "failed")] += 1
            wait = min(_LAST_RETRY, _FIRST_RETRY * 2 ** (want.failures - 1))
            want.retry_at = time.monotonic() + wait
            self._report(
                Event("fill", "warning", f"{want.model}@{want.wanted}: {error.message}; again in {wait:.0f} s")
            )
        else:
            want.failures, want.trouble, want.retry_at = 0, "", time.monotonic() + self._look_every

    def _fill(self, manifest: Manifest) -> FillResult:
        try:
            return self._cache.fill(self._store, manifest, report=self._report)
        except NoSpace:
            if not self._evict(0, None):
                raise
            return self._cache.fill(self._store, manifest, report=self._report)

    def _note(self, model: str, result: FillResult) -> None:
        if result.already_there:
            return
        self._totals.read[model] += result.stats.bytes_read
        self._totals.filled[model] += result.bytes_fetched
        self._totals.fills[(model, "done")] += 1
        self._totals.seconds[model] = result.seconds
        self._totals.retries.update(result.stats.retries)
        self._totals.hedges += result.stats.hedges
        self._report(Event("fill", "done", str(result.path), done=result.bytes_fetched, total=result.bytes_fetched))

    def _evict(self, max_bytes: int | None, max_age: float | None) -> bool:
        """Never what is wanted. Without all manifests it is not known what that is, so then nothing goes."""
        if any(want.manifest is None for want in self._wanted):
            return False
        keep = [(want.manifest.model, want.manifest.revision) for want in self._wanted if want.manifest]
        gone = self._cache.evict(max_bytes=max_bytes, max_age=max_age, keep=keep)
        for entry in gone:
            self._totals.evicted += entry.bytes
            self._report(Event("evict", "done", f"{entry.model}@{entry.revision}", done=entry.bytes))
        return bool(gone)


@contextmanager
def serve(agent: Agent, host: str, port: int) -> Iterator[str]:
    """The agent's HTTP endpoints on a thread. Yields the address; port 0 takes a free one. Raises StackError."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/healthz":
                self._send(200, "text/plain", "ok\n")
            elif self.path == "/readyz":
                missing = agent.missing
                self._send(503 if missing else 200, "application/json", json.dumps({"missing": missing}) + "\n")
            elif self.path == "/metrics":
                self._send(200, exposition.CONTENT_TYPE, agent.metrics())
            else:
                self._send(404, "text/plain", "/healthz, /readyz and /metrics are here\n")

        def _send(self, status: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes every two seconds are no news."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise StackError(f"cannot listen on {host}:{port}: {error.strerror}", hint="choose another --port") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="agent-http", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
