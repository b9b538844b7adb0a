"""The client of the fork server: starts, watches and ends vLLM servers. Standard library only.

with ForkServer.start(engine.python, run / "engine.sock", logs / "engine.log", cpu=True) as server:
    replica = server.spawn("replica-0", replica_argv(spec, port), replica_env(spec), logs / "replica-0.log")
    wait_ready(replica, f"http://127.0.0.1:{port}", timeout=300)
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from onecopy.core.errors import EngineError
from onecopy.core.redact import redact
from onecopy.engine.environments import VLLM_VERSION, Engine, engine_env

UNIPROC = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""The class path, not `uni`: on a CPU vLLM turns `uni` into a third process, 7 s and 420 MB more."""
CPU_KV_CACHE = 128 << 20
"""Bytes: about 5 800 tokens of a 135 M model, 1 000 of an 8 B one. vLLM writes zeros to all of it at the start."""
CPU_MAX_SEQS = 32
_EXECUTOR_ARGS = re.compile(
    r"--(tensor-parallel-size|pipeline-parallel-size|distributed-executor-backend)\b|-tp\b|-pp\b"
)
_COMPILE_ARGS = re.compile(r"--(no-enforce-eager|compilation-config)\b|-O|-cc")


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What a replica serves and how.

    model: folder of a published revision, or its address in a store. served_name: what clients ask for. replicas: how many share this machine's
    cores. max_model_len: tokens; None takes what the KV cache holds. kv_cache_bytes: of one replica. engine_args: further
    arguments of `vllm serve`, which win over ours. loader: `--model-loader-extra-config`. reports: folder for what each
    load did.
    """

    engine: Engine
    model: Path | str
    served_name: str
    replicas: int = 1
    max_model_len: int | None = None
    kv_cache_bytes: int | None = None
    engine_args: tuple[str, ...] = ()
    load_format: str = "onecopy"
    loader: Mapping[str, Any] = field(default_factory=dict[str, Any])
    reports: Path | None = None


def replica_argv(spec: EngineSpec, port: int, host: str = "127.0.0.1") -> list[str]:
    """Arguments of vLLM's API server."""
    argv = ["--model", str(spec.model), "--served-model-name", spec.served_name, "--host", host, "--port", str(port)]
    argv += ["--load-format", spec.load_format]
    if spec.loader:
        argv += ["--model-loader-extra-config", json.dumps(dict(spec.loader))]
    if spec.max_model_len is not None or spec.engine.cpu:
        argv += ["--max-model-len", str(spec.max_model_len or "auto")]
    kv_cache = spec.kv_cache_bytes or (CPU_KV_CACHE if spec.engine.cpu else None)
    if kv_cache is not None:
        argv += ["--kv-cache-memory-bytes", str(kv_cache)]
    if spec.engine.cpu:
        argv += ["--dtype", "bfloat16", "--enforce-eager", "--max-num-seqs", str(CPU_MAX_SEQS)]
        if not any(_EXECUTOR_ARGS.match(argument) for argument in spec.engine_args):
            argv += ["--distributed-executor-backend", UNIPROC]
    return [*argv, *spec.engine_args]


def replica_env(spec: EngineSpec, **changes: str) -> dict[str, str]:
    """Environment of a replica: offline, our plugin importable, its share of the cores."""
    settings: dict[str, str | None] = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "ONECOPY_DIE_WITH_PARENT": "1",
        "ONECOPY_LOAD_REPORTS": str(spec.reports) if spec.reports else None,
    }
    if spec.engine.cpu:
        # one core less than its share: the API server needs some, and threads that wait for each other spin; on a busy
        # machine two threads on two cores decoded at 3 tokens/s where one did 30
        cores = max(1, len(os.sched_getaffinity(0)) // spec.replicas - 1)
        # left to the scheduler: vLLM's own binding puts every replica's first thread on core 0
        settings |= {"OMP_NUM_THREADS": str(cores), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        if not any(_COMPILE_ARGS.match(argument) for argument in spec.engine_args):
            # even an eager vLLM compiles a helper at the first request for log probabilities: 12 s for nothing
            settings["TORCHDYNAMO_DISABLE"] = "1"
    return engine_env(**settings, **changes)


class Replica:
    """One vLLM server and its processes. pid leads their process group. forked: not started afresh."""

    def __init__(
        self, name: str, pid: int, forked: bool, log: Path, connection: socket.socket, buffer: bytes = b""
    ) -> None:
        self.name, self.pid, self.forked, self.log = name, pid, forked, log
        self.started = time.monotonic()
        self._connection, self._buffer = connection, buffer
        self._code: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs. The whole group has ended when there is one."""
        return self._wait(0.0)

    def stop(self, timeout: float = 10.0) -> int:
        """Asks it to end, and kills the whole group after `timeout` seconds. Returns the exit code. May be called twice."""
        self.signal(signal.SIGTERM)
        code = self._wait(timeout)
        if code is None:
            self.signal(signal.SIGKILL)
            code = self._wait(30.0)
        if code is None:
            raise EngineError(f"{self.name} (pid {self.pid}) does not end", hint=f"see {self.log}")
        return code

    def signal(self, number: int) -> None:
        """SIGKILL ends the whole group at once; another signal goes to the API server alone."""
        if self._code is None:
            with suppress(OSError):
                self._connection.sendall(json.dumps({"signal": int(number)}).encode() + b"\n")

    def _wait(self, timeout: float) -> int | None:
        deadline = time.monotonic() + timeout
        while self._code is None and not self._buffer.endswith(b"\n"):
            self._connection.settimeout(max(0.0, deadline - time.monotonic()))
            try:
                data = self._connection.recv(4096)
            except (TimeoutError, BlockingIOError):
                return None
            except OSError:
                data = b""
            self._buffer += data
            if not data:
                self._code = -signal.SIGKILL  # the fork server was killed, and its replicas with it
        if self._code is None:
            self._code = int(json.loads(self._buffer)["exit"])
        self._connection.close()
        return self._code


class ForkServer:
    """A running fork server. `start` returns at once; the first `spawn` or `forks` waits for its imports."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
        self._process, self._path, self.log = process, path, log
        self.pid = process.pid

    @classmethod
    def start(cls, python: Path, path: Path, log: Path, *, preload: bool = True, threads: int = 1) -> Self:
        """path: where its socket is made (0600). preload: import vLLM once and fork; False starts each replica afresh.

        Ends with this process, and its replicas with it. Raises EngineError.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if len(str(path)) > 100:
            raise EngineError(f"the path of the engine's socket is too long: {path}", hint="use a shorter --home")
        argv = [str(python), "-m", "onecopy.engine.forkserver", "--socket", str(path)]
        if preload:
            argv += ["--preload", VLLM_VERSION]
        # BLAS threads would be lost by a fork, and each holds memory
        env = engine_env(OMP_NUM_THREADS=str(threads), OPENBLAS_NUM_THREADS="1", HF_HUB_OFFLINE="1")
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    argv, env=env, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
                )
        except OSError as error:
            raise EngineError(f"cannot start {python}: {error}", hint="see --engine-python") from error
        return cls(process, path, log)

    def forks(self, timeout: float = 120.0) -> tuple[bool, str | None]:
        """(True, None) when replicas are forked, (False, why) when they are started afresh. Waits for the imports."""
        with self._connect(timeout) as connection:
            answer, _ = self._ask(connection, {})
        return answer["forks"], answer["why"]

    def spawn(
        self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path, *, timeout: float = 120.0
    ) -> Replica:
        """Starts a replica; output is appended to `log`. Raises EngineError when the fork server does not answer."""
        log.parent.mkdir(parents=True, exist_ok=True)
        connection = self._connect(timeout)
        request = {"name": name, "argv": list(argv), "env": dict(env), "log": str(log)}
        answer, rest = self._ask(connection, {"spawn": request})
        return Replica(name, answer["pid"], answer["forked"], log, connection, rest)

    def poll(self) -> int | None:
        """The fork server's own exit code, or None while it runs."""
        return self._process.poll()

    def stop(self, timeout: float = 10.0) -> None:
        """Ends it and every replica that still runs. Stop replicas first for them to finish their requests."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _connect(self, timeout: float) -> socket.socket:
        """The socket appears within a second of the start; while the server imports, connections wait in its queue."""
        deadline = time.monotonic() + timeout
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                connection.connect(str(self._path))
                return connection
            except OSError as error:
                connection.close()
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise self._dead() from error
                time.sleep(0.02)

    def _ask(self, connection: socket.socket, message: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The answer, and what came after it: a replica may end before its answer is read."""
        try:
            connection.sendall(json.dumps(message).encode() + b"\n")
            answer = b""
            while b"\n" not in answer:
                data = connection.recv(4096)
                if not data:
                    raise ConnectionError("closed")
                answer += data
        except OSError as error:
            raise self._dead() from error
        line, _, rest = answer.partition(b"\n")
        return json.loads(line), rest

    def _dead(self) -> EngineError:
        code = self._process.poll()
        state = "does not answer" if code is None else f"ended with {code}"
        return EngineError(f"the engine's fork server {state}{_last_words(self.log)}", hint=f"see {self.log}")


def wait_ready(replica: Replica, endpoint: str, timeout: float) -> float:
    """Waits until the replica answers /health. Returns seconds since it was started. Raises EngineError with its reason."""
    deadline = replica.started + timeout
    while True:
        code = replica.poll()
        if code is not None:
            raise explain(replica, f"ended with {code} before it answered")
        try:
            with urllib.request.urlopen(f"{endpoint}/health", timeout=5) as answer:  # noqa: S310
                if answer.status == 200:
                    return time.monotonic() - replica.started
        except (urllib.error.URLError, OSError):
            pass
        if time.monotonic() > deadline:
            raise explain(replica, f"did not answer within {timeout:.0f} s")
        time.sleep(0.05)


_CAUSES = (
    (
        r"Model architectures .* (?:are not supported|failed to be inspected)",
        "this vLLM does not serve that architecture",
    ),
    (
        r"No available memory for the cache blocks|KV cache is needed.*|.*larger than the available KV cache memory.*",
        "raise kv_cache_bytes or lower max_model_len",
    ),
    (r"address already in use", "another program listens there: choose another port"),
    (r"No space left on device", "free memory (/dev/shm) or disk"),
    (r"Cannot allocate memory|DefaultCPUAllocator: can't allocate", "use fewer replicas, a smaller model or KV cache"),
    (r"(?<=onecopy\.core\.errors\.)\w+: .+", None),
    (r"model-loader-extra-config: .*", None),
    (r"unrecognized arguments: .*", "see engine_args"),
)


def explain(replica: Replica, what: str) -> EngineError:
    """The error in a replica's log that a user can act on."""
    text = _tail(replica.log, 200_000)
    for pattern, hint in _CAUSES:
        if match := re.search(pattern, text, re.IGNORECASE):
            return EngineError(f"{replica.name} {what}: {redact(match[0])[:400]}", hint=hint or f"see {replica.log}")
    return EngineError(f"{replica.name} {what}{_last_words(replica.log)}", hint=f"see {replica.log}")


def _last_words(log: Path) -> str:
    """The last line that names an exception (vLLM wraps the cause in several others), else the last line."""
    text = _tail(log)
    errors = re.findall(
        r"^(?:\([^)]*\) )?(?:[A-Z]+ [\d-]+ [\d:]+ \[[^\]]*\] )?((?:[a-z_]\w*\.)+[A-Z]\w*: .+|\w*(?:Error|Exception): .+)$",
        text,
        re.MULTILINE,
    )
    causes = [line for line in errors if "Engine core initialization failed" not in line]
    lines = causes or errors or [line.strip() for line in text.splitlines() if line.strip()]
    return f": {redact(lines[-1])[:400]}" if lines else ""


def _tail(log: Path, size: int = 100_000) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - size))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
