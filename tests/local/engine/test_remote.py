"""Replicas of a store's address, or of a folder without weights: into a node cache, or into a private copy."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.faults.proxy import FaultProxy, Request
from tests.local.engine.conftest import Serve, Served
from tests.local.engine.models import Tiny, write
from tests.local.engine.test_processes import gone

from onecopy.core.errors import EngineError
from onecopy.engine import memory, remote
from onecopy.engine.launch import wait_ready
from onecopy.registry.publish import publish
from onecopy.registry.sources.open import open_source
from onecopy.storage.devserver import DevServer
from onecopy.storage.store import Store
from onecopy.weights.cache import NodeCache
from onecopy.weights.manifest import RANGE_SIZE, Manifest

pytestmark = pytest.mark.engine
MODEL = "tiny"


def environment(server: DevServer, **changes: str) -> dict[str, str]:
    options = server.options
    assert options.secret_access_key is not None
    return {
        "AWS_ENDPOINT_URL": str(options.endpoint),
        "AWS_REGION": str(options.region),
        "AWS_ACCESS_KEY_ID": str(options.access_key_id),
        "AWS_SECRET_ACCESS_KEY": options.secret_access_key.reveal(),
        **changes,
    }


@dataclass
class Held:
    """A store whose link holds back the second half of the big shard until `go`."""

    proxy: FaultProxy
    go: threading.Event

    def environment(self, server: DevServer, **changes: str) -> dict[str, str]:
        return environment(server, AWS_ENDPOINT_URL=self.proxy.endpoint, **changes)


@pytest.fixture
def held(s3_server: DevServer) -> Iterator[Held]:
    go = threading.Event()

    def decide(request: Request) -> None:
        if request.path.endswith("model-00001-of-00003.safetensors") and request.start >= 2 * RANGE_SIZE:
            assert go.wait(60)

    with FaultProxy(s3_server.endpoint, decide) as proxy:
        yield Held(proxy, go)
        go.set()


@pytest.fixture
def published(smollm2: Path, tmp_path: Path, s3_store: Store) -> tuple[Path, Manifest, dict[str, Any]]:
    """The folder that was published, its manifest, and where the loader finds it."""
    folder = write(tmp_path / "tiny", Tiny(shards=3), smollm2)
    manifest = publish(open_source(str(folder)), s3_store, MODEL).manifest
    where = {"store": str(s3_store.uri), "name": MODEL, "revision": manifest.revision}
    return folder, manifest, where


def address(where: dict[str, Any]) -> str:
    return f"{where['store']}/{where['name']}/revisions/{where['revision']}"


def said(served: Served, words: str, within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while not served.replica.log.exists() or words not in served.replica.log.read_text():
        assert served.replica.poll() is None, served.replica.log.read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def fillers(served: Served) -> list[int]:
    def filler(pid: int) -> bool:
        return b"onecopy.engine.remote" in Path(f"/proc/{pid}/cmdline").read_bytes()

    return [pid for pid in memory.processes(served.replica.pid) if filler(pid)]


def test_two_replicas_by_address_fill_one_cache_and_lease_it(
    published: tuple[Path, Manifest, dict[str, Any]], s3_server: DevServer, tmp_path: Path, start: Serve
) -> None:
    folder, manifest, where = published
    cache = NodeCache(tmp_path / "cache")
    env = environment(s3_server, ONECOPY_CACHE_DIR=str(cache.root), XDG_CACHE_HOME=str(tmp_path / "xdg"))
    both = [start(address(where), name=f"r{at}", env=env) for at in range(2)]
    theirs = start(folder, name="theirs", load_format="safetensors")
    for served in (*both, theirs):
        wait_ready(served.replica, served.endpoint, 120)
    for served in both:
        assert served.report["sharing"] == "packed"
        assert served.complete("x", 4) == theirs.complete("x", 4)
    assert cache.evict(max_bytes=0) == []
    both[0].replica.stop()
    assert cache.evict(max_bytes=0) == []
    assert both[1].complete("y", 4)
    pids = memory.processes(both[1].replica.pid)
    both[1].replica.signal(9)
    assert gone(pids)
    deadline, evicted = time.monotonic() + 10, cache.evict(max_bytes=0)
    while not evicted and time.monotonic() < deadline:  # a dying process lets go of its files a moment later
        time.sleep(0.05)
        evicted = cache.evict(max_bytes=0)
    assert [entry.revision for entry in evicted] == [manifest.revision]


def test_replicas_start_while_the_fetch_runs_and_its_killed_filler_is_replaced(
    published: tuple[Path, Manifest, dict[str, Any]], s3_server: DevServer, held: Held, tmp_path: Path, start: Serve
) -> None:
    """The first fills by an address; the second has neither store nor credentials, just the folder that is to come."""
    _, manifest, where = published
    root = tmp_path / "cache"
    final = root / MODEL / manifest.revision
    env = held.environment(s3_server, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    first = start(address(where), name="first", env=env, loader={"cache": str(root)})
    said(first, "the first tensor is here")
    assert not final.exists()
    second = start(final, name="second", env={"XDG_CACHE_HOME": str(tmp_path / "second")})
    said(second, "config and tokenizer are in")
    (filler,) = fillers(first)
    os.kill(filler, signal.SIGKILL)
    time.sleep(0.2)
    assert not final.exists()
    held.go.set()
    for served in (first, second):
        wait_ready(served.replica, served.endpoint, 120)
        assert served.report["sharing"] == "packed"
    assert first.report["seconds"]["fill"] > 0.2
    assert first.complete("x", 4) == second.complete("x", 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"revision": "0123456789abcdef"}, r"ObjectMissing: .*0123456789abcdef"),
        ({"revision": "main"}, r"UsageError: .* names no revision"),
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, r"(CredentialsInvalid|PermissionDenied): "),
    ],
    ids=["no-revision", "a-ref", "no-permission"],
)
def test_what_the_store_refuses_is_said_and_nothing_else_is_served(
    change: dict[str, str],
    reason: str,
    published: tuple[Path, Manifest, dict[str, Any]],
    s3_server: DevServer,
    tmp_path: Path,
    start: Serve,
) -> None:
    where = published[2] | {key: value for key, value in change.items() if key == "revision"}
    env = environment(s3_server, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    env |= {key: value for key, value in change.items() if key.startswith("AWS")}
    served = start(address(where), env=env)
    with pytest.raises(EngineError, match=reason):
        wait_ready(served.replica, served.endpoint, 60)


def test_a_cache_without_room_is_left_for_a_private_copy(
    published: tuple[Path, Manifest, dict[str, Any]], s3_server: DevServer, tmp_path: Path, serve: Serve
) -> None:
    """A file stands where the cache's folder would be: root obeys no mode."""
    (tmp_path / "cache").write_text("")
    env = environment(s3_server, XDG_CACHE_HOME=str(tmp_path / "xdg"))
    served = serve(address(published[2]), env=env, loader={"cache": str(tmp_path / "cache")})
    assert served.report["sharing"] == "copy"
    assert "no node cache (" in served.replica.log.read_text()


def test_a_private_copy_serves_and_leaves_no_file(
    published: tuple[Path, Manifest, dict[str, Any]],
    s3_server: DevServer,
    s3_store: Store,
    tmp_path: Path,
    serve: Serve,
) -> None:
    folder, manifest, where = published
    head = remote.write_head(s3_store, manifest, tmp_path / "head")
    before = set(Path("/dev/shm").glob("onecopy-weights-*"))
    served = serve(head, env=environment(s3_server), loader=where)
    assert served.report["sharing"] == "copy"
    assert "no node cache (none is named): a private copy of" in served.replica.log.read_text()
    sizes = sum(entry.size for entry in manifest.files if entry.path.endswith(".safetensors"))
    assert served.report["bytes"]["store"] == sizes
    assert set(Path("/dev/shm").glob("onecopy-weights-*")) == before
    theirs = serve(folder, name="theirs", load_format="safetensors")
    assert served.complete("x", 4) == theirs.complete("x", 4)


def test_damaged_bytes_never_serve(
    published: tuple[Path, Manifest, dict[str, Any]],
    s3_server: DevServer,
    s3_store: Store,
    tmp_path: Path,
    start: Serve,
) -> None:
    _, manifest, where = published
    head = remote.write_head(s3_store, manifest, tmp_path / "head")
    key = f"{MODEL}/revisions/{manifest.revision}/model-00002-of-00003.safetensors"
    data, _ = s3_store.get(key)
    s3_store.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    served = start(head, env=environment(s3_server), loader=where)
    with pytest.raises(EngineError, match=r"model-00002-of-00003"):
        wait_ready(served.replica, served.endpoint, 60)
