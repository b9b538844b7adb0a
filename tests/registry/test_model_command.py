"""`onecopy model …` as scripts use it: data on stdout, talk on stderr, exit codes, `AWS_ENDPOINT_URL`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import checkpoint

from onecopy.storage.devserver import DevServer

Run = Callable[..., tuple[int, Any, str]]


@pytest.fixture(params=["s3", "file"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "ONECOPY_"))}
    address = f"file://{tmp_path}/store"
    if request.param == "s3":
        server: DevServer = request.getfixturevalue("s3_server")
        secret = server.options.secret_access_key
        assert secret is not None
        env |= {"AWS_ACCESS_KEY_ID": str(server.options.access_key_id), "AWS_SECRET_ACCESS_KEY": secret.reveal()}
        env |= {"AWS_ENDPOINT_URL": server.endpoint, "AWS_REGION": "us-east-1"}
        address = f"{server.uri}/cli-{tmp_path.name}"

    def call(*args: str) -> tuple[int, Any, str]:
        argv = [sys.executable, "-m", "onecopy", "model", *args, "--store", address, "--json"]
        done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None, done.stderr

    return call


def test_a_model_s_life(run: Run, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "Tiny Model", elements=200_000)
    code, first, talk = run("publish", str(folder), "--name", "tiny")
    assert code == 0
    assert {"revision", "bytes", "bytes_sent", "files", "seconds"} <= set(first)
    assert first["bytes"] == first["bytes_sent"] > 0
    assert all(json.loads(line) for line in talk.splitlines())
    assert run("publish", str(folder), "--name", "tiny")[1]["bytes_sent"] == 0
    assert run("list")[1][0]["refs"] == ["main"]
    assert run("show", "tiny@main")[1]["revision"] == first["revision"]
    second = run("publish", str(checkpoint(tmp_path / "b", seed=1)), "--name", "tiny")[1]["revision"]
    code, moved, _ = run("refs", "tiny", "--set", f"main={first['revision']}")
    assert (moved["old"], moved["new"]) == (second, first["revision"])
    code, found, _ = run("verify", "tiny", "--deep")
    assert (code, found["ok"], found["problems"]) == (0, True, [])
    code, _, talk = run("delete", f"tiny@{second}")
    assert (code, json.loads(talk)["error"]["type"]) == (2, "UsageError")
    code, planned, _ = run("gc", "--grace-days", "0", "--dry-run")
    assert [item["revision"] for item in planned["planned"]] == [second]
    code, gone, _ = run("gc", "--grace-days", "0", "--yes")
    assert [item["revision"] for item in gone["removed"]] == [second]
    assert run("delete", "tiny", "--yes")[0] == 0
    code, _, talk = run("show", "tiny")
    assert code == 1
    assert "no ref main of model tiny" in json.loads(talk)["error"]["message"]


@pytest.mark.parametrize("run", ["file"], indirect=True)  # damage is done by hand
def test_what_verify_finds_is_an_exit_code(run: Run, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    revision = run("publish", str(folder), "--name", "tiny")[1]["revision"]
    shard = tmp_path / "store/tiny/revisions" / revision / "model-00001-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    code, found, _ = run("verify", "tiny", "--deep")
    assert (code, found["ok"]) == (1, False)
    assert {problem["kind"] for problem in found["problems"]} == {"etag", "digest"}
    code, found, _ = run("verify", "tiny", "--deep", "--repair", "--source", str(folder))
    assert (code, found["ok"], found["repaired"]) == (0, True, True)


def test_usage(run: Run, tmp_path: Path) -> None:
    assert run("publish", "ftp://x/y")[0] == 2
    assert run("show", "Bad/Name")[0] == 2
    code, _, talk = run("publish", str(tmp_path / "none"))
    assert code == 1
    assert "no such folder" in talk
