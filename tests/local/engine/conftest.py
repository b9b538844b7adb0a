"""The real engine: its environment, one fork server for the session, and replicas with their endpoint."""

from __future__ import annotations

import json
import shutil
import socket
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from onecopy.core.events import silent
from onecopy.engine import sample
from onecopy.engine.environments import Engine, ensure_engine, ensure_tools, inspect_engine
from onecopy.engine.launch import EngineSpec, ForkServer, Replica, replica_argv, replica_env, wait_ready
from onecopy.engine.load_report import read_reports

REVISION = "0123456789abcdef"


@dataclass
class Served:
    """A replica that answers."""

    replica: Replica
    endpoint: str
    reports: Path

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.endpoint}{path}",
            data=json.dumps({"model": "m", "temperature": 0, **body}).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def complete(self, prompt: str, tokens: int = 24) -> str:
        return self.post("/v1/completions", prompt=prompt, max_tokens=tokens)["choices"][0]["text"]

    def prompt_logprobs(self, prompt: list[int]) -> list[float]:
        """Log probability of each token of the prompt but the first, given those before it."""
        answer = self.post("/v1/completions", prompt=prompt, max_tokens=1, prompt_logprobs=0)
        rows = answer["choices"][0]["prompt_logprobs"][1:]
        return [row[str(token)]["logprob"] for row, token in zip(rows, prompt[1:], strict=True)]

    @property
    def report(self) -> dict[str, Any]:
        (report,) = read_reports(self.reports)
        return report


Serve = Callable[..., Served]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def engine() -> Engine:
    return inspect_engine(ensure_engine(silent))


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tools = ensure_tools(silent)
    return sample.write_sample(tmp_path_factory.mktemp("sample") / "smollm2", tools / "python", silent)


@pytest.fixture(scope="session")
def fork_server(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    folder = tmp_path_factory.mktemp("forks")
    with ForkServer.start(engine.python, folder / "s", folder / "engine.log") as server:
        yield server


@pytest.fixture
def start(engine: Engine, fork_server: ForkServer, tmp_path: Path) -> Iterator[Serve]:
    """start(model, server=…, name=…, **EngineSpec fields) → Served, not yet ready; all are stopped at the end."""
    with ExitStack() as stack:

        def begin(
            model: Path | str,
            *,
            server: ForkServer = fork_server,
            name: str = "replica-0",
            env: Mapping[str, str] | None = None,
            **fields: Any,
        ) -> Served:
            spec = EngineSpec(engine, model, "m", replicas=2, kv_cache_bytes=64 << 20, max_model_len=256)
            spec = replace(spec, **fields)
            number = len(list(tmp_path.glob("reports-*")))
            reports = tmp_path / f"reports-{number}"
            reports.mkdir()
            port = free_port()
            spec = replace(spec, reports=reports)
            settings = replica_env(spec, **(env or {}))
            replica = server.spawn(name, replica_argv(spec, port), settings, tmp_path / f"{name}-{number}.log")
            stack.callback(replica.stop)
            return Served(replica, f"http://127.0.0.1:{port}", reports)

        yield begin


@pytest.fixture
def serve(start: Serve) -> Serve:
    """As `start`, and waits until it answers."""

    def ready(model: Path, **fields: Any) -> Served:
        served = start(model, **fields)
        wait_ready(served.replica, served.endpoint, 120)
        return served

    return ready


@pytest.fixture
def publish(tmp_path: Path) -> Callable[[Path], Path]:
    """A folder as the node cache would hold it: immutable, with a manifest."""

    def to_cache(folder: Path) -> Path:
        revision = tmp_path / "cache" / folder.name / REVISION
        shutil.copytree(folder, revision)
        (revision / "onecopy.json").write_text("{}")
        for file in revision.iterdir():
            file.chmod(0o444)
        return revision

    return to_cache
