"""`onecopy cache …` as a user runs it: real processes, a real S3 server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import checkpoint

from onecopy.core.metrics import METRICS
from onecopy.registry.publish import publish
from onecopy.registry.sources import open_source
from onecopy.storage.devserver import DevServer
from onecopy.storage.store import Store
from onecopy.weights.manifest import Manifest


@pytest.fixture
def env(s3_server: DevServer, s3_store: Store, tmp_path: Path) -> dict[str, str]:
    secret = s3_server.options.secret_access_key
    assert secret is not None
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "AWS_ENDPOINT_URL": s3_server.endpoint,
        "AWS_ACCESS_KEY_ID": str(s3_server.options.access_key_id),
        "AWS_SECRET_ACCESS_KEY": secret.reveal(),
        "ONECOPY_STORE_URI": str(s3_store.uri),
        "ONECOPY_CACHE_DIR": str(tmp_path / "cache"),
    }


def put(store: Store, folder: Path, seed: int) -> Manifest:
    return publish(open_source(str(checkpoint(folder / f"v{seed}", seed=seed))), store, "m").manifest


def run(env: dict[str, str], *args: str, code: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "onecopy", "cache", *args, "--json"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if done.stdout else {"error": done.stderr}


def test_fill_status_evict(env: dict[str, str], s3_store: Store, tmp_path: Path) -> None:
    manifest = put(s3_store, tmp_path, 1)
    first = run(env, "fill", "m")
    assert (first["revision"], first["bytes_fetched"]) == (manifest.revision, manifest.total_bytes)
    assert run(env, "fill", f"m@{manifest.revision}")["already_there"] is True
    (entry,) = run(env, "status")["revisions"]
    assert (entry["state"], entry["leased"], entry["path"]) == ("published", False, first["path"])
    assert "nothing says what to evict" in str(run(env, "evict", code=2))
    assert run(env, "evict", f"m@{manifest.revision}")["evicted"]
    assert run(env, "status")["revisions"] == []
    assert "not evicted" in str(run(env, "evict", f"m@{manifest.revision}", code=1))


@pytest.fixture
def agent(env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    argv = [
        sys.executable,
        "-m",
        "onecopy",
        "cache",
        "agent",
        "m",
        "--port",
        "0",
        "--interval",
        "0.3",
        "--max-size",
        "0",
    ]
    process = subprocess.Popen([*argv, "--json"], env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    address = json.loads(process.stderr.readline())["message"].split(": ")[0]
    yield process, address
    process.kill()
    process.communicate()


def ask(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def wait_for(folder: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not (folder / "onecopy.json").exists():
        assert time.monotonic() < deadline, folder
        time.sleep(0.05)


def test_agent_follows_the_ref_and_says_so(
    agent: tuple[subprocess.Popen[str], str], s3_store: Store, tmp_path: Path
) -> None:
    process, address = agent
    assert ask(f"{address}/healthz")[0] == 200
    status, text = ask(f"{address}/readyz")  # nothing is published yet
    assert status == 503
    assert "m@main" in text
    old = put(s3_store, tmp_path, 1)
    wait_for(tmp_path / "cache/m" / old.revision)
    assert ask(f"{address}/readyz")[0] == 200
    new = put(s3_store, tmp_path, 2)
    wait_for(tmp_path / "cache/m" / new.revision)
    deadline = time.monotonic() + 20
    while (tmp_path / "cache/m" / old.revision).exists():  # nobody wants nor holds it, and --max-size is 0
        assert time.monotonic() < deadline
        time.sleep(0.05)
    text = ""
    while "onecopy_agent_evicted_bytes_total 0.0" in text or not text:
        assert time.monotonic() < deadline
        status, text = ask(f"{address}/metrics")
        assert status == 200
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line[0] != "#"}
    both = old.total_bytes + new.total_bytes
    assert values['onecopy_agent_store_read_bytes_total{model="m"}'] == both
    assert values['onecopy_agent_read_amplification_ratio{model="m"}'] == 1.0
    assert values['onecopy_agent_ready{model="m",wanted="main"}'] == 1.0
    assert values["onecopy_agent_evicted_bytes_total"] > 0
    assert {name.split("{")[0] for name in values} <= {metric.name for metric in METRICS if metric.by == "agent"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
