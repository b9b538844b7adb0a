"""Replicas whose folder holds no weights: from the store into a node cache, or into a private copy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.local.engine.conftest import Serve
from tests.local.engine.models import Tiny, write

from onecopy.core.errors import EngineError
from onecopy.engine import remote
from onecopy.engine.launch import wait_ready
from onecopy.registry.publish import publish
from onecopy.registry.sources.open import open_source
from onecopy.storage.devserver import DevServer
from onecopy.storage.store import Store
from onecopy.weights.manifest import Manifest

pytestmark = pytest.mark.engine
MODEL = "tiny"


def environment(server: DevServer) -> Mapping[str, str]:
    options = server.options
    assert options.secret_access_key is not None
    return {
        "AWS_ENDPOINT_URL": str(options.endpoint),
        "AWS_REGION": str(options.region),
        "AWS_ACCESS_KEY_ID": str(options.access_key_id),
        "AWS_SECRET_ACCESS_KEY": options.secret_access_key.reveal(),
    }


@pytest.fixture
def published(smollm2: Path, tmp_path: Path, s3_store: Store) -> tuple[Path, Manifest, dict[str, Any]]:
    """The folder that was published, its manifest, and where the loader finds it."""
    folder = write(tmp_path / "tiny", Tiny(shards=3), smollm2)
    manifest = publish(open_source(str(folder)), s3_store, MODEL).manifest
    where = {"store": str(s3_store.uri), "name": MODEL, "revision": manifest.revision}
    return folder, manifest, where


def test_two_replicas_fill_one_cache(
    published: tuple[Path, Manifest, dict[str, Any]],
    s3_server: DevServer,
    s3_store: Store,
    tmp_path: Path,
    start: Serve,
) -> None:
    _, manifest, where = published
    head = remote.write_head(s3_store, manifest, tmp_path / "head")
    assert not list(head.glob("*.safetensors"))
    loader = where | {"cache": str(tmp_path / "cache")}
    both = [start(head, name=f"r{at}", env=environment(s3_server), loader=loader) for at in range(2)]
    for served in both:
        wait_ready(served.replica, served.endpoint, 120)
        assert served.report["sharing"] == "packed"
    assert sum(served.report["bytes"]["store"] for served in both) == manifest.total_bytes
    assert both[0].complete("x", 4) == both[1].complete("x", 4)


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
