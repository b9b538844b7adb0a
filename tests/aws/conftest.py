"""An AWS to make stacks in: MiniStack with IAM enforced, one a session, a fresh account a test."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

EMULATOR = Path(__file__).with_name("emulator.py")
REGION = "us-east-2"
START_DEADLINE = 60.0


@dataclass
class Emulator:
    endpoint: str
    control: Path

    def set(self, **values: Any) -> None:
        self.control.write_text(json.dumps(values))


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    folder = tmp_path_factory.mktemp("emulator")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = Emulator(f"http://127.0.0.1:{port}", folder / "control.json")
    found.set()
    # AUTH is read as a word: "true" enforces IAM, conditions on s3:prefix included
    env = {
        **os.environ,
        "AUTH": "true",
        "GATEWAY_PORT": str(port),
        "MINISTACK_HOST": "127.0.0.1",
        "TMPDIR": str(folder),
        "IOT_MTLS_ENABLED": "0",
    }
    for name in [name for name in env if name.startswith("AWS_")]:
        del env[name]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(EMULATOR), str(found.control)], env=env, stdout=log, stderr=log, cwd=folder
        )
    try:
        deadline = time.monotonic() + START_DEADLINE
        while True:
            try:
                urllib.request.urlopen(f"{found.endpoint}/_ministack/health", timeout=2).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the emulator did not start:\n{(folder / 'log').read_text()[-3000:]}")
                time.sleep(0.1)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def aws(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> Emulator:
    """A fresh account: 12 digits as access key are its root, and nothing of another test is in it."""
    account = f"{100_000_000_000 + zlib.crc32(request.node.nodeid.encode())}"
    for name in [name for name in os.environ if name.startswith(("AWS_", "ONECOPY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", emulator.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", account)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-checked-for-the-root")
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("ONECOPY_HOME", str(tmp_path / "home"))
    emulator.set()
    return emulator
