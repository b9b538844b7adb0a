"""The store protocol, the same for every backend, against real servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onecopy.core.errors import ObjectMissing, PreconditionFailed
from onecopy.core.units import MiB
from onecopy.storage.store import Store

PART = 5 * MiB


def test_put_get_head(any_store: Store) -> None:
    put = any_store.put("a/b.bin", b"hello")
    data, info = any_store.get("a/b.bin")
    assert (data, info.key, info.size, info.etag) == (b"hello", "a/b.bin", 5, put.etag)
    head = any_store.head("a/b.bin")
    assert (head.etag, head.size, head.key) == (put.etag, 5, "a/b.bin")
    assert head.modified > 1.7e9
    assert any_store.put("empty", b"").size == 0
    assert any_store.get("empty")[0] == b""


def test_what_is_missing(any_store: Store) -> None:
    for call in (
        lambda: any_store.head("no"),
        lambda: any_store.get("no"),
        lambda: any_store.get_range("no", 0, 1),
    ):
        with pytest.raises(ObjectMissing, match="no"):
            call()
    any_store.delete(["no"])
    assert list(any_store.list("no")) == []
    assert list(any_store.list_folders("no")) == []


def test_create_only(any_store: Store) -> None:
    any_store.put("k", b"first", create=True)
    with pytest.raises(PreconditionFailed):
        any_store.put("k", b"second", create=True)
    assert any_store.get("k")[0] == b"first"


def test_replace_only_what_was_seen(any_store: Store) -> None:
    first = any_store.put("k", b"first")
    second = any_store.put("k", b"second", if_match=first.etag)
    with pytest.raises(PreconditionFailed):
        any_store.put("k", b"third", if_match=first.etag)
    assert any_store.get("k")[0] == b"second"
    assert any_store.head("k").etag == second.etag
    with pytest.raises((PreconditionFailed, ObjectMissing)):
        any_store.put("absent", b"x", if_match=first.etag)


def test_ranges_and_their_condition(any_store: Store) -> None:
    etag = any_store.put("k", bytes(range(256))).etag
    assert bytes(any_store.get_range("k", 10, 20)) == bytes(range(10, 20))
    assert bytes(any_store.get_range("k", 250, 256, if_match=etag)) == bytes(range(250, 256))
    any_store.put("k", bytes(range(255, -1, -1)))
    with pytest.raises(PreconditionFailed):
        any_store.get_range("k", 0, 10, if_match=etag)


def test_a_stream_in_parts(any_store: Store) -> None:
    def chunks() -> Iterator[bytes]:
        for index in range(3):
            yield bytes([index]) * PART
        yield b"the end"

    counts: list[int] = []
    put = any_store.put_stream("deep/er/k", chunks(), part_size=PART, concurrency=2, sent=counts.append)
    assert put.size == sum(counts) == 3 * PART + 7
    head = any_store.head("deep/er/k")
    assert (head.etag, head.size) == (put.etag, put.size)
    assert bytes(any_store.get_range("deep/er/k", PART - 1, PART + 1, if_match=put.etag)) == b"\0\1"


def test_a_stream_that_breaks_leaves_nothing(any_store: Store) -> None:
    class Broken(Exception):
        pass

    def chunks() -> Iterator[bytes]:
        yield bytes(PART)
        yield bytes(PART)
        with pytest.raises(ObjectMissing):
            any_store.head("k")  # a call into the store from within the stream
        raise Broken

    with pytest.raises(Broken):
        any_store.put_stream("k", chunks(), part_size=PART)
    assert list(any_store.list()) == []


def test_a_stream_that_must_create(any_store: Store) -> None:
    any_store.put("k", b"there")
    with pytest.raises(PreconditionFailed):
        any_store.put_stream("k", iter([bytes(PART), b"x"]), part_size=PART, create=True)
    assert any_store.get("k")[0] == b"there"
    any_store.put_stream("k", iter([bytes(PART), b"x"]), part_size=PART)
    assert any_store.head("k").size == PART + 1


def test_listing(any_store: Store) -> None:
    for key in ("m/a/1", "m/a/2", "m/b/1", "mm/x", "top"):
        any_store.put(key, key.encode())
    assert {info.key: info.size for info in any_store.list("m")} == {"m/a/1": 5, "m/a/2": 5, "m/b/1": 5}
    assert len(list(any_store.list())) == 5
    assert sorted(any_store.list_folders()) == ["m", "mm"]
    assert sorted(any_store.list_folders("m")) == ["a", "b"]


def test_listing_of_more_than_a_page(s3_store: Store) -> None:
    for index in range(1005):
        s3_store.put(f"many/{index:04}", b"")
    assert [info.key for info in s3_store.list("many")] == [f"many/{index:04}" for index in range(1005)]
    s3_store.delete([f"many/{index:04}" for index in range(1000)])
    assert len(list(s3_store.list("many"))) == 5


def test_delete(any_store: Store) -> None:
    for key in ("a", "b", "sub/c"):
        any_store.put(key, b"1")
    any_store.delete(["a", "never was", "b"])
    assert [info.key for info in any_store.list()] == ["sub/c"]


def test_keys_that_need_quoting(any_store: Store) -> None:
    for key in ("with space", "plus+sign", "a=b&c", "ünï/çødé", "per%20cent"):
        any_store.put(key, key.encode())
        assert any_store.get(key)[0] == key.encode()
    assert len(list(any_store.list())) == 5
