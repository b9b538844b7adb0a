"""What the commands do to a local stack: start it, follow it, look at it, stop it, and clear up after a crash."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from onecopy.config.schema import StackConfig
from onecopy.core import environment
from onecopy.core.errors import StackError
from onecopy.core.events import Event, Reporter, silent
from onecopy.targets.local import preflight, processes
from onecopy.targets.local.events import EventReader
from onecopy.targets.local.home import Home, State, write_atomically

STOP_TIMEOUT = 45.0
"""Seconds that `down` waits for an orderly stop: replicas are given 10 s to end their requests, in parallel."""


def local_settings(config: StackConfig) -> dict[str, Any]:
    """What a local stack takes from its configuration: another target's sections may change beside it."""
    return config.model_dump(mode="json", exclude={"target", "kubernetes", "aws"})


def settings_digest(config: StackConfig) -> str:
    return hashlib.sha256(json.dumps(local_settings(config)).encode()).hexdigest()[:16]


class Stack:
    """A local stack that is up, or on its way. `pipe` is held by a foreground command: when it closes, the stack stops."""

    def __init__(self, home: Home, pid: int, pipe: int | None) -> None:
        self.home, self.pid, self._pipe = home, pid, pipe
        self._events = EventReader(home.events)

    @property
    def mine(self) -> bool:
        """Whether the stack lives only as long as this command."""
        return self._pipe is not None

    def wait_ready(self, report: Reporter = silent) -> State:
        """Follows the events until the stack is ready. Raises the error that stopped it."""
        while True:
            self._drain(report)
            state = self.home.read_state()
            if state is not None and state.supervisor is not None and state.supervisor.pid == self.pid:
                if state.state in ("ready", "degraded"):
                    self._drain(report)
                    return state
                if state.state in ("failed", "stopped"):
                    self._drain(report)
                    raise StackError(state.error or "the stack was stopped", hint=state.hint)
            elif processes.started_at(self.pid) is None:
                raise StackError(
                    "the supervisor ended before the stack was ready",
                    hint=f"see {self.home.logs / 'supervisor.log'} and `onecopy status`, then run the command again",
                )
            time.sleep(0.05)

    def follow(self, report: Reporter) -> None:
        """Until the stack ends or the caller is interrupted."""
        while self.home.is_owned():
            self._drain(report)
            time.sleep(0.2)
        self._drain(report)

    def _drain(self, report: Reporter) -> None:
        for event in self._events.read():
            report(event)

    def __del__(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)


def start(home: Home, config: StackConfig, *, foreground: bool, report: Reporter = silent) -> Stack:
    """Starts the stack, or joins the one that runs with the same settings. Raises before anything is changed."""
    state = recover(home, report)
    digest = settings_digest(config)
    if state is not None and home.is_owned() and state.supervisor is not None:
        if state.settings != digest:
            raise StackError(
                f"a stack with other settings runs already in {home.root} (model {state.model or 'on its way'}, "
                f"{len(state.replicas)} replicas, {state.endpoint or 'no endpoint yet'})",
                hint="`onecopy apply` restarts it with these, or use another --home",
            )
        report(Event("stack", "skipped", "runs already with these settings"))
        return Stack(home, state.supervisor.pid, None)
    preflight.check(home, config)
    home.prepare()
    home.events.unlink(missing_ok=True)
    write_atomically(home.settings, config.model_dump_json(indent=1))
    read_end, write_end = os.pipe() if foreground else (None, None)
    with (home.logs / "supervisor.log").open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "onecopy.targets.local.supervisor",
                str(home.root),
                *(["--foreground"] if foreground else []),
            ],
            stdin=read_end if read_end is not None else subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=environment.child(PYTHONDONTWRITEBYTECODE=None),
        )
    if read_end is not None:
        os.close(read_end)
    process.returncode = 0  # it outlives this command on purpose: no ResourceWarning, no wait
    return Stack(home, process.pid, write_end)


def recover(home: Home, report: Reporter = silent) -> State | None:
    """Puts right what a crash left: ends orphans, removes shared memory. Returns the state as it now stands."""
    state = home.read_state()
    if state is None or home.is_owned() or state.state in ("stopped", "failed"):
        return state
    ended = processes.end(state.processes)
    home.clear_volatile()
    found = ", ".join(process.name for process in ended) or "no process of it was left"
    report(Event("recover", "warning", f"the last stack ended without `onecopy down`; cleared up after it ({found})"))
    state = state.model_copy(update={"state": "stopped", "processes": [], "replicas": [], "supervisor": None})
    home.write_state(state)
    return state


def stop(home: Home, *, purge: bool = False, report: Reporter = silent) -> bool:
    """Ends the stack in order; with `purge` removes its data too. Returns whether anything ran. Idempotent."""
    try:
        state = recover(home, report)
    except StackError:
        if not purge or home.is_owned():
            raise
        state = None
    ran = home.is_owned()
    if ran and state is not None and state.supervisor is not None:
        _signal_and_wait(home, state, report)
    home.clear_volatile()
    if purge:
        _purge(home)
    return ran


def _signal_and_wait(home: Home, state: State, report: Reporter) -> None:
    assert state.supervisor is not None
    events = EventReader(home.events)
    for _ in events.read():  # what happened before is not news
        pass
    if processes.alive(state.supervisor):
        os.kill(state.supervisor.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT
    while home.is_owned() or processes.alive(state.supervisor):
        for event in events.read():
            report(event)
        if time.monotonic() > deadline:
            report(Event("stop", "warning", f"not stopped within {STOP_TIMEOUT:.0f} s; ending it by force"))
            latest = home.read_state() or state
            processes.end([state.supervisor], timeout=0)
            processes.end(latest.processes, timeout=2)
            while home.is_owned() and time.monotonic() < deadline + 5:
                time.sleep(0.05)
            recover(home, report)
            return
        time.sleep(0.05)
    for event in events.read():
        report(event)


def _purge(home: Home) -> None:
    if not home.root.exists():
        return
    if home.is_owned():
        raise StackError(f"{home.root} is still in use", hint="`onecopy down` first")
    known = {"lock", "state.json", "settings.json", "store", "sample", "cache", "logs"}
    if not known & {entry.name for entry in home.root.iterdir()}:
        raise StackError(f"{home.root} is no state folder of onecopy; nothing was removed", hint="check --home")
    for entry in home.root.iterdir():
        _remove(entry)
    home.root.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for entry in path.rglob("*"):
            if entry.is_dir() and not entry.is_symlink():
                entry.chmod(0o700)  # published revisions are read-only
        path.chmod(0o700)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
