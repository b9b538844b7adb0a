"""One published revision a session, reached through a proxy that does the faults; and what must hold after each test."""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.checkpoints import checkpoint
from tests.faults.proxy import FaultProxy

from onecopy.registry.publish import publish
from onecopy.registry.sources import open_source
from onecopy.storage.devserver import DevServer
from onecopy.storage.layout import file_key
from onecopy.storage.objectstore import open_store
from onecopy.storage.store import Store
from onecopy.storage.uri import StoreUri
from onecopy.weights.cache import NodeCache
from onecopy.weights.manifest import Manifest

SHARDS, SHARD_ELEMENTS = 3, 9 << 20  # 18 MiB a shard: three ranges, the last one short


@dataclass(frozen=True)
class Published:
    """uri: of the store. folder: what was published, byte for byte."""

    uri: StoreUri
    manifest: Manifest
    folder: Path

    def key(self, path: str) -> str:
        return file_key(self.manifest.model, self.manifest.revision, path)

    @property
    def shard(self) -> str:
        return next(file.path for file in self.manifest.files if file.path.endswith(".safetensors"))

    def assert_same(self, folder: Path) -> None:
        """Every file of the revision is in `folder`, byte for byte, and nothing else but the manifest is."""
        for file in self.manifest.files:
            assert (folder / file.path).read_bytes() == (self.folder / file.path).read_bytes(), file.path
        there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert there == {file.path for file in self.manifest.files} | {"onecopy.json"}


@pytest.fixture(scope="session")
def published(s3_server: DevServer, tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = checkpoint(tmp_path_factory.mktemp("faults") / "m", shards=SHARDS, elements=SHARD_ELEMENTS)
    uri = s3_server.uri.child("faults")
    return Published(uri, publish(open_source(str(folder)), open_store(uri, s3_server.options), "m").manifest, folder)


@pytest.fixture
def proxy(s3_server: DevServer) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint) as made:
        yield made


@pytest.fixture
def behind(proxy: FaultProxy, s3_server: DevServer, published: Published) -> Store:
    """The store, through the proxy. Silence is given up after two seconds, so that tests are quick."""
    options = replace(s3_server.options, endpoint=proxy.endpoint, request_timeout=2.0, connect_timeout=2.0)
    return open_store(published.uri, options)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[NodeCache]:
    """A node cache on disk; afterwards no lock is held and nothing of it is open in this process."""
    root = tmp_path / "cache"
    yield NodeCache(root)
    assert_unlocked(root)
    assert [path for path in _open_files() if path.is_relative_to(root)] == []
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")])


def assert_unlocked(root: Path) -> None:
    for lock in root.rglob("*.lock"):
        with lock.open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def _open_files() -> Iterator[Path]:
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            yield handle.readlink()
