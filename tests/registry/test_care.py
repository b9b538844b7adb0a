"""Verify, repair, refs, leases, delete and gc, on real stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.checkpoints import checkpoint

from onecopy.core.errors import IntegrityError, ObjectMissing, PreconditionFailed, SourceError
from onecopy.core.units import MiB
from onecopy.registry import care, catalogue
from onecopy.registry.publish import PublishResult, publish
from onecopy.registry.sources import open_source
from onecopy.registry.verify import repair, verify
from onecopy.storage import layout
from onecopy.storage.devserver import DevServer
from onecopy.storage.objectstore import open_store
from onecopy.storage.store import Store, Upload

SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "model", elements=6 * MiB)


@pytest.fixture
def published(store: Store, folder: Path) -> PublishResult:
    return publish(open_source(str(folder)), store, "tiny")


def key_of(done: PublishResult, path: str) -> str:
    return layout.file_key("tiny", done.revision, path)


def test_a_good_revision(store: Store, published: PublishResult) -> None:
    quick, deep = verify(store, "tiny"), verify(store, "tiny", deep=True)
    assert quick.ok
    assert deep.ok
    assert (quick.bytes_read, deep.bytes_read) == (0, published.bytes)


def test_what_is_wrong_is_named_and_mended(store: Store, folder: Path, published: PublishResult) -> None:
    shard = key_of(published, SHARD)
    whole = bytearray((folder / SHARD).read_bytes())
    whole[9 * MiB] ^= 1
    store.put_stream(shard, iter([bytes(whole)]), part_size=8 * MiB)
    store.delete([key_of(published, "config.json")])
    store.put(key_of(published, "tokenizer.json"), b"short")
    store.put(key_of(published, "stray.bin"), b"?")
    found = verify(store, "tiny", deep=True)
    kinds = {(problem.file, problem.kind) for problem in found.problems}
    assert kinds >= {(SHARD, "digest"), ("config.json", "missing"), ("tokenizer.json", "size"), ("stray.bin", "extra")}
    digest = next(problem for problem in found.problems if problem.kind == "digest")
    assert f"bytes {8 * MiB}–" in digest.seen
    with pytest.raises(SourceError, match="published from a folder"):
        repair(store, found)
    other = open_source(str(checkpoint(folder.parent / "other", seed=5)))
    with pytest.raises(IntegrityError, match="nothing was sent"):
        repair(store, found, source=other)
    done = repair(store, found, source=open_source(str(folder)))
    assert isinstance(done, PublishResult)
    assert done.bytes_sent < published.bytes
    left = verify(store, "tiny", deep=True)
    assert [problem.kind for problem in left.problems] == ["extra"]


def test_etags_that_moved_are_restated_without_a_source(store: Store, folder: Path, published: PublishResult) -> None:
    key = key_of(published, SHARD)
    data = (folder / SHARD).read_bytes()
    parts = [data[at : at + 5 * MiB] for at in range(0, len(data), 5 * MiB)]
    store.put_stream(key, iter(parts), part_size=5 * MiB)  # other parts: another ETag, the same bytes
    found = verify(store, "tiny")
    assert [(problem.file, problem.kind) for problem in found.problems] == [(SHARD, "etag")]
    repair(store, found)
    assert verify(store, "tiny", deep=True).ok
    store.put_stream(key, iter([bytes(len(data))]), part_size=8 * MiB)
    found = verify(store, "tiny")  # S3's own checksum tells it at once
    assert {problem.kind for problem in found.problems} == {"etag"} | ({"checksum"} if store.checksum(key) else set())
    with pytest.raises((IntegrityError, SourceError), match=r"other bytes|its bytes are needed"):
        repair(store, found)


def test_delete_refuses_what_is_named(store: Store, tmp_path: Path, published: PublishResult) -> None:
    with pytest.raises(PreconditionFailed, match="named by the ref main"):
        care.delete_revision(store, "tiny", published.revision)
    second = publish(open_source(str(checkpoint(tmp_path / "b", seed=1))), store, "tiny")
    catalogue.hold(store, "tiny", published.revision, "prod", until=datetime.now(UTC) + timedelta(hours=1))
    with pytest.raises(PreconditionFailed, match="held by prod"):
        care.delete_revision(store, "tiny", published.revision)
    with pytest.raises(PreconditionFailed, match="held by prod"):
        care.delete_model(store, "tiny")
    catalogue.hold(store, "tiny", published.revision, "prod", until=datetime.now(UTC) - timedelta(hours=1))
    assert care.delete_revision(store, "tiny", published.revision) == published.bytes
    with pytest.raises(ObjectMissing):
        catalogue.resolve(store, "tiny", published.revision)
    assert list(store.list(layout.revision_prefix("tiny", published.revision))) == []
    assert verify(store, "tiny", deep=True).ok
    assert catalogue.delete_ref(store, "tiny", "main").revision == second.revision
    care.delete_model(store, "tiny")
    assert [info.key for info in store.list()] == ["tiny/leases/prod.json"] or list(store.list()) == []


def test_gc_takes_what_nobody_names_and_nothing_else(store: Store, tmp_path: Path, published: PublishResult) -> None:
    second = publish(open_source(str(checkpoint(tmp_path / "b", seed=1))), store, "tiny")
    third = publish(open_source(str(checkpoint(tmp_path / "c", seed=2))), store, "tiny")
    catalogue.hold(store, "tiny", second.revision, "prod", until=datetime.now(UTC) + timedelta(hours=1))
    store.put(layout.file_key("tiny", "0" * 16, "half.safetensors"), b"torn")
    store.put(layout.upload_key("tiny", "0" * 16, "half.safetensors"), b"{}")
    store.put(key_of(third, "stray.bin"), b"?")
    assert care.plan_gc(store, grace=3600) == [], "everything is young"
    plan = care.plan_gc(store, grace=0)
    assert {(item.kind, item.revision) for item in plan} == {
        ("revision", published.revision),
        ("leftover", "0" * 16),
        ("extra", third.revision),
    }
    assert len(care.collect(store, plan)) == 3
    assert {info.revision for info in catalogue.list_revisions(store, "tiny")} == {second.revision, third.revision}
    assert verify(store, "tiny", second.revision, deep=True).ok
    assert verify(store, "tiny", third.revision, deep=True).ok
    assert care.plan_gc(store, grace=0) == []


def test_gc_looks_again_before_it_acts(store: Store, tmp_path: Path, published: PublishResult) -> None:
    publish(open_source(str(checkpoint(tmp_path / "b", seed=1))), store, "tiny")
    plan = care.plan_gc(store, grace=0)
    assert [item.revision for item in plan] == [published.revision]
    catalogue.write_ref(store, "tiny", "rollback", published.revision, expected=None)
    assert care.collect(store, plan) == []
    assert verify(store, "tiny", "rollback", deep=True).ok
    leftover = layout.file_key("tiny", "0" * 16, "half.safetensors")
    store.put(leftover, b"torn")
    plan = [replace(item, age=item.age + 60) for item in care.plan_gc(store, grace=0)]  # as if it were touched since
    assert care.collect(store, plan) == []
    assert store.head(leftover).size == 4


def test_abandoned_uploads_are_found_and_aborted(s3_store: Store, folder: Path) -> None:

    client = s3_store._uploads._s3()
    key = layout.file_key("tiny", "0" * 16, SHARD)
    made = client.create_multipart_upload(Bucket="models", Key=f"{s3_store.uri.prefix}/{key}")
    client.upload_part(
        Bucket="models", Key=f"{s3_store.uri.prefix}/{key}", UploadId=made["UploadId"], PartNumber=1, Body=b"x" * 100
    )
    assert [(item.kind, item.keys) for item in care.plan_gc(s3_store, grace=0)] == [("upload", (key,))]
    assert care.plan_gc(s3_store, grace=3600) == []
    care.collect(s3_store, care.plan_gc(s3_store, grace=0))
    assert s3_store.list_uploads() == []
    s3_store.abort_upload(Upload(key, made["UploadId"], 0))


def test_from_one_store_to_another(s3_store: Store, file_store: Store, folder: Path) -> None:
    from onecopy.registry.sources.stored import StoredSource

    first = publish(open_source(str(folder)), file_store, "tiny")
    copied = publish(StoredSource(f"{file_store.uri}#tiny", store=file_store), s3_store, "renamed")
    assert (copied.revision, copied.bytes_sent) == (first.revision, first.bytes)
    assert verify(s3_store, "renamed", deep=True).ok


def test_a_copy_within_one_service_sends_nothing(s3_server: DevServer, folder: Path, tmp_path: Path) -> None:
    """By the command: endpoint and region stand in onecopy.toml alone, and hold for the source too."""
    secret = s3_server.options.secret_access_key
    assert secret is not None
    base = s3_server.uri.child(f"copy-{tmp_path.name}")
    first = publish(open_source(str(folder)), open_store(base.child("a"), s3_server.options), "tiny")
    (tmp_path / "onecopy.toml").write_text(f'[store]\nuri = "{base}/b"\nendpoint = "{s3_server.endpoint}"\n')
    env = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "ONECOPY_"))}
    env |= {"AWS_ACCESS_KEY_ID": str(s3_server.options.access_key_id), "AWS_SECRET_ACCESS_KEY": secret.reveal()}
    argv = [sys.executable, "-m", "onecopy", "model", "publish", f"{base}/a#tiny", "--name", "copy", "--json"]
    run = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    small = sum(file.size for file in first.manifest.files if not file.path.endswith(".safetensors"))
    assert json.loads(run.stdout)["bytes_sent"] == small
    target = open_store(base.child("b"), s3_server.options)
    assert json.loads(run.stdout)["revision"] == first.revision
    assert verify(target, "copy", deep=True).problems == ()
    crcs = [[file.crc64nvme for file in m.files] for m in (first.manifest, catalogue.resolve(target, "copy"))]
    assert crcs[0] == crcs[1]
    assert any(crcs[0])
