"""The steps from nothing to a first answer. The engine's import, which is most of the wait, starts first and beside the rest.

engine   environment (once), fork server: imports vLLM           ─┐
store    environment (once), S3 server, publish, node cache fill ─┴─▶ replicas ─▶ router ─▶ one real question
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from onecopy.config.schema import StackConfig
from onecopy.core.errors import StackError
from onecopy.core.events import Event, Reporter
from onecopy.engine import memory, sample
from onecopy.engine.environments import ensure_engine, ensure_tools, find_tool, inspect_engine
from onecopy.registry.publish import publish
from onecopy.registry.sources import Source, default_name, open_source
from onecopy.registry.sources.folder import FolderSource
from onecopy.storage.devserver import DevServer
from onecopy.storage.objectstore import check_store, open_configured, open_store
from onecopy.storage.store import Store
from onecopy.targets.local import processes
from onecopy.targets.local.home import QUESTION, Home, State
from onecopy.targets.local.placement import place
from onecopy.targets.local.replicas import EngineProcess, Fleet, Stopped
from onecopy.targets.local.router import Router, request, wait_for
from onecopy.weights.cache import NodeCache
from onecopy.weights.manifest import Manifest


class Bringup:
    """Everything that runs, once `run` has returned; `close` ends it in order, whatever was reached."""

    def __init__(
        self, home: Home, config: StackConfig, state: State, report: Reporter, stopping: threading.Event
    ) -> None:
        self.home, self.config, self.state, self.report, self.stopping = home, config, state, report, stopping
        self.model = config.models[0]
        self.server: DevServer | None = None
        self.router: Router | None = None
        self.fleet: Fleet | None = None
        self.cache: NodeCache | None = None
        self._engine_process: EngineProcess | None = None
        # Children die with the thread that started them (PR_SET_PDEATHSIG): this one lives as long as the supervisor
        self._engine_thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._begun = home.settings.stat().st_mtime

    def run(self) -> None:
        self.home.run.mkdir(mode=0o700, exist_ok=True)
        engine = self._engine_thread.submit(self._prepare_engine)
        with self.phase("tools"):
            tools = ensure_tools(self.report)
        with self.phase("store"):
            store = self._open_store(tools)
        with self.phase("publish"):
            manifest = self._publish(store, tools)
        with self.phase("fill"):
            cached = self._fill(store, manifest, forked=self.config.engine.fork_server)
        self.router = Router(
            find_tool(tools, "vllm-router"),
            self.config.router.host,
            self.config.router.port,
            self.home.logs / "router.log",
        )
        self.router.start()
        self.state.endpoint = self.router.endpoint
        begun = time.monotonic()
        self.fleet = self._engine_ready(engine, cached, manifest)
        self.state.phases["engine_wait"] = round(time.monotonic() - begun, 3)
        self.remember()
        with self.phase("replicas"):
            self.router.wait_ready()
            self.fleet.start_all(self.router, self.stopping)
        with self.phase("answer"):
            self.state.answer = self._ask()
        self.state.phases["total"] = round(time.time() - self._begun, 3)
        self.measure()
        self.state.state = "ready"
        self.remember()
        self.report(Event("stack", "done", f"ready at {self.state.endpoint}"))

    def measure(self) -> None:
        """Resident bytes of the weights in all replicas together: each shared page is counted once (PSS)."""
        if self.fleet is None or self.state.cache is None:
            return
        self.state.weight_bytes_resident = memory.weights(self.fleet.leaders(), [Path(self.state.cache)]).pss

    def close(self) -> None:
        """Router first, so that no request meets a dying replica; the store last."""
        if self.router is not None:
            self.report(Event("router", "done", "stopping"))
            self.router.stop()
        if self.fleet is not None:
            self.report(Event("replicas", "done", "stopping"))
            self.fleet.stop()
        elif self._engine_process is not None:
            self._engine_process.server.stop()
        if self.server is not None:
            self.report(Event("store", "done", "stopping"))
            self.server.stop()
        processes.end_descendants()
        self._engine_thread.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begun = time.monotonic()
        self.report(Event(name, "started"))
        yield
        self.state.phases[name] = round(time.monotonic() - begun, 3)
        self.report(Event(name, "done", f"{self.state.phases[name]:.1f} s"))
        self.remember()

    def known_processes(self) -> list[tuple[str, int]]:
        """(name, pid) of every child that lives."""
        known = [
            ("store", self.server.pid if self.server else None),
            ("router", self.router.pid if self.router else None),
            *(self.fleet.known_processes() if self.fleet else ()),
        ]
        return [(name, pid) for name, pid in known if pid]

    def remember(self) -> None:
        """Writes the state, with every child's pid, so that the next command can clear up after a crash."""
        if self.fleet is not None:
            self.state.replicas = [member.status for member in self.fleet.members]
        self.state.processes = [processes.record(name, pid) for name, pid in self.known_processes()]
        self.home.write_state(self.state)

    def _prepare_engine(self) -> EngineProcess:
        begun = time.monotonic()
        engine = inspect_engine(ensure_engine(self.report, self.config.engine.python))
        self.report(Event("engine", "started", f"importing vLLM {engine.vllm}"))
        process = EngineProcess(engine, self.home, fork=self.config.engine.fork_server, report=self.report)
        self._engine_process = process
        process.wait()
        self.state.phases["engine"] = round(time.monotonic() - begun, 3)
        self.report(Event("engine", "done", f"vLLM {engine.vllm} imported"))
        return process

    def _open_store(self, tools: Path) -> Store:
        store_config = self.config.store
        if store_config.uri:
            store = open_configured(store_config)
        else:
            access_key, secret = self.home.credentials()
            self.server = DevServer(
                self.home.store,
                log=self.home.logs / "store.log",
                access_key=access_key,
                secret_key=secret,
                bucket="onecopy",
                binary=find_tool(tools, "weed"),
            )
            self.server.start()
            store = open_store("s3://onecopy/models", self.server.options)
        check_store(store)
        self.state.store = str(store.uri)
        self.remember()
        return store

    def _publish(self, store: Store, tools: Path) -> Manifest:
        source = self.model.source
        name = self.model.name or default_name(source)
        if source == sample.SOURCE:
            folder = sample.write_sample(self.home.sample / sample.NAME, tools / "python", self.report)
            opened: Source = FolderSource(folder, uri=sample.SOURCE)
        else:
            opened = open_source(source)
        try:
            result = publish(opened, store, name, ref=self.model.revision, report=self.report)
        finally:
            opened.close()
        manifest = result.manifest
        self.state.model, self.state.revision = manifest.model, manifest.revision
        self.state.checkpoint_bytes = manifest.total_bytes
        self.state.private_copies_bytes = manifest.total_bytes * self.model.replicas
        return manifest

    def _fill(self, store: Store, manifest: Manifest, *, forked: bool) -> Path:
        placement = place(
            self.home,
            checkpoint_bytes=manifest.total_bytes,
            replicas=self.model.replicas,
            kv_cache_bytes=self.model.kv_cache_bytes,
            fork_server=forked,
            headroom=self.config.cache.headroom,
            cache_dir=self.config.cache.dir,
        )
        self.report(Event("fill", "progress", f"node cache {placement.note}: {placement.cache}"))
        self.cache = NodeCache(placement.cache, headroom=self.config.cache.headroom)
        result = self.cache.fill(store, manifest, report=self.report)
        self.state.cache = str(placement.cache)
        self.state.store_bytes_read = result.bytes_fetched
        return result.path

    def _engine_ready(self, engine: Future[EngineProcess], cached: Path, manifest: Manifest) -> Fleet:
        while not engine.done():
            if self.stopping.wait(0.05):
                raise Stopped
        return Fleet(engine.result(), cached, manifest.model, self.model, self.home, self.config.engine, self.report)

    def _ask(self) -> str:
        assert self.router is not None
        body = {
            "model": self.state.model,
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 48,
            "temperature": 0,
        }
        answers: list[str] = []

        def asked() -> bool:
            assert self.router is not None
            got = request("POST", self.router.host, self.router.port, "/v1/chat/completions", timeout=120, body=body)
            if got is None or got[0] in (502, 503):
                return False
            if got[0] != 200:
                raise StackError(f"the first question got {got[0]}: {got[1][:300].decode(errors='replace')}",
                                 hint="see `onecopy logs replica-0`")  # fmt: skip
            answers.append(json.loads(got[1])["choices"][0]["message"]["content"].strip())
            return True

        wait_for("a first answer through the router", asked, timeout=150, hint="see `onecopy logs replica-0`")
        return answers[0]
