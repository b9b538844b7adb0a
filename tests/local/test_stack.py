"""The main job with real parts: a real S3 server, a real model, real vLLM servers, a router, and what happens to it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.local.stack import Cli, kill, until

from onecopy.targets.local.home import Home

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    made = Cli(tmp_path_factory.mktemp("stack") / "home")
    yield made
    made.run("down", "--purge")


@pytest.fixture(scope="module")
def up(cli: Cli) -> Any:
    return cli.ok("up", "--detach", "--port", "0", "--replicas", "2")


def ask(endpoint: str, model: str, text: str = "Name one planet.", *, max_tokens: int = 8) -> tuple[int, str]:
    url = urlsplit(endpoint)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=120)
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": 0}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error)
    finally:
        connection.close()


def test_up_answers_from_one_copy(up: Any) -> None:
    assert "Paris" in up["answer"]
    assert [replica["state"] for replica in up["replicas"]] == ["ready", "ready"]
    assert len({replica["pid"] for replica in up["replicas"]}) == 2
    assert up["store_bytes_read"] == up["checkpoint_bytes"], "each byte is read from the store once, whatever N"
    assert up["private_copies_bytes"] == 2 * up["checkpoint_bytes"]
    # both replicas together hold less than one and a half copies: the pages are shared
    assert 0 < up["weight_bytes_resident"] < 1.5 * up["checkpoint_bytes"]
    assert {"store", "publish", "fill", "replicas", "answer", "total"} <= up["phases"].keys()


def test_second_up_changes_nothing(cli: Cli, up: Any) -> None:
    again = cli.ok("up", "--detach", "--port", "0", "--replicas", "2")
    for key in ("endpoint", "revision", "store_bytes_read", "supervisor"):
        assert again[key] == up[key]


def test_up_with_other_settings_is_refused(cli: Cli, up: Any) -> None:
    assert "other settings" in cli.refused("up", "--detach", "--port", "0", "--replicas", "1")


def test_status_logs_and_secrets(cli: Cli, up: Any) -> None:
    status = cli.ok("status")
    for key in ("endpoint", "model", "revision", "store", "replicas", "checkpoint_bytes", "store_bytes_read",
                "weight_bytes_resident", "phases", "answer"):  # fmt: skip
        assert status[key], key
    _, secret = Home(cli.home).credentials()
    logs = cli.run("logs").stdout
    assert "replica-1: " in logs
    assert secret.reveal() not in logs
    assert secret.reveal() not in "".join(cli.processes())
    assert (cli.home / "state.json").stat().st_mode & 0o077 == 0


def test_loadtest_shows_that_both_replicas_served(cli: Cli, up: Any) -> None:
    report = cli.ok("loadtest", "--requests", "24", "--concurrency", "8", "--output-tokens", "8")
    served = {share["name"]: share["served"] for share in report["replicas"]}
    assert sum(served.values()) == 24
    assert min(served.values()) >= 8, "round robin"


def test_requests_survive_a_killed_replica(cli: Cli, up: Any) -> None:
    victim = cli.ok("status")["replicas"][1]
    begun = threading.Event()

    def one(number: int) -> tuple[int, str]:
        if number == 10:
            begun.set()
        return ask(up["endpoint"], up["model"], f"Count from {number}.", max_tokens=16)

    with ThreadPoolExecutor(8) as pool:
        results = pool.map(one, range(60))
        begun.wait()
        kill(victim["pid"])
        answers = list(results)
    failed = [body for status, body in answers if status != 200]
    assert len(failed) <= 8, f"only requests in flight on the killed replica may fail: {failed}"
    until("the replica is back", lambda: all(r["state"] == "ready" for r in cli.ok("status")["replicas"]))
    returned = cli.ok("status")["replicas"][1]
    assert returned["pid"] != victim["pid"]
    assert returned["restarts"] == 1
    assert ask(up["endpoint"], up["model"])[0] == 200


def test_a_killed_engine_core_is_noticed(cli: Cli, up: Any) -> None:
    """The API server outlives its engine for seconds: the health check must catch it, and the group must go."""
    before = cli.ok("status")["replicas"][0]
    children = [int(pid) for pid in Path(f"/proc/{before['pid']}/task/{before['pid']}/children").read_text().split()]
    assert children, "the engine core is a child of the API server"
    for pid in children:
        kill(pid)
    until("the replica was started again", lambda: cli.ok("status")["replicas"][0]["restarts"] > before["restarts"])
    until("the replica is back", lambda: cli.ok("status")["replicas"][0]["state"] == "ready")
    assert ask(up["endpoint"], up["model"])[0] == 200


def test_a_killed_router_and_store_return(cli: Cli, up: Any) -> None:
    records = {record["name"]: record["pid"] for record in cli.ok("status")["processes"]}
    kill(records["router"])
    kill(records["store"])
    until("the router answers again", lambda: ask(up["endpoint"], up["model"])[0] == 200)
    until(
        "the store is back",
        lambda: (
            {r["name"]: r["pid"] for r in cli.ok("status")["processes"]}.get("store") not in (None, records["store"])
        ),
    )


def test_killed_supervisor_is_cleared_up(cli: Cli, up: Any) -> None:
    status = cli.ok("status")
    kill(status["supervisor"]["pid"])
    result = cli.run("status")
    assert result.returncode == 1
    assert "cleared up" in result.stderr
    until("nothing is left", lambda: not cli.processes(), timeout=30)
    assert not Home(cli.home).shm_cache.exists()


def test_warm_up_then_down_leaves_nothing(cli: Cli) -> None:
    """The second life: nothing is uploaded again, four replicas, and an end in order."""
    up = cli.ok("up", "--detach", "--port", "0", "--replicas", "4")
    assert up["store_bytes_read"] == up["checkpoint_bytes"]
    assert up["weight_bytes_resident"] < 1.7 * up["checkpoint_bytes"]
    assert len(up["replicas"]) == 4
    assert cli.ok("down")["stopped"]
    assert cli.processes() == []
    home = Home(cli.home)
    assert not home.shm_cache.exists()
    assert not home.run.exists()
    assert not home.is_owned()
    assert cli.ok("down")["stopped"] is False
    assert cli.run("status").returncode == 1


def test_a_corrupt_object_is_refused_and_named(cli: Cli) -> None:
    """One byte of the weights is changed behind the store's back."""
    volumes = sorted((cli.home / "store").rglob("*.dat"), key=lambda path: path.stat().st_size)
    with volumes[-1].open("r+b") as file:
        file.seek(volumes[-1].stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0xFF]))
    result = cli.run("up", "--detach", "--port", "0", "--replicas", "1")
    assert result.returncode == 1
    assert "model.safetensors" in result.stderr
    until("nothing is left", lambda: not cli.processes(), timeout=30)
