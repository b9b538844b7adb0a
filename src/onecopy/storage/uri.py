"""Store addresses: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://account/container/prefix`, `file:///dir`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast
from urllib.parse import urlsplit

from onecopy.core.errors import UsageError

Scheme = Literal["s3", "gs", "az", "file"]


@dataclass(frozen=True, slots=True)
class StoreUri:
    """A store's address. `prefix` has no slash at either end and may be empty.

    bucket: the bucket, the container (az), or the absolute folder (file). account: the storage account (az only).
    """

    scheme: Scheme
    bucket: str
    prefix: str = ""
    account: str | None = None

    @classmethod
    def parse(cls, text: str) -> StoreUri:
        parts = urlsplit(text)
        path = parts.path.strip("/")
        if parts.query or parts.fragment or "@" in parts.netloc:
            raise UsageError(
                f"a store address has no query, fragment or credentials: {parts.scheme}://{parts.hostname}/…",
                hint="give credentials by the cloud's usual environment or files",
            )
        if parts.scheme == "file":
            if parts.netloc not in ("", "localhost") or not path:
                raise UsageError(f"not an absolute folder: {text}", hint="write it as file:///absolute/folder")
            return cls("file", "/" + path)
        if parts.scheme not in ("s3", "gs", "az") or not parts.netloc:
            raise UsageError(
                f"not a store address: {text}",
                hint="use s3://bucket/prefix, gs://bucket/prefix, az://account/container/prefix or file:///folder",
            )
        if any(piece in ("", ".", "..") for piece in path.split("/") if path):
            raise UsageError(f"empty or dotted part in the prefix: {text}", hint="use plain names between the slashes")
        scheme = cast(Scheme, parts.scheme)
        if scheme == "az":
            container, _, prefix = path.partition("/")
            if not container:
                raise UsageError(f"no container in {text}", hint="write it as az://account/container/prefix")
            return cls("az", container, prefix, account=parts.netloc)
        return cls(scheme, parts.netloc, path)

    def child(self, *parts: str) -> StoreUri:
        prefix = "/".join(part for part in (self.prefix, *parts) if part)
        if self.scheme == "file":
            return StoreUri("file", "/".join([self.bucket.rstrip("/"), *parts]))
        return StoreUri(self.scheme, self.bucket, prefix, self.account)

    def __str__(self) -> str:
        if self.scheme == "file":
            return f"file://{self.bucket}"
        head = f"{self.scheme}://{self.account}/{self.bucket}" if self.account else f"{self.scheme}://{self.bucket}"
        return f"{head}/{self.prefix}" if self.prefix else head
