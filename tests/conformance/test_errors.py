"""What goes wrong with a store, told apart by the answers of real servers: each its class, its words and a next step."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.checkpoints import checkpoint
from tests.conformance.conftest import Aws
from tests.conformance.refusing import Refusing

from onecopy.core.errors import (
    BucketMissing,
    CredentialsInvalid,
    ObjectMissing,
    PermissionDenied,
    RateLimited,
    StoreError,
    StoreFull,
    StoreUnreachable,
    WrongRegion,
)
from onecopy.core.redact import Secret
from onecopy.registry import catalogue
from onecopy.registry.publish import publish
from onecopy.registry.sources import open_source
from onecopy.storage.devserver import DevServer
from onecopy.storage.objectstore import StoreOptions, check_store, open_store
from onecopy.storage.store import Store

ALL = "arn:aws:s3:::models"
CALLS: list[tuple[str, Callable[[Store], object]]] = [
    ("head", lambda store: store.head("k")),
    ("get", lambda store: store.get("k")),
    ("range", lambda store: store.get_range("k", 0, 1)),
    ("put", lambda store: store.put("k", b"x")),
    ("create", lambda store: store.put("k", b"x", create=True)),
    ("stream", lambda store: store.put_stream("k", iter([bytes(6 << 20)]), part_size=5 << 20)),
    ("list", lambda store: list(store.list())),
    ("folders", lambda store: store.list_folders()),
    ("delete", lambda store: store.delete(["k"])),
]
every_call = pytest.mark.parametrize("call", [call for _, call in CALLS], ids=[name for name, _ in CALLS])


def quick(options: StoreOptions) -> StoreOptions:
    return replace(options, retries=1, request_timeout=5)


@every_call
def test_no_permission(aws: Aws, call: Callable[[Store], object]) -> None:
    open_store("s3://models/kept", aws.root()).put("k", b"there")
    with pytest.raises(PermissionDenied, match=r"no permission to \w+ s3://models/kept") as caught:
        call(open_store("s3://models/kept", aws.user([])))
    assert caught.value.hint


def test_read_access_to_one_prefix_is_enough_to_read_it_and_nothing_else(aws: Aws, tmp_path: Path) -> None:
    root = open_store("s3://models/scoped", aws.root())
    done = publish(open_source(str(checkpoint(tmp_path / "m"))), root, "mine")
    publish(open_source(str(checkpoint(tmp_path / "n", seed=1))), root, "theirs")
    reader = open_store(
        "s3://models/scoped",
        aws.user(
            [
                {"Effect": "Allow", "Action": "s3:GetObject", "Resource": f"{ALL}/scoped/mine/*"},
                {
                    "Effect": "Allow",
                    "Action": "s3:ListBucket",
                    "Resource": ALL,
                    "Condition": {"StringLike": {"s3:prefix": ["scoped/mine/*"]}},
                },
            ]
        ),
    )
    assert catalogue.resolve(reader, "mine") == done.manifest
    with pytest.raises(PermissionDenied, match="scoped/theirs"):
        catalogue.resolve(reader, "theirs")
    with pytest.raises(PermissionDenied):
        reader.put("mine/refs/main.json", b"{}")
    with pytest.raises(PermissionDenied):
        publish(open_source(str(tmp_path / "n")), reader, "mine")


@pytest.mark.parametrize(
    "call",
    [call for name, call in CALLS if name != "delete"],  # deleting what is not there is no error anywhere
    ids=[name for name, _ in CALLS if name != "delete"],
)
@pytest.mark.parametrize("server", ["s3", "ministack"])
def test_bucket_missing(request: pytest.FixtureRequest, server: str, call: Callable[[Store], object]) -> None:
    if server == "s3":
        found: DevServer = request.getfixturevalue("s3_server")
        options = quick(found.options)
    else:
        options = request.getfixturevalue("aws").root()
    store = open_store("s3://no-such-bucket-here", options)
    # An answer without a body (HEAD) does not say what is missing
    with pytest.raises((BucketMissing, ObjectMissing, PermissionDenied)) as caught:
        call(store)
    assert caught.type is BucketMissing or "no-such-bucket-here/k" in caught.value.message


def test_bucket_missing_by_name(s3_server: DevServer) -> None:
    store = open_store("s3://no-such-bucket-here", quick(s3_server.options))
    for call in (lambda: check_store(store), lambda: store.put("k", b"x", create=True), lambda: store.get("k")):
        with pytest.raises(BucketMissing, match="no-such-bucket-here") as caught:
            call()
        assert caught.value.hint


@every_call
def test_wrong_keys(s3_server: DevServer, call: Callable[[Store], object]) -> None:
    for options in (
        replace(quick(s3_server.options), secret_access_key=Secret("wrong")),
        replace(quick(s3_server.options), access_key_id="AKIANOBODY"),
    ):
        with pytest.raises((CredentialsInvalid, PermissionDenied)) as caught:  # HEAD has no body to say which
            call(open_store(s3_server.uri, options))
        assert "wrong" not in caught.value.message
        assert caught.value.hint


def test_wrong_keys_by_name(s3_server: DevServer) -> None:
    for options in (
        replace(quick(s3_server.options), secret_access_key=Secret("wrong")),
        replace(quick(s3_server.options), access_key_id="AKIANOBODY"),
    ):
        with pytest.raises(CredentialsInvalid, match="refused the credentials"):
            check_store(open_store(s3_server.uri, options))


@every_call
def test_no_answer(call: Callable[[Store], object]) -> None:
    options = StoreOptions("http://127.0.0.1:9", "us-east-1", "a", Secret("b"), retries=0, request_timeout=2)
    with pytest.raises(StoreUnreachable, match="no answer") as caught:
        call(open_store("s3://models/x", options))
    assert caught.value.hint


XML = '<?xml version="1.0"?><Error><Code>{}</Code><Message>{}</Message></Error>'
# Answers of AWS that no server here gives, word for word as its API reference has them
ANSWERS = [
    (400, "ExpiredToken", "The provided token has expired.", CredentialsInvalid, "expired"),
    (403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.", CredentialsInvalid, "clock"),
    (301, "PermanentRedirect", "The bucket you are attempting to access must be addressed using the specified endpoint.", WrongRegion, "region"),
    (400, "AuthorizationHeaderMalformed", "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-west-1'", WrongRegion, "eu-west-1"),
    (503, "SlowDown", "Please reduce your request rate.", RateLimited, "limiting"),
    (507, "XMinioStorageFull", "Storage backend has reached its minimum free drive threshold.", StoreFull, "full"),
    (403, "QuotaExceeded", "The quota is exceeded", StoreFull, "full"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "code", "text", "kind", "word"), ANSWERS, ids=[answer[1] for answer in ANSWERS])
def test_answers_of_aws(status: int, code: str, text: str, kind: type[StoreError], word: str) -> None:
    with Refusing(status, XML.format(code, text)) as server:
        options = StoreOptions(server.endpoint, "us-east-1", "a", Secret("b"), retries=1, request_timeout=5)
        for call in (lambda s: s.get("k"), lambda s: s.put("k", b"x"), lambda s: list(s.list())):
            with pytest.raises(kind) as caught:
                call(open_store("s3://models/x", options))
            assert word in f"{caught.value.message} {caught.value.hint}"


def test_keys_from_a_profile(s3_server: DevServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = s3_server.options.secret_access_key
    assert secret is not None
    (tmp_path / "credentials").write_text(
        f"[good]\naws_access_key_id={s3_server.options.access_key_id}\naws_secret_access_key={secret.reveal()}\n"
        "[bad]\naws_access_key_id=nobody\naws_secret_access_key=nothing\n"
    )
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    options = StoreOptions(s3_server.endpoint, retries=0)
    monkeypatch.setenv("AWS_PROFILE", "good")
    open_store(s3_server.uri, options).put("by-profile", b"x")
    monkeypatch.setenv("AWS_PROFILE", "bad")
    with pytest.raises(CredentialsInvalid):
        check_store(open_store(s3_server.uri, options))
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(CredentialsInvalid, match="absent"):
        open_store(s3_server.uri, options)


def test_every_part_carries_its_digest() -> None:
    with Refusing(403, XML.format("AccessDenied", "no")) as server:
        store = open_store("s3://models/x", StoreOptions(server.endpoint, "us-east-1", "a", Secret("b"), retries=0))
        with pytest.raises(PermissionDenied):
            store.put("k", b"bytes")
    assert server.headers["x-amz-content-sha256"] == hashlib.sha256(b"bytes").hexdigest()


def test_a_full_disk() -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs takes root")
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "small", folder], check=False).returncode != 0:
            pytest.skip("this machine does not let root mount a tmpfs")
        try:
            store = open_store(f"file://{folder}")
            for call in (
                lambda: store.put("k", bytes(4 << 20)),
                lambda: store.put_stream("k", iter([bytes(1 << 20)] * 4), part_size=1 << 20),
            ):
                with pytest.raises(StoreFull, match="full"):
                    call()
            assert list(store.list()) == []
        finally:
            subprocess.run(["umount", folder], check=True)


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store/model").write_text("a file where a folder is needed")
    with pytest.raises(StoreError, match="model"):
        open_store(f"file://{tmp_path}/store").put_stream("model/k", iter([b"x"]), part_size=5 << 20)


def test_the_clock_of_refs_is_utc(file_store: Store, tmp_path: Path) -> None:
    publish(open_source(str(checkpoint(tmp_path / "m"))), file_store, "m")
    ref = catalogue.read_ref(file_store, "m", "main")
    assert ref is not None
    assert abs((datetime.now(UTC) - ref.updated).total_seconds()) < 60
