"""Publishing a folder, on real stores: what a reader finds, what a second run sends, what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import xxhash
from tests.checkpoints import checkpoint

from onecopy.core.errors import IntegrityError, ModelError, ObjectMissing, PreconditionFailed, SourceChanged, UsageError
from onecopy.core.units import MiB
from onecopy.registry import catalogue
from onecopy.registry.publish import publish
from onecopy.registry.sources import open_source
from onecopy.registry.transfer import BUFFERS, lanes, part_size
from onecopy.storage import layout
from onecopy.storage.store import Store
from onecopy.weights.manifest import RANGE_SIZE

BIG = 6 * MiB  # elements of a shard: 12 MiB, so two ranges and a multipart upload


def test_a_reader_finds_every_byte_and_every_digest(store: Store, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", elements=BIG)
    result = publish(open_source(str(folder)), store, "tiny")
    manifest = catalogue.resolve(store, "tiny")
    assert manifest == result.manifest
    assert manifest.revision == result.revision
    assert result.bytes == result.bytes_sent == manifest.total_bytes
    assert "README.md" not in [file.path for file in manifest.files]
    for file in manifest.files:
        data = (folder / file.path).read_bytes()
        info = store.head(layout.file_key("tiny", manifest.revision, file.path))
        assert (info.etag, info.size, file.size) == (file.etag, len(data), len(data))
        assert hashlib.sha256(data).hexdigest() == file.sha256
        for index in range(file.range_count):
            start, end = index * RANGE_SIZE, min((index + 1) * RANGE_SIZE, file.size)
            read = store.get_range(
                layout.file_key("tiny", manifest.revision, file.path), start, end, if_match=file.etag
            )
            assert bytes(read) == data[start:end]
            assert file.range_digest(index) == xxhash.xxh3_128_digest(data[start:end])
    assert manifest.weights is not None
    assert manifest.weights.parameters == 2 * BIG
    assert str(tmp_path) not in store.get(layout.manifest_key("tiny", manifest.revision))[0].decode()
    assert list(store.list(layout.uploads_prefix("tiny", manifest.revision))) == []


def test_a_second_run_sends_nothing(store: Store, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", elements=BIG)
    first = publish(open_source(str(folder)), store, "tiny")
    again = publish(open_source(str(folder)), store, "tiny")
    assert (again.revision, again.bytes_sent, again.manifest) == (first.revision, 0, first.manifest)


def test_other_content_is_another_revision_and_moves_the_ref(store: Store, tmp_path: Path) -> None:
    first = publish(open_source(str(checkpoint(tmp_path / "a"))), store, "tiny")
    second = publish(open_source(str(checkpoint(tmp_path / "b", seed=1))), store, "tiny")
    assert second.moved_from == first.revision != second.revision
    assert catalogue.resolve(store, "tiny").revision == second.revision
    assert catalogue.resolve(store, "tiny", first.revision) == first.manifest
    listed = list(catalogue.list_revisions(store, "tiny"))
    assert {(info.revision, info.refs) for info in listed} == {(first.revision, ()), (second.revision, ("main",))}


def test_a_lost_file_is_sent_again_and_nothing_else(store: Store, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", elements=BIG)
    first = publish(open_source(str(folder)), store, "tiny")
    lost = first.manifest.file("model-00001-of-00002.safetensors")
    store.delete([layout.file_key("tiny", first.revision, lost.path)])
    again = publish(open_source(str(folder)), store, "tiny")
    assert (again.revision, again.bytes_sent) == (first.revision, lost.size)
    etag = store.head(layout.file_key("tiny", first.revision, lost.path)).etag
    assert catalogue.resolve(store, "tiny").file(lost.path).etag == etag


def test_a_damaged_file_is_replaced(store: Store, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    first = publish(open_source(str(folder)), store, "tiny")
    damaged = first.manifest.file("model-00002-of-00002.safetensors")
    key = layout.file_key("tiny", first.revision, damaged.path)
    store.put(key, bytes(damaged.size))
    again = publish(open_source(str(folder)), store, "tiny")
    assert again.bytes_sent == damaged.size
    assert store.get(key)[0] == (folder / damaged.path).read_bytes()


def test_a_ref_that_moved_meanwhile_is_left_alone(store: Store, tmp_path: Path) -> None:
    first = publish(open_source(str(checkpoint(tmp_path / "a"))), store, "tiny")
    second = publish(open_source(str(checkpoint(tmp_path / "b", seed=1))), store, "tiny")
    stale = catalogue.Ref(revision=first.revision, updated=first.manifest.created, name="main", etag='"stale"')
    with pytest.raises(PreconditionFailed, match=second.revision):
        catalogue.write_ref(store, "tiny", "main", first.revision, expected=stale)
    with pytest.raises(PreconditionFailed):
        catalogue.write_ref(store, "tiny", "main", first.revision, expected=None)
    assert catalogue.resolve(store, "tiny").revision == second.revision
    with pytest.raises(ObjectMissing):
        catalogue.write_ref(store, "tiny", "other", "0" * 16, expected=None)


def test_a_source_that_changes_commits_nothing(store: Store, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    source = open_source(str(folder))
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"x" * 20_000)
    with pytest.raises(SourceChanged):
        publish(source, store, "tiny")
    assert list(catalogue.list_revisions(store, "tiny")) == []


def tear(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])


def overlap(folder: Path) -> None:
    header = json.dumps(
        {
            "a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
            "b": {"dtype": "U8", "shape": [8], "data_offsets": [4, 12]},
        }
    ).encode()
    (folder / "model-00002-of-00002.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (tear, "model-00002-of-00002.safetensors: torn"),
        (overlap, "model-00002-of-00002.safetensors: tensor b"),
        (lambda f: (f / "model-00001-of-00002.safetensors").unlink(), "model-00001-of-00002.safetensors, which is not"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
        (lambda f: (f / "model-00001-of-00002.safetensors").write_bytes(b"PK\3\4" * 10), "torn or no safetensors"),
        (lambda f: shutil.rmtree(f) or f.mkdir() or (f / "config.json").write_text("{}"), "no safetensors file"),
    ],
)
def test_a_checkpoint_that_cannot_be_served_is_refused_before_anything_is_sent(
    file_store: Store, tmp_path: Path, damage: object, named: str
) -> None:
    folder = checkpoint(tmp_path / "model")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(ModelError, match=named):
        publish(open_source(str(folder)), file_store, "tiny")
    assert list(file_store.list()) == []


def test_names(file_store: Store, tmp_path: Path) -> None:
    source = open_source(str(checkpoint(tmp_path / "model")))
    for name in ("Upper", "a/b", "../x", "", "a" * 64):
        with pytest.raises(UsageError):
            publish(source, file_store, name)
    with pytest.raises(UsageError):
        publish(source, file_store, "tiny", ref="0123456789abcdef")
    with pytest.raises(ObjectMissing, match="no ref main of model tiny"):
        catalogue.resolve(file_store, "tiny")
    file_store.put(layout.manifest_key("tiny", "0" * 16), b'{"format": 2}')
    with pytest.raises(IntegrityError, match="not a manifest that this version reads"):
        catalogue.resolve(file_store, "tiny", "0" * 16)


@pytest.mark.parametrize("size", [0, 1, RANGE_SIZE, 80 * 10**9, 84 * 10**9, 500 * 10**9, 5 * 2**40])
def test_parts(size: int) -> None:
    part = part_size(size)
    assert part % RANGE_SIZE == 0
    assert -(-size // part) <= 10_000
    for count in (1, 3, 50):
        found = lanes([size] * count)
        assert found.files >= 1 <= found.ahead
        assert found.in_flight >= 1
        if size <= 800 * 10**9:
            assert found.files * (found.ahead + found.in_flight + 1) * part <= BUFFERS
