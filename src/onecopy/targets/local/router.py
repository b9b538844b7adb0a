"""vllm-router: one OpenAI-compatible endpoint over the healthy replicas, round robin, retries on another worker."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from onecopy.core import environment
from onecopy.core.errors import StackError
from onecopy.targets.local import processes


class Router:
    """The router process and its workers. It starts without any, so that it can start beside everything else."""

    def __init__(self, binary: Path, host: str, port: int, log: Path) -> None:
        self.host, self.port = host, port or processes.free_port(host)
        self.endpoint = f"http://{host}:{self.port}"
        self._binary, self._log = binary, log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        argv = [
            str(self._binary), "--host", self.host, "--port", str(self.port), "--policy", "round_robin",
            "--prometheus-host", "127.0.0.1", "--prometheus-port", str(processes.free_port()),
            # its own defaults are for fleets: 60 s between checks would keep a dead replica in for a minute
            "--health-check-interval-secs", "1", "--health-failure-threshold", "2", "--health-success-threshold", "1",
            "--worker-startup-check-interval", "1", "--cb-timeout-duration-secs", "2",
            # without it any web page could read the answers
            "--cors-allowed-origins", self.endpoint,
            "--log-level", "warning",
        ]  # fmt: skip
        self._process = processes.start("router", argv, log=self._log, env=environment.child())

    def wait_ready(self, timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self.alive():
                raise StackError("the router ended at its start", hint="see `onecopy logs router`")
            if request("GET", self.host, self.port, "/health", timeout=1) is not None:
                return
            time.sleep(0.05)
        raise StackError(f"the router did not answer within {timeout:.0f} s", hint="see `onecopy logs router`")

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def add(self, endpoint: str) -> None:
        answer = request("POST", self.host, self.port, f"/add_worker?url={quote(endpoint, safe='')}", timeout=10)
        if (answer is None or answer[0] != 200) and endpoint not in self.workers():
            raise StackError(f"the router refused {endpoint}: {answer}", hint="see `onecopy logs router`")

    def remove(self, endpoint: str) -> None:
        request("POST", self.host, self.port, f"/remove_worker?url={quote(endpoint, safe='')}", timeout=5)

    def workers(self) -> list[str]:
        answer = request("GET", self.host, self.port, "/workers", timeout=2)
        if answer is None or answer[0] != 200:
            return []
        return [worker["url"] for worker in json.loads(answer[1]).get("workers", [])]

    def stop(self, timeout: float = 5) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def request(
    method: str, host: str, port: int, path: str, *, timeout: float, body: dict[str, Any] | None = None
) -> tuple[int, bytes] | None:
    """(status, body) of one call to a loopback server, or None when nothing answers."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        payload = json.dumps(body).encode() if body is not None else None
        connection.request(method, path, payload, {"Content-Type": "application/json"} if payload else {})
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def wait_for(what: str, check: Callable[[], bool], *, timeout: float, hint: str) -> None:
    """Polls until `check` holds. Raises StackError naming what was waited for."""
    deadline = time.monotonic() + timeout
    while not check():
        if time.monotonic() > deadline:
            raise StackError(f"{what}: not within {timeout:.0f} s", hint=hint)
        time.sleep(0.05)
