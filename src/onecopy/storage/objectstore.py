"""`Store` on obstore (Rust object_store): S3 and S3-compatible, GCS, Azure Blob, a local folder.

obstore's errors are translated here and nowhere else. It has few exception classes, so the HTTP status and the S3
error code are read from the text; `tests/conformance` holds the texts to real servers.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import os
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import obstore
import obstore.exceptions as oe
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from onecopy.config.schema import StoreConfig
from onecopy.core import environment
from onecopy.core.errors import (
    BucketMissing,
    ConfigError,
    CredentialsInvalid,
    IntegrityError,
    ObjectMissing,
    PermissionDenied,
    PreconditionFailed,
    RateLimited,
    StoreError,
    StoreFailing,
    StoreFull,
    StoreUnreachable,
    WrongRegion,
)
from onecopy.core.redact import Secret, redact
from onecopy.storage.direct import DirectReader
from onecopy.storage.store import ObjectInfo, RangeBody, Store, Upload, WholeBody, ignore
from onecopy.storage.uploads import Uploads
from onecopy.storage.uri import StoreUri

if TYPE_CHECKING:
    from typing_extensions import Buffer


_SIGNED_FOR = timedelta(minutes=15)
"""Each request is signed for itself; this only has to outlast the way to the server and a clock that is a little off."""
_SILENCE = 10.0
"""Seconds without a byte after which a range is asked for again: S3 answers within a second or not at all."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to reach a store. Everything unset follows the cloud's own chain (environment, files, instance identity).

    connect_timeout, request_timeout: seconds. retries: tries after the first of one request.
    """

    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: Secret | None = field(default=None, repr=False)
    ca_file: Path | None = None
    connect_timeout: float = 5.0
    request_timeout: float = 60.0
    retries: int = 4


_INSTANCE_METADATA = "/latest/api/token"


def open_store(uri: StoreUri | str, options: StoreOptions | None = None) -> Store:
    """A `Store` for an address. No call is made yet: use `check_store` to see whether it answers."""
    parsed = StoreUri.parse(uri) if isinstance(uri, str) else uri
    return ObjectStore(parsed, options or StoreOptions())


def open_configured(config: StoreConfig) -> Store:
    """The store that the configuration names. Raises ConfigError when it names none."""
    if config.uri is None:
        raise ConfigError(
            "no store is named", hint="--store s3://bucket/prefix, ONECOPY_STORE, or store.uri in onecopy.toml"
        )
    return open_store(config.uri, configured_options(config))


def configured_options(config: StoreConfig) -> StoreOptions:
    return StoreOptions(endpoint=config.endpoint, region=config.region, ca_file=config.ca_file)


def check_store(store: Store) -> None:
    """One cheap listing. Raises the StoreError that says what is wrong: unreachable, credentials, bucket, permission."""
    store.list_folders()


class ObjectStore:
    """See `open_store`."""

    def __init__(self, uri: StoreUri, options: StoreOptions) -> None:
        self._uri, self.options = uri, options
        self.endpoint = _endpoint(options)
        self.region = _region(options)
        self._store = _make(uri, options)
        self._direct = self._make_direct()
        self._uploads = self._make_uploads()
        self._once: Any = None  # without retries; made when first needed

    @property
    def uri(self) -> StoreUri:
        return self._uri

    def head(self, key: str) -> ObjectInfo:
        with self._translated("read", key):
            return _info(obstore.head(self._store, key))

    def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        with self._translated("read", key):
            result = obstore.get(self._store, key)
            return bytes(result.bytes()), _info(result.meta)

    def get_range(self, key: str, start: int, end: int, *, if_match: str | None = None) -> Buffer:
        return self._get_range(self._store, key, start, end, if_match)

    @contextmanager
    def open_range(
        self, key: str, start: int, end: int, *, if_match: str | None = None, timeout: float = 60.0
    ) -> Iterator[RangeBody]:
        if self._direct is not None:
            with self._direct.open(key, start, end, if_match, timeout) as body:
                yield body
            return
        if self._once is None:
            self._once = _make(self._uri, replace(self.options, retries=0))
        yield WholeBody(self._get_range(self._once, key, start, end, if_match))

    def release(self) -> None:
        if self._direct is not None:
            self._direct.close()

    def _make_direct(self) -> DirectReader | None:
        """None where the plain way does not do: other clouds, a proxy, requests that are not to be signed."""
        if self._uri.scheme != "s3" or environment.read("AWS_SKIP_SIGNATURE") or _proxied(self.endpoint):
            return None

        def sign(key: str) -> str:
            with self._translated("read", key):
                return obstore.sign(self._store, "GET", key, _SIGNED_FOR)

        return DirectReader(
            self._uri,
            sign,
            lambda error, key: translate(error, "read", self._uri, key),
            ca_file=self.options.ca_file,
            connect_timeout=self.options.connect_timeout,
            silence=min(_SILENCE, self.options.request_timeout),
        )

    def _make_uploads(self) -> Uploads | None:
        if self._uri.scheme != "s3":
            return None
        return Uploads(
            self._uri,
            self.options,
            endpoint=self.endpoint,
            region=self.region,
            proxied=_proxied(self.endpoint),
            explain=lambda error, action, key: translate(error, action, self._uri, key),
        )

    def _get_range(self, store: Any, key: str, start: int, end: int, if_match: str | None) -> Buffer:
        with self._translated("read", key):
            options: Any = {"range": (start, end)}
            if if_match is not None:
                options["if_match"] = if_match
            data = obstore.get(store, key, options=options).bytes()
        if len(data) != end - start:
            raise IntegrityError(f"{self._uri.child(key)}: asked for bytes {start}–{end}, got {len(data)}")
        return cast("Buffer", data)

    def put(self, key: str, data: Buffer, *, create: bool = False, if_match: str | None = None) -> ObjectInfo:
        if if_match is not None and self._uri.scheme == "file":
            return self._put_over(key, data, if_match)
        mode: Any = "create" if create else {"e_tag": if_match} if if_match else "overwrite"
        size = memoryview(data).nbytes
        with self._translated("write", key):
            result = obstore.put(self._store, key, cast(Any, data), mode=mode, use_multipart=False)
        return ObjectInfo(key, size, result["e_tag"], result["version"])

    def _put_over(self, key: str, data: Buffer, if_match: str) -> ObjectInfo:
        """A folder has no conditional replace: a lock on the folder makes one, for all who come through here."""
        folder = os.open(self._uri.bucket, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            try:
                there = self.head(key).etag
            except ObjectMissing:
                there = None
            if there != if_match:
                raise PreconditionFailed(f"{self._uri.child(key)}: another version is there")
            return self.put(key, data)
        finally:
            os.close(folder)

    def put_stream(
        self,
        key: str,
        chunks: Iterable[Buffer],
        *,
        part_size: int,
        concurrency: int = 4,
        create: bool = False,
        sent: Callable[[int], None] = ignore,
    ) -> ObjectInfo:
        if self._uploads is not None:
            return self._uploads.write(key, chunks, concurrency=concurrency, create=create, sent=sent)
        if self._uri.scheme == "file":
            return self._write_file(key, chunks, create=create, sent=sent)
        size = 0

        async def counted() -> AsyncIterator[Buffer]:
            nonlocal size
            held: Buffer | None = None
            for chunk in chunks:
                if held is not None:
                    yield held
                held = chunk
                size += memoryview(chunk).nbytes
                sent(memoryview(chunk).nbytes)
            if create:  # obstore cannot complete an upload conditionally: looked at as late as can be
                with suppress(oe.NotFoundError, FileNotFoundError):
                    await obstore.head_async(self._store, key)
                    raise PreconditionFailed(f"{self._uri.child(key)}: another version is there")
            if held is not None:
                yield held

        async def upload() -> Any:
            return await obstore.put_async(
                self._store,
                key,
                cast(Any, counted()),
                use_multipart=True,
                chunk_size=part_size,
                max_concurrency=concurrency,
            )

        # A plain iterator would be run on a thread of obstore's runtime, where a wait holds up every other transfer
        # and a call into obstore panics. Here `chunks` runs in the calling thread, under an event loop of its own.
        with self._translated("write", key):
            result = asyncio.run(upload())
        return ObjectInfo(key, size, result["e_tag"], result["version"])

    def _write_file(
        self, key: str, chunks: Iterable[Buffer], *, create: bool, sent: Callable[[int], None]
    ) -> ObjectInfo:
        """Beside its place, then linked (which refuses to replace) or renamed. obstore can only replace."""
        target = Path(self._uri.bucket, key)
        staged = target.with_name(f"{target.name}.{secrets.token_hex(6)}.partial")
        with self._translated("write", key):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with staged.open("xb", buffering=0) as file:
                    for chunk in chunks:
                        rest = memoryview(chunk)
                        while rest:
                            rest = rest[file.write(rest) :]
                        sent(memoryview(chunk).nbytes)
                if create:
                    os.link(staged, target)
                else:
                    staged.replace(target)
            finally:
                staged.unlink(missing_ok=True)
        return self.head(key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._translated("list", prefix):
            for page in cast("Iterator[Sequence[Any]]", obstore.list(self._store, prefix or None)):  # pyright: ignore[reportUnknownMemberType]
                for meta in page:
                    yield _info(meta)

    def list_folders(self, prefix: str = "") -> Sequence[str]:
        with self._translated("list", prefix):
            found = obstore.list_with_delimiter(self._store, prefix or None)["common_prefixes"]  # pyright: ignore[reportUnknownMemberType]
        return [path.rstrip("/").rsplit("/", 1)[-1] for path in found]

    def delete(self, keys: Sequence[str]) -> None:
        if not keys:
            return
        with self._translated("delete", keys[0]):
            try:
                obstore.delete(self._store, list(keys))
            except (oe.NotFoundError, FileNotFoundError):
                for key in keys:  # one was gone already: the rest must still go
                    with suppress(oe.NotFoundError, FileNotFoundError):
                        obstore.delete(self._store, key)

    def copy_from(
        self, source: Store, source_key: str, key: str, *, size: int, if_match: str | None = None, create: bool = False
    ) -> ObjectInfo | None:
        if self._uploads is None or not isinstance(source, ObjectStore) or not self._is_beside(source):
            return None
        place = {"Bucket": source.uri.bucket, "Key": source.uri.child(source_key).prefix}
        return self._uploads.copy(place, key, size=size, if_match=if_match, create=create)

    def _is_beside(self, other: ObjectStore) -> bool:
        """One service and one identity: this one can be asked to read there."""
        ours, theirs = self.options, other.options
        return (self._uri.scheme, self.endpoint, ours.access_key_id) == (
            other.uri.scheme,
            other.endpoint,
            theirs.access_key_id,
        )

    def checksum(self, key: str) -> str | None:
        return self._uploads.checksum(key) if self._uploads is not None else None

    def list_uploads(self, prefix: str = "") -> Sequence[Upload]:
        return self._uploads.list(prefix) if self._uploads is not None else []

    def abort_upload(self, upload: Upload) -> None:
        if self._uploads is not None:
            self._uploads.abort(upload)

    @contextmanager
    def _translated(self, action: str, key: str) -> Iterator[None]:
        try:
            yield
        except (oe.BaseError, OSError) as error:
            raise translate(error, action, self._uri, key) from error


def _info(meta: Any) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], meta["e_tag"], meta["version"], meta["last_modified"].timestamp())


def _endpoint(options: StoreOptions) -> str | None:
    return options.endpoint or environment.read("AWS_ENDPOINT_URL_S3") or environment.read("AWS_ENDPOINT_URL")


def _proxied(endpoint: str | None) -> bool:
    """A proxy is set, and it is not for loopback: obstore knows how to go through one."""
    if endpoint and re.match(r"https?://(127\.|localhost\b|\[::1\])", endpoint):
        return False
    return any(
        environment.prefixed(name)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    )


def _region(options: StoreOptions) -> str:
    named = options.region or environment.read("AWS_REGION") or environment.read("AWS_DEFAULT_REGION")
    return named or "us-east-1"


def _make(uri: StoreUri, options: StoreOptions) -> Any:
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=options.connect_timeout),
        "timeout": timedelta(seconds=options.request_timeout),
    }
    retry: dict[str, Any] = {
        "max_retries": options.retries,
        "retry_timeout": timedelta(seconds=options.request_timeout * (options.retries + 1)),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2},
    }
    if options.ca_file is not None:
        client["root_certificate"] = options.ca_file.read_text()
    common: dict[str, Any] = {"client_options": client, "retry_config": retry}
    if uri.scheme == "file":
        Path(uri.bucket).mkdir(parents=True, exist_ok=True)
        return LocalStore(uri.bucket)
    common["prefix"] = uri.prefix or None
    if uri.scheme == "gs":
        return GCSStore(uri.bucket, **common)
    if uri.scheme == "az":
        azure: dict[str, Any] = {"account_name": uri.account or ""}
        if options.endpoint:
            azure["endpoint"] = options.endpoint
            client["allow_http"] = options.endpoint.startswith("http://")
        return AzureStore(uri.bucket, **azure, **common)
    endpoint = _endpoint(options)
    config: dict[str, Any] = {"region": _region(options)}
    if endpoint:
        config["endpoint"] = endpoint
        client["allow_http"] = endpoint.startswith("http://")
    if options.access_key_id and options.secret_access_key:
        config["access_key_id"] = options.access_key_id
        config["secret_access_key"] = options.secret_access_key.reveal()
    elif _has_profile():
        common["credential_provider"] = _profile_credentials()
    return S3Store(uri.bucket, **config, **common)


def _has_profile() -> bool:
    """obstore reads the environment and the machine's identity, but not AWS's files; boto3 does."""
    if environment.read("AWS_PROFILE"):
        return True
    files = (("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config"))
    there = any(Path(environment.read(name) or default).expanduser().is_file() for name, default in files)
    return there and not environment.read("AWS_ACCESS_KEY_ID")


def _profile_credentials() -> Any:
    """Keys as boto3 finds them, asked for again every five minutes: boto3 renews those that expire."""
    boto3: Any = importlib.import_module("boto3")
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider(boto3.Session(), ttl=timedelta(minutes=5))
    except ValueError:  # files, but no keys in them: the machine's identity may still do
        return None
    except Exception as error:  # botocore's own: no such profile, an expired SSO session, a broken file
        raise CredentialsInvalid(
            f"AWS's files give no keys: {redact(str(error))}", hint="`aws sso login`, or AWS_PROFILE"
        ) from error


_CREDENTIALS = {
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthenticationFailed"), ""),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"), " (expired)"),
    "RequestTimeTooSkewed": " (this machine's clock is wrong)",
}
_REGION_CODES = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
_LIMIT_CODES = ("SlowDown", "TooManyRequests", "RequestLimitExceeded", "ServerBusy")
_FULL_CODES = ("QuotaExceeded", "XMinioStorageFull", "InsufficientCapacity")


def translate(error: Exception, action: str, uri: StoreUri, key: str) -> StoreError:
    """obstore's error → ours. The order matters: a store's own error code says more than the HTTP status."""
    where = uri.child(key) if key else uri
    text = redact(str(error))
    found = re.search(r"<Code>(\w+)</Code>", text)
    code = found[1] if found else ""
    found = re.search(r"status(?: code)?:? (\d{3})", text)
    status = int(found[1]) if found else 0
    if code in ("NoSuchBucket", "ContainerNotFound") or (
        uri.scheme == "gs" and "bucket does not exist" in text.lower()
    ):
        return BucketMissing(f"no such bucket: {uri.bucket}", hint="create it, or name another with --store")
    if _INSTANCE_METADATA in text:
        # the last link of S3's credential chain: no other had any, and this machine is no instance that has a role
        return CredentialsInvalid(
            f"no credentials for {uri} in the environment, and no instance or pod identity answers",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    if (
        code in _CREDENTIALS
        or "MissingCredentials" in text
        or isinstance(error, oe.UnauthenticatedError)
        or status == 401
    ):
        return CredentialsInvalid(
            f"the store refused the credentials{_CREDENTIALS.get(code, '')} for {uri}: {code or 'unauthenticated'}",
            hint="set the clock"
            if code == "RequestTimeTooSkewed"
            else "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE or the pod's identity",
        )
    if code in _REGION_CODES or "BareRedirect" in text or status == 301:
        expecting = re.search(r"expecting '([\w-]+)'", text)
        name = expecting[1] if expecting else "the bucket's region"
        return WrongRegion(f"bucket {uri.bucket} is in another region", hint=f"set AWS_REGION to {name}")
    if code in _FULL_CODES or "No space left" in text or "Disk quota exceeded" in text or status == 507:
        return StoreFull(f"the store is full: {where}", hint="free space or raise the quota")
    if (
        isinstance(error, oe.PreconditionError | oe.AlreadyExistsError | oe.NotModifiedError | FileExistsError)
        or status == 412
    ):
        return PreconditionFailed(f"{where}: another version is there")
    if isinstance(error, oe.NotFoundError | FileNotFoundError) or status == 404:
        return ObjectMissing(f"not in the store: {where}")
    if isinstance(error, oe.PermissionDeniedError | PermissionError) or code == "AccessDenied" or status == 403:
        return PermissionDenied(
            f"no permission to {action} {where}",
            hint="the identity needs it on this prefix; `onecopy doctor` prints the policy",
        )
    if code in _LIMIT_CODES or status in (429, 503):
        return RateLimited(f"the store is limiting requests: {where} ({code or status})", hint="try again later")
    if re.search(
        r"error sending request|kind: (Connect|Timeout)|connection (refused|reset|closed)|operation timed out|dns error",
        text,
        re.IGNORECASE,
    ):
        return StoreUnreachable(
            f"no answer from the store {uri}", hint="check the endpoint and the network: `onecopy doctor`"
        )
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    if status >= 500:
        return StoreFailing(f"the store failed to {action} {where}: {code or status}", hint="try again later")
    return StoreError(f"the store failed to {action} {where}: {first}")
