"""Large objects on S3: multipart uploads that outlive their writer, checksums that the store keeps, copies inside it.

obstore hides an upload's id, completes without a condition and knows no CRC64NVME, so boto3 does this part. It costs
0.8 CPU-s/GB with parts of 16 MiB, where obstore with its signed payload (one more SHA-256) costs 1.0. Here the payload
is not signed: its CRC64NVME is in a signed header, the store refuses other bytes and keeps the checksum of the whole.
Keys are the caller's, below the store's prefix. Azure drops uncommitted blocks after a week by itself; on GCS set a
lifecycle rule (AbortIncompleteMultipartUpload); a folder has none.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from onecopy.core import environment
from onecopy.core.errors import (
    IntegrityError,
    PermissionDenied,
    PreconditionFailed,
    SourceChanged,
    StoreError,
    StoreFailing,
)
from onecopy.core.units import MiB
from onecopy.storage.store import ObjectInfo, Upload
from onecopy.storage.uri import StoreUri

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from onecopy.storage.objectstore import StoreOptions

COPY_PART = 512 * MiB
"""Bytes that the store is asked to copy at a time: it takes some seconds, and 10,000 of them are S3's 5 TiB."""
COPIES_AT_ONCE = 8
_LOST = ("NoSuchUpload", "ConditionalRequestConflict")
"""Somebody else has completed or aborted this very upload, or completes another of the key right now."""
_NO_CHECKSUMS = ("InvalidRequest", "InvalidArgument", "NotImplemented", "UnsupportedHeader", "InvalidHeader")


class Uploads:
    """explain: an error in the words that the translation reads, an action and a key → ours."""

    def __init__(
        self,
        uri: StoreUri,
        options: StoreOptions,
        *,
        endpoint: str | None,
        region: str,
        proxied: bool,
        explain: Callable[[Exception, str, str], StoreError],
    ) -> None:
        self._uri, self._options, self._explain = uri, options, explain
        self._endpoint, self._region, self._proxied = endpoint, region, proxied
        self._lock = threading.Lock()
        self._client: Any = None
        self._checksums = True  # until the store refuses them

    # -- writing ----------------------------------------------------------------------------------------------------

    def write(
        self, key: str, parts: Iterable[Buffer], *, concurrency: int, create: bool, sent: Callable[[int], None]
    ) -> ObjectInfo:
        """See `Store.put_stream`; every chunk is a part. What an upload of this key that was left behind already holds
        is compared with each part and not sent again; several writers of the same bytes may share one."""
        upload_id, kept = self._begin(key)
        crc, size, done = 0, 0, list[dict[str, Any]]()
        waiting: deque[Future[tuple[dict[str, Any], int, int]]] = deque()

        def take() -> None:
            nonlocal crc, size
            part, part_crc, part_size = waiting.popleft().result()
            crc, size = _checksums().combine_crc64nvme(crc, part_crc, part_size), size + part_size
            done.append(part)

        try:
            with ThreadPoolExecutor(concurrency, "upload") as pool:
                for number, chunk in enumerate(parts, 1):
                    if len(waiting) >= concurrency:
                        take()
                    waiting.append(pool.submit(self._part, key, upload_id, number, chunk, kept.get(number), sent))
                while waiting:
                    take()
            return self._complete(key, upload_id, done, size, _text(crc), create=create)
        except (IntegrityError, SourceChanged, PreconditionFailed):
            # What was sent is not to be used. After any other error it stays, for the next run to go on with
            with suppress(StoreError):
                self.abort(Upload(key, upload_id, 0))
            raise

    def _begin(self, key: str) -> tuple[str, Mapping[int, Mapping[str, Any]]]:
        """An upload of this key: the last that was begun and never ended, with its parts, or a new one."""
        try:
            left = max((upload for upload in self.list(key) if upload.key == key), key=lambda u: u.initiated)
            arguments = {"Key": self._key(key), "UploadId": left.upload_id}
            found = self._pages("list the parts of", key, "list_parts", "Parts", **arguments)
            return left.upload_id, {part["PartNumber"]: part for part in found}
        except (ValueError, PermissionDenied, PreconditionFailed, StoreFailing):
            pass  # there is none, or it is not to be seen, or it has just gone
        kind = {"ChecksumAlgorithm": "CRC64NVME"} if self._checksums else {}
        with self._translated("write", key):
            try:
                made = self._s3().create_multipart_upload(**self._place(key), **kind)
            except Exception as error:
                if not kind or _code(error) not in _NO_CHECKSUMS:
                    raise
                self._without_checksums()
                made = self._s3().create_multipart_upload(**self._place(key))
        return made["UploadId"], {}

    def _part(
        self,
        key: str,
        upload_id: str,
        number: int,
        data: Buffer,
        kept: Mapping[str, Any] | None,
        sent: Callable[[int], None],
    ) -> tuple[dict[str, Any], int, int]:
        """The part as it is named at completion, its checksum and size."""
        body = _bytes(data)
        crc = _checksums().crc64nvme(body)
        checksum = {"ChecksumCRC64NVME": _text(crc)} if self._checksums else {}
        if kept is not None and _is_same(kept, body, _text(crc)):
            return {"PartNumber": number, "ETag": kept["ETag"], **checksum}, crc, len(body)
        with self._translated("write", key):
            answer = self._s3().upload_part(
                **self._place(key), UploadId=upload_id, PartNumber=number, Body=body, **checksum
            )
        sent(len(body))
        return {"PartNumber": number, "ETag": answer["ETag"], **checksum}, crc, len(body)

    def _complete(
        self, key: str, upload_id: str, parts: Sequence[Mapping[str, Any]], size: int, crc: str, *, create: bool
    ) -> ObjectInfo:
        """crc: of the whole, empty when it is not known: the store's own is taken then."""
        condition = {"IfNoneMatch": "*"} if create else {}
        try:
            if create and self._look(key) is not None:  # for stores that pay no heed to the condition
                raise PreconditionFailed(f"{self._uri.child(key)}: another version is there")
            with self._translated("write", key):
                answer = self._s3().complete_multipart_upload(
                    **self._place(key), UploadId=upload_id, MultipartUpload={"Parts": parts}, **condition
                )
        except PreconditionFailed:
            # Our own first try whose answer was lost, or another publisher: the store's checksum says what is there
            there = self._look(key)
            with suppress(StoreError):
                self.abort(Upload(key, upload_id, 0))
            if there is None or not crc or (there.size, there.crc64nvme) != (size, crc):
                raise
            return there
        stored = _full(answer)
        if stored and crc and stored != crc:
            raise IntegrityError(f"{self._uri.child(key)}: the store's CRC64NVME is {stored}, sent was {crc}")
        return ObjectInfo(key, size, answer["ETag"], answer.get("VersionId"), crc64nvme=crc or stored)

    def checksum(self, key: str) -> str | None:
        """See `Store.checksum`."""
        found = self._look(key)
        return found.crc64nvme if found else None

    def _look(self, key: str) -> ObjectInfo | None:
        with self._translated("read", key):
            try:
                found = self._s3().head_object(**self._place(key), ChecksumMode="ENABLED")
            except Exception as error:
                if _status(error) == 404:
                    return None
                raise
        return ObjectInfo(key, found["ContentLength"], found["ETag"], found.get("VersionId"), crc64nvme=_full(found))

    # -- copying ----------------------------------------------------------------------------------------------------

    def copy(
        self, source: Mapping[str, str], key: str, *, size: int, if_match: str | None, create: bool
    ) -> ObjectInfo | None:
        """source: Bucket and Key. None when the store does not do it: the identity may not read there, say."""
        condition = {"CopySourceIfMatch": if_match} if if_match else {}
        upload_id = ""
        try:
            with self._translated("write", key):
                kind = {"ChecksumAlgorithm": "CRC64NVME"} if self._checksums else {}
                upload_id = self._s3().create_multipart_upload(**self._place(key), **kind)["UploadId"]

            def one(start: int) -> dict[str, Any]:
                span = f"bytes={start}-{min(start + COPY_PART, size) - 1}"
                with self._translated("copy", key):
                    answer = self._s3().upload_part_copy(
                        **self._place(key),
                        UploadId=upload_id,
                        PartNumber=start // COPY_PART + 1,
                        CopySource=dict(source),
                        CopySourceRange=span,
                        **condition,
                    )["CopyPartResult"]
                named = {name: answer[name] for name in ("ETag", "ChecksumCRC64NVME") if name in answer}
                return {"PartNumber": start // COPY_PART + 1, **named}

            with ThreadPoolExecutor(COPIES_AT_ONCE, "copy") as pool:
                parts = list(pool.map(one, range(0, size, COPY_PART)))
        except StoreError:
            if upload_id:
                with suppress(StoreError):
                    self.abort(Upload(key, upload_id, 0))
            return None
        return self._complete(key, upload_id, parts, size, "", create=create)

    # -- what was left behind ---------------------------------------------------------------------------------------

    def list(self, prefix: str) -> Sequence[Upload]:
        """See `Store.list_uploads`."""
        base = self._key("")
        found = self._pages(
            "list multipart uploads of", prefix, "list_multipart_uploads", "Uploads", Prefix=self._key(prefix)
        )
        return [Upload(u["Key"].removeprefix(base), u["UploadId"], u["Initiated"].timestamp()) for u in found]

    def abort(self, upload: Upload) -> None:
        """Idempotent."""
        with suppress(PreconditionFailed), self._translated("abort multipart uploads of", upload.key):
            self._s3().abort_multipart_upload(**self._place(upload.key), UploadId=upload.upload_id)

    # -- boto3 ------------------------------------------------------------------------------------------------------

    def _key(self, key: str) -> str:
        return f"{self._uri.prefix}/{key}" if self._uri.prefix else key

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self._uri.bucket, "Key": self._key(key)}

    def _pages(self, action: str, key: str, operation: str, field: str, **arguments: str) -> list[dict[str, Any]]:
        with self._translated(action, key):
            pages = self._s3().get_paginator(operation).paginate(Bucket=self._uri.bucket, **arguments)
            return [item for page in pages for item in page.get(field, ())]

    def _s3(self) -> Any:
        """Made when first needed: loading boto3 takes 0.4 s of CPU."""
        with self._lock:
            if self._client is None:
                boto3: Any = importlib.import_module("boto3")
                config: Any = importlib.import_module("botocore.config").Config
                options, secret = self._options, self._options.secret_access_key
                more: dict[str, Any] = {} if self._proxied else {"proxies": {}}
                if environment.read("AWS_SKIP_SIGNATURE"):
                    more["signature_version"] = importlib.import_module("botocore").UNSIGNED
                self._client = boto3.session.Session().client(
                    "s3",
                    endpoint_url=self._endpoint,
                    region_name=self._region,
                    aws_access_key_id=options.access_key_id,
                    aws_secret_access_key=secret.reveal() if secret else None,
                    verify=str(options.ca_file) if options.ca_file else None,
                    config=config(
                        # Checksums are ours, one for each part. Without them the payload is signed
                        s3={
                            "addressing_style": "path" if self._endpoint else "auto",
                            "payload_signing_enabled": not self._checksums,
                        },
                        request_checksum_calculation="when_required",
                        response_checksum_validation="when_required",
                        retries={"mode": "standard", "total_max_attempts": options.retries + 1},
                        connect_timeout=options.connect_timeout,
                        read_timeout=options.request_timeout,
                        max_pool_connections=64,
                        **more,
                    ),
                )
            return self._client

    def _without_checksums(self) -> None:
        with self._lock:
            self._checksums, self._client = False, None

    @contextmanager
    def _translated(self, action: str, key: str) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            if _code(error) in _LOST:
                raise PreconditionFailed(f"{self._uri.child(key)}: somebody else has ended this upload") from error
            raise self._explain(_readable(error), action, key) from error


def _checksums() -> Any:
    return importlib.import_module("awscrt.checksums")


def _text(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(8, "big")).decode()


def _full(answer: Mapping[str, Any]) -> str | None:
    """A checksum of the whole object, as S3 keeps it; some emulators make one of the parts' (`…-3`)."""
    found: str | None = answer.get("ChecksumCRC64NVME")
    return found if found and "-" not in found and answer.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT" else None


def _is_same(kept: Mapping[str, Any], body: bytes | bytearray, crc: str) -> bool:
    """By the checksum that the store lists, else by an ETag that is an MD5."""
    if kept["Size"] != len(body):
        return False
    if "ChecksumCRC64NVME" in kept:
        return kept["ChecksumCRC64NVME"] == crc
    return kept["ETag"].strip('"') == hashlib.md5(body, usedforsecurity=False).hexdigest()


def _bytes(data: Buffer) -> bytes | bytearray:
    """boto3 takes no other buffers. The sources' own are views of a whole bytearray: not copied."""
    view = memoryview(data)
    inner = view.obj
    return inner if isinstance(inner, bytes | bytearray) and len(inner) == view.nbytes else bytes(view)


def _code(error: Exception) -> str:
    return getattr(error, "response", {}).get("Error", {}).get("Code", "")


def _status(error: Exception) -> int:
    return getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _readable(error: Exception) -> Exception:
    """botocore's error, in the words of a server's answer."""
    kinds = {cls.__name__ for cls in type(error).__mro__}
    if _status(error):
        return Exception(f"status: {_status(error)} <Code>{_code(error)}</Code> {error}")
    if kinds & {"HTTPClientError", "ConnectionError"}:
        return Exception(f"error sending request: {error}")
    if any("Credential" in kind or "Token" in kind or "Profile" in kind or "Login" in kind for kind in kinds):
        return Exception(f"MissingCredentials: {error}")
    return error
