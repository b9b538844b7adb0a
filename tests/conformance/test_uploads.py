"""Large objects on S3: an upload that outlives its writer, checksums that the store keeps, copies inside the store."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import suppress

import awscrt.checksums
import pytest

from onecopy.core.errors import IntegrityError, PreconditionFailed, SourceError
from onecopy.core.units import MiB
from onecopy.storage.devserver import DevServer
from onecopy.storage.objectstore import open_store
from onecopy.storage.store import Store

PART = 5 * MiB
PIECES = [bytes([index]) * PART for index in range(4)] + [b"the end"]


@pytest.fixture(params=["s3", "ministack"])
def s3(request: pytest.FixtureRequest) -> Store:
    return request.getfixturevalue(f"{request.param}_store")


def cut(count: int, error: BaseException) -> Iterator[bytes]:
    yield from PIECES[:count]
    raise error


def checksum(data: bytes) -> str:
    return base64.b64encode(awscrt.checksums.crc64nvme(data).to_bytes(8, "big")).decode()


def test_a_cut_upload_is_gone_on_with(s3: Store) -> None:
    with pytest.raises(SourceError):
        s3.put_stream("m/k", cut(3, SourceError("the hub is away")), part_size=PART, concurrency=1)
    assert [upload.key for upload in s3.list_uploads("m/")] == ["m/k"]
    assert list(s3.list()) == []
    counts: list[int] = []
    put = s3.put_stream("m/k", iter(PIECES), part_size=PART, create=True, sent=counts.append)
    assert sorted(counts) == [len(PIECES[-1]), PART], "the parts that were there are not sent again"
    assert s3.get("m/k")[0] == b"".join(PIECES)
    assert s3.head("m/k").etag == put.etag
    assert put.crc64nvme == checksum(b"".join(PIECES))
    assert s3.list_uploads() == []


def test_parts_with_other_bytes_are_sent_again(s3: Store) -> None:
    with suppress(KeyboardInterrupt):
        s3.put_stream("k", cut(4, KeyboardInterrupt()), part_size=PART, concurrency=1)
    counts: list[int] = []
    pieces = [PIECES[0], b"x" * PART, PIECES[2], b"y" * PART]
    s3.put_stream("k", iter(pieces), part_size=PART, sent=counts.append)
    assert counts == [PART, PART]
    assert s3.get("k")[0] == b"".join(pieces)


def test_wrong_bytes_leave_no_upload(s3: Store) -> None:
    with pytest.raises(IntegrityError):
        s3.put_stream("k", cut(2, IntegrityError("not what the hub says")), part_size=PART)
    assert s3.list_uploads() == []


def test_creation_is_refused_at_completion_and_not_before_alone(s3_store: Store) -> None:
    """The other object comes after the last look: the store itself must refuse."""
    uploads = s3_store._uploads  # type: ignore[attr-defined]
    upload_id, _ = uploads._begin("k")
    parts = [uploads._part("k", upload_id, 1, b"ours", None, lambda _: None)[0]]
    s3_store.put("k", b"theirs")
    uploads._look = lambda key: None
    with pytest.raises(PreconditionFailed):
        uploads._complete("k", upload_id, parts, 4, checksum(b"ours"), create=True)
    assert s3_store.get("k")[0] == b"theirs"


def test_an_answer_that_was_lost_is_no_other_publisher(s3_store: Store) -> None:
    s3_store.put_stream("k", iter(PIECES), part_size=PART, create=True)
    put = s3_store.put_stream("k", iter(PIECES), part_size=PART, create=True)
    assert put.etag == s3_store.head("k").etag
    assert s3_store.list_uploads() == []


def test_the_store_keeps_the_checksum(s3_store: Store, file_store: Store) -> None:
    s3_store.put_stream("k", iter(PIECES), part_size=PART)
    assert s3_store.checksum("k") == checksum(b"".join(PIECES))
    assert s3_store.checksum("absent") is None
    assert file_store.checksum("k") is None


def test_a_copy_stays_in_the_store(s3_server: DevServer, s3_store: Store, file_store: Store) -> None:
    put = s3_store.put_stream("k", iter(PIECES), part_size=PART)
    other = open_store(f"{s3_store.uri}-copy", s3_server.options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onecopy.storage.uploads.COPY_PART", 6 * MiB)
        made = other.copy_from(s3_store, "k", "to/k", size=put.size, if_match=put.etag, create=True)
        assert made is not None
        assert (made.size, made.crc64nvme) == (put.size, put.crc64nvme)
        assert other.head("to/k").etag == made.etag
        assert other.get("to/k")[0] == b"".join(PIECES)
        with pytest.raises(PreconditionFailed):
            other.copy_from(s3_store, "k", "to/k", size=put.size, if_match=put.etag, create=True)
    assert other.copy_from(s3_store, "k", "to/l", size=put.size, if_match='"another"') is None
    assert other.copy_from(file_store, "k", "to/l", size=put.size) is None
    assert other.list_uploads() == []
