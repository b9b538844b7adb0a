"""The replicas of one model: started from the engine's fork server (or plainly), watched, started again."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from onecopy.config.schema import EngineConfig, ModelConfig
from onecopy.core.events import Event, Reporter
from onecopy.engine.environments import Engine
from onecopy.engine.launch import EngineSpec, ForkServer, Replica, explain, replica_argv, replica_env
from onecopy.targets.local import processes
from onecopy.targets.local.home import Home, ReplicaStatus
from onecopy.targets.local.router import Router, request

BACKOFF = (0.0, 1.0, 2.0, 5.0, 10.0)
"""Seconds before each new start; a replica that has served for STEADY begins anew at the first."""
STEADY = 120.0
HEALTH_FAILURES = 3
"""Unanswered health calls, one a second, before a live process counts as hung."""


class Stopped(Exception):
    """The stack was asked to stop while it came up."""


class EngineProcess:
    """A Python with vLLM, and the process in it that starts replicas: by a fork of itself, or afresh."""

    def __init__(self, engine: Engine, home: Home, *, fork: bool, report: Reporter) -> None:
        self.engine, self._home, self._fork, self._report = engine, home, fork, report
        self.server = self._start()

    def _start(self) -> ForkServer:
        socket, log = self._home.run / "engine.sock", self._home.logs / "engine.log"
        return ForkServer.start(self.engine.python, socket, log, preload=self._fork)

    def wait(self) -> None:
        """Until vLLM is imported. Says so when replicas cannot be forked: they start afresh then, each by itself."""
        forks, why = self.server.forks()
        if self._fork and not forks:
            self._report(Event("engine", "warning", f"no fork server ({why}); each replica imports vLLM itself"))

    def spawn(self, name: str, argv: list[str], env: dict[str, str], log: Path) -> Replica:
        if self.server.poll() is not None:
            self._report(Event("engine", "warning", "the fork server ended; starting it again"))
            self.server = self._start()
        return self.server.spawn(name, argv, env, log)


@dataclass
class Member:
    """One replica's place: it outlives the processes that fill it."""

    status: ReplicaStatus
    port: int
    replica: Replica | None = None
    started: float = 0.0
    ready_at: float | None = None
    failures: int = 0
    missed: int = 0
    retry_at: float | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Fleet:
    def __init__(
        self,
        engine: EngineProcess,
        cached: Path,
        served_name: str,
        model: ModelConfig,
        home: Home,
        config: EngineConfig,
        report: Reporter,
    ) -> None:
        self.engine, self.home, self.config, self.report = engine, home, config, report
        self._spec = EngineSpec(
            engine=engine.engine,
            model=cached,
            served_name=served_name,
            replicas=model.replicas,
            max_model_len=model.max_model_len,
            kv_cache_bytes=model.kv_cache_bytes,
            engine_args=model.engine_args,
            reports=home.root / "reports",
        )
        self.members: list[Member] = []
        for index in range(model.replicas):
            port = processes.free_port()
            status = ReplicaStatus(name=f"replica-{index}", endpoint=f"http://127.0.0.1:{port}")
            self.members.append(Member(status, port))

    def start_all(self, router: Router, stopping: threading.Event) -> None:
        """Starts every replica and adds each to the router as it answers. Raises EngineError when the first cannot."""
        for member in self.members:
            self.start(member)
        deadline = time.monotonic() + self.config.start_timeout
        while waiting := [member for member in self.members if member.status.state != "ready"]:
            if stopping.wait(0.05):
                raise Stopped
            for member in waiting:
                if self.answers(member):
                    self.admit(member, router)
                elif member.replica is not None and (code := member.replica.poll()) is not None:
                    raise explain(member.replica, f"ended with {code} before it answered")
                elif member.replica is not None and time.monotonic() > deadline:
                    raise explain(member.replica, f"did not answer within {self.config.start_timeout:.0f} s")

    def start(self, member: Member) -> None:
        argv, env = replica_argv(self._spec, member.port), replica_env(self._spec)
        member.started, member.ready_at, member.missed, member.retry_at = time.monotonic(), None, 0, None
        member.replica = self.engine.spawn(member.status.name, argv, env, self.log(member))
        member.status.pid = member.replica.pid
        self.report(Event(member.status.name, "started", f"pid {member.replica.pid}, {member.status.endpoint}"))

    def answers(self, member: Member) -> bool:
        got = request("GET", "127.0.0.1", member.port, "/health", timeout=2)
        return got is not None and got[0] == 200

    def admit(self, member: Member, router: Router) -> None:
        router.add(member.status.endpoint)
        member.ready_at = time.monotonic()
        member.status.state = "ready"
        member.status.ready_seconds = round(member.ready_at - member.started, 2)
        member.status.error = None
        self.report(Event(member.status.name, "done", f"ready in {member.status.ready_seconds:.1f} s"))

    def expel(self, member: Member, router: Router, why: str) -> None:
        """Takes a dead or hung replica out of the router, ends its process group, and plans its return."""
        router.remove(member.status.endpoint)
        if member.replica is not None:
            member.replica.stop(timeout=0)
        served = time.monotonic() - member.ready_at if member.ready_at is not None else 0.0
        member.failures = 1 if served > STEADY else member.failures + 1
        member.status.error, member.status.pid, member.replica = why, None, None
        if member.failures > len(BACKOFF):
            member.status.state = "failed"
            self.report(Event(member.status.name, "failed", f"{why}; given up after {len(BACKOFF)} starts"))
            return
        member.status.state = "restarting"
        member.status.restarts += 1
        member.retry_at = time.monotonic() + BACKOFF[member.failures - 1]
        self.report(Event(member.status.name, "warning", f"{why}; starting it again"))

    def leaders(self) -> list[int]:
        """Pids that lead the live replicas' process groups."""
        return [member.replica.pid for member in self.members if member.replica is not None]

    def known_processes(self) -> list[tuple[str, int | None]]:
        return [
            ("fork server", self.engine.server.pid),
            *((member.status.name, member.status.pid) for member in self.members),
        ]

    def log(self, member: Member) -> Path:
        return self.home.logs / f"{member.status.name}.log"

    def stop(self) -> None:
        """All at once: each is given ten seconds to end its requests."""
        threads = [
            threading.Thread(target=member.replica.stop, kwargs={"timeout": 10})
            for member in self.members
            if member.replica is not None
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.engine.server.stop()
