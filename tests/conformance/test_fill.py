"""The node cache over every store: once, whole, verified, read-only."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from onecopy.core.errors import IntegrityError, NoSpace
from onecopy.registry.publish import publish
from onecopy.registry.sources import open_source
from onecopy.storage.devserver import DevServer
from onecopy.storage.layout import revision_prefix
from onecopy.storage.store import Store
from onecopy.weights.cache import NodeCache
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
from onecopy.weights.cache import NodeCache
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
