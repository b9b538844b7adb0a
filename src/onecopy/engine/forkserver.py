"""Starts vLLM servers: a process that has imported vLLM once and forks a replica in about 2 s instead of 15.

Run by the engine's Python; `launch.py` is its client. One thread, one selector. A connection is one replica: the client
sends {"spawn": …}, gets {"pid": …} and later {"exit": …}; {"signal": n} is passed on. Forking needs
the vLLM that it was proven with, on a CPU; otherwise (`why` says it) replicas are started afresh, over the same protocol.
Nothing outlives this process: it ends with its standard input, replicas carry the parent-death signal, and what is left
of a group is killed when its leader ends, because vLLM's engine process survives a killed API server.
"""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import argparse
import fcntl
import gc
import importlib.util
import json
import os
import random
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from onecopy.engine.lifetime import die_with_parent

ENTRY = "vllm.entrypoints.launchers.api_server.entry"
OLD_ENTRY = "vllm.entrypoints.openai.api_server"
_SCRATCH = "onecopy-engine-"
"""Prefix of the scratch folder in the system's temporary folder."""
_LONGEST_BASE = 40
"""Characters. vLLM puts Unix sockets with a UUID for a name into the scratch folder, and the kernel takes 107 in all."""


@dataclass(slots=True)
class _Replica:
    name: str
    pid: int
    pidfd: int
    connection: socket.socket
    scratch: Path


class Server:
    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            self._listener.bind(str(path))
        finally:
            os.umask(mask)
        self._listener.listen(64)
        self._path = path
        self._scratch, self._lock = _scratch_folder()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(0, selectors.EVENT_READ, self._parent_spoke)
        self._replicas: dict[int, _Replica] = {}
        self._running = True
        self._spawned = 0
        self.why: str | None = "not asked to"
        self.seconds = 0.0

    def run(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # a terminal's Ctrl-C is for the supervisor, which ends us in order
        try:
            while self._running:
                for key, _ in self._selector.select(timeout=1.0):
                    key.data()
        finally:
            for replica in list(self._replicas.values()):
                _signal(replica.pid, signal.SIGKILL)
            self._path.unlink(missing_ok=True)
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _stop(self) -> None:
        self._running = False

    def _parent_spoke(self) -> None:
        if not os.read(0, 4096):
            self._stop()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(connection))

    def _read(self, connection: socket.socket) -> None:
        """One request a message: they are far smaller than a socket's buffer, and the client waits for the answer."""
        try:
            data = connection.recv(1 << 20)
            while data and not data.endswith(b"\n"):
                data += connection.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(connection)
            connection.close()
            return
        for line in data.splitlines():
            request = json.loads(line)
            if "spawn" in request:
                self._spawn(connection, request["spawn"])
            elif "signal" in request:
                for replica in self._replicas.values():
                    if replica.connection is connection:
                        _signal(replica.pid, request["signal"])
            else:
                _send(connection, {"forks": self.why is None, "why": self.why, "seconds": self.seconds})

    def _spawn(self, connection: socket.socket, request: dict[str, Any]) -> None:
        self._spawned += 1
        scratch = self._scratch / str(self._spawned)
        scratch.mkdir(mode=0o700)
        request["env"]["TMPDIR"] = str(scratch)
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._child(request, parent)
        pidfd = os.pidfd_open(pid)
        replica = _Replica(request["name"], pid, pidfd, connection, scratch)
        self._replicas[pid] = replica
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._ended(replica))
        _send(connection, {"pid": pid, "forked": self.why is None})

    def _ended(self, replica: _Replica) -> None:
        # before the leader is reaped, so that its number cannot have become another group's
        _signal(replica.pid, signal.SIGKILL)
        _, status = os.waitpid(replica.pid, 0)
        self._selector.unregister(replica.pidfd)
        os.close(replica.pidfd)
        del self._replicas[replica.pid]
        shutil.rmtree(replica.scratch, ignore_errors=True)
        code = os.waitstatus_to_exitcode(status)
        print(f"{replica.name} (pid {replica.pid}) ended with {code}", flush=True)
        _send(replica.connection, {"exit": code})

    def _child(self, request: dict[str, Any], parent: int) -> NoReturn:
        code = 1
        try:
            die_with_parent(parent)
            os.setsid()
            log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            self._let_go(log, null)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            env: dict[str, str] = request["env"]
            if self.why is not None:
                os.execve(sys.executable, [sys.executable, "-m", entry_module(), *request["argv"]], env)  # noqa: S606
            os.environ.clear()
            os.environ.update(env)
            code = _serve(request["argv"])
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _let_go(self, *descriptors: int) -> None:
        """The server's own descriptors: a child that kept them would hold its locks and its clients' connections."""
        for descriptor in descriptors:
            os.close(descriptor)
        os.close(self._lock)
        self._listener.close()
        for key in list(self._selector.get_map().values()):
            if key.fd > 2:
                with suppress(OSError):
                    os.close(key.fd)
        with suppress(OSError):
            self._selector.close()


def _serve(argv: list[str]) -> int:
    """vLLM's API server in this forked process, its engine process forked as well."""
    import multiprocessing
    from importlib import import_module

    import torch
    from vllm.model_executor.models import registry
    from vllm.utils import system_utils
    from vllm.v1.engine import coordinator, utils

    tempfile.tempdir = None
    random.seed()
    # read from the environment when torch was imported, which was the server's
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch._dynamo.config.disable = os.environ.get("TORCHDYNAMO_DISABLE") == "1"

    def fork_context() -> Any:
        # vLLM insists on spawn for a CPU, which would import everything again
        return multiprocessing.get_context("fork")

    for module in (system_utils, coordinator, utils):
        module.get_mp_context = fork_context
    # vLLM looks at a model's class in a process of its own, to keep CUDA out of this one: at the first start on a machine
    # each replica would import everything again
    registry._run_in_subprocess = lambda look: look()
    forked_by_main = False
    parent = os.getpid()

    def before() -> None:
        nonlocal forked_by_main, parent
        forked_by_main, parent = threading.current_thread() is threading.main_thread(), os.getpid()

    os.register_at_fork(before=before, after_in_child=lambda: die_with_parent(parent) if forked_by_main else None)
    sys.argv = ["vllm", *argv]
    import_module(ENTRY).main()
    return 0


def preload(version: str) -> None:
    """Imports what a replica needs, so that its pages and its time are shared. Raises RuntimeError when unsuitable."""
    from importlib import import_module

    import vllm

    if vllm.__version__.partition("+")[0] != version:
        raise RuntimeError(f"this is vLLM {vllm.__version__}, forking was proven with {version}")
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        raise RuntimeError("forking was proven on CPUs only")
    for name in (
        ENTRY,
        "vllm.entrypoints.launchers.cli_args",
        "vllm.v1.engine.async_llm",
        "vllm.v1.engine.core",
        "vllm.v1.engine.coordinator",
        "vllm.v1.executor.uniproc_executor",
        "vllm.v1.worker.cpu_worker",
        "vllm.model_executor.models.llama",
        "onecopy.engine.loader",
    ):
        import_module(name)
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise RuntimeError(f"{threads} threads run after the import: a fork would lose them")
    gc.collect()
    gc.freeze()  # collections in a child would write into every shared page


def entry_module() -> str:
    """vLLM's server module: its place differs between versions."""
    spec = importlib.util.find_spec("vllm")
    places = spec.submodule_search_locations if spec else None
    new = any((Path(place) / "entrypoints/launchers/api_server/entry.py").exists() for place in places or ())
    return ENTRY if new else OLD_ENTRY


def _scratch_folder() -> tuple[Path, int]:
    """A folder of our own, and the lock that says it is in use; folders of servers that were killed are removed."""
    base = Path(tempfile.gettempdir())
    if len(str(base)) > _LONGEST_BASE:
        base = Path("/tmp")  # noqa: S108 - the folder made in it is our own, and nobody else's to enter
    for old in base.glob(f"{_SCRATCH}*/lock"):
        with suppress(OSError):
            if old.stat().st_uid == os.geteuid():
                descriptor = os.open(old, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(old.parent, ignore_errors=True)
                finally:
                    os.close(descriptor)
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=base))
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return folder, descriptor


def _signal(pid: int, number: int) -> None:
    """SIGKILL reaches the whole group; anything milder its leader alone, which ends the others in order."""
    with suppress(ProcessLookupError, PermissionError):
        if number == signal.SIGKILL:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):  # the client has gone: its replicas end with our standard input
        connection.sendall(json.dumps(message).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument(
        "--preload", metavar="VERSION", help="vLLM version that may be forked; without it, start afresh"
    )
    options = parser.parse_args()
    server = Server(options.socket)
    if options.preload:
        begun = time.monotonic()
        try:
            preload(options.preload)
            server.why = None
        except Exception as error:
            server.why = f"{type(error).__name__}: {error}"
        server.seconds = time.monotonic() - begun
        print(f"imports took {server.seconds:.1f} s; forks: {server.why or 'yes'}", flush=True)
    server.run()


if __name__ == "__main__":
    main()
