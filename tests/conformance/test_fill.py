"""The node cache over every store: once, whole, verified, read-only."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.checkpoints import checkpoint

from onecopy.core.errors import CacheError, IntegrityError, NoSpace
from onecopy.registry.publish import publish
from onecopy.registry.sources import open_source
from onecopy.storage.devserver import DevServer
from onecopy.storage.faulty import Call, FaultyStore
from onecopy.storage.layout import revision_prefix
from onecopy.storage.store import Store
from onecopy.weights.cache import FillResult, NodeCache
from onecopy.weights.follow import Follower
from onecopy.weights.manifest import Manifest

SIZE = 20 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    header = json.dumps({"w": {"dtype": "U8", "shape": [SIZE], "data_offsets": [0, SIZE]}}).encode()
    body = bytes(range(256)) * (SIZE // 256)
    (made / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + body)
    return made


@pytest.fixture
def manifest(store: Store, folder: Path) -> Manifest:
    return publish(open_source(str(folder)), store, "m").manifest


def test_fill_once_and_read_only(store: Store, manifest: Manifest, folder: Path, tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache")
    first = cache.fill(store, manifest)
    assert first.bytes_fetched == manifest.total_bytes
    assert (first.path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert (first.path / "model.safetensors").stat().st_mode & 0o222 == 0
    again = cache.fill(store, manifest)
    assert again.already_there
    assert again.bytes_fetched == 0
    assert [path.name for path in (tmp_path / "cache" / "m").iterdir() if path.name.endswith(".partial")] == []


def test_changed_object_is_refused_and_nothing_published(store: Store, manifest: Manifest, tmp_path: Path) -> None:
    entry = manifest.file("model.safetensors")
    key = f"{revision_prefix(manifest.model, manifest.revision)}/{entry.path}"
    data = bytearray(store.get(key)[0])
    data[SIZE // 2] ^= 1
    info = store.put(key, bytes(data))
    files = tuple(
        file.model_copy(update={"etag": info.etag}) if file.path == entry.path else file for file in manifest.files
    )
    forged = manifest.model_copy(update={"files": files})  # as if the version were right: the digest must catch it
    cache = NodeCache(tmp_path / "cache")
    with pytest.raises(IntegrityError, match=r"model\.safetensors.*bytes 8388608"):
        cache.fill(store, forged)
    assert not (tmp_path / "cache" / "m" / manifest.revision).exists()


def test_no_space_is_said_before_the_first_byte(store: Store, manifest: Manifest, tmp_path: Path) -> None:
    huge = manifest.model_copy(
        update={"files": (*manifest.files, manifest.files[0].model_copy(update={"path": "x", "size": 1 << 60}))}
    )
    with pytest.raises(NoSpace, match="needs"):
        NodeCache(tmp_path / "cache").fill(store, huge)


def test_processes_together_fetch_once(s3_server: DevServer, s3_store: Store, folder: Path, tmp_path: Path) -> None:
    manifest = publish(open_source(str(folder)), s3_store, "m").manifest
    (tmp_path / "manifest.json").write_bytes(manifest.to_json())
    secret = s3_server.options.secret_access_key
    assert secret is not None
    code = f"""
import sys, pathlib
from onecopy.storage.objectstore import StoreOptions, open_store
from onecopy.weights.cache import FillResult, NodeCache
from onecopy.weights.manifest import Manifest
store = open_store({str(s3_store.uri)!r}, StoreOptions(endpoint={s3_server.endpoint!r}))
manifest = Manifest.from_json(pathlib.Path({str(tmp_path / "manifest.json")!r}).read_bytes(), where="test")
print(NodeCache(pathlib.Path({str(tmp_path / "cache")!r})).fill(store, manifest).bytes_fetched)
"""
    env = {"AWS_ACCESS_KEY_ID": s3_server.options.access_key_id or "", "AWS_SECRET_ACCESS_KEY": secret.reveal()}
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) for _ in range(4)
    ]
    fetched = [int(process.communicate()[0]) for process in running]
    assert sorted(fetched) == [0, 0, 0, manifest.total_bytes]


def test_follower_reads_what_is_there_while_it_fills(s3_store: Store, folder: Path, tmp_path: Path) -> None:
    """The first range is had while the second is held back; then all, and the file that was opened early stays whole."""
    manifest = publish(open_source(str(folder)), s3_store, "m").manifest
    go, seen = threading.Event(), threading.Event()

    def decide(call: Call) -> None:
        if call.method == "open_range" and call.key.endswith("model.safetensors"):
            with lock:
                first = not seen.is_set()
                seen.set()
            if not first:
                assert go.wait(20)

    lock = threading.Lock()
    cache = NodeCache(tmp_path / "cache")
    with (
        cache.follow(FaultyStore(s3_store, decide), manifest, deadline=30) as following,
        following.open("model.safetensors") as file,
    ):
        ranges = manifest.file("model.safetensors").range_count
        wait_for_one(following, manifest)
        assert not (cache.root / "m" / manifest.revision).exists()
        go.set()
        following.wait("model.safetensors", 0, manifest.file("model.safetensors").size)
        assert file.read() == (folder / "model.safetensors").read_bytes()
    assert ranges == 3
    assert (cache.root / "m" / manifest.revision / "onecopy.json").exists()


def wait_for_one(following: Follower[FillResult], manifest: Manifest) -> None:
    """Whichever range came first."""
    entry = manifest.file("model.safetensors")
    found: list[int] = []
    threads = [
        threading.Thread(
            target=lambda i=i: (
                following.wait(entry.path, i * entry.range_size, i * entry.range_size + 1),
                found.append(i),
            ),
            daemon=True,
        )
        for i in range(entry.range_count)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 20
    while not found:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(found) == 1


def test_leased_is_never_evicted(file_store: Store, folder: Path, tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache")
    manifest = publish(open_source(str(folder)), file_store, "m").manifest
    path = cache.fill(file_store, manifest).path
    held = subprocess.Popen(
        [sys.executable, "-c", f"""
import pathlib, sys
from onecopy.weights.cache import FillResult, NodeCache
lease = NodeCache(pathlib.Path({str(cache.root)!r})).lease("m", {manifest.revision!r})
print("held", flush=True)
sys.stdin.read()
"""],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert held.stdout is not None
    assert held.stdin is not None
    assert held.stdout.readline() == "held\n"
    assert [entry.leased for entry in cache.list()] == [True]
    assert cache.evict(max_bytes=0) == []
    assert path.exists()
    held.kill()  # a holder's death ends its lease
    held.communicate()
    with (path / "model.safetensors").open("rb") as still:
        assert [entry.revision for entry in cache.evict(max_bytes=0)] == [manifest.revision]
        assert not path.exists()
        assert still.read() == (folder / "model.safetensors").read_bytes()
    assert cache.list() == []
    with pytest.raises(CacheError, match="not in the node cache"):
        cache.lease("m", manifest.revision)
    assert not cache.fill(file_store, manifest).already_there


def test_evict_takes_the_longest_unused_and_knows_no_clock(
    file_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = NodeCache(tmp_path / "cache")
    made: list[Manifest] = []
    for seed in range(3):
        source = checkpoint(tmp_path / f"source-{seed}", shards=1, elements=100_000, seed=seed)
        made.append(publish(open_source(str(source)), file_store, "m", ref=f"r{seed}").manifest)
        cache.fill(file_store, made[-1])
        time.sleep(0.02)
    cache.fill(file_store, made[0])  # asked for again: now the second is the oldest
    monkeypatch.setattr(time, "time", lambda: 1e12)  # the year 33658
    assert cache.evict(max_age=3600) == []
    one = cache.list()[0].bytes
    gone = cache.evict(max_bytes=int(one * 2.5))
    assert [entry.revision for entry in gone] == [made[1].revision]
    gone = cache.evict(max_bytes=0, keep=[("m", made[0].revision)])
    assert [entry.revision for entry in gone] == [made[2].revision]
    assert {entry.revision for entry in cache.list()} == {made[0].revision}
