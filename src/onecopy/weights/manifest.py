"""`onecopy.json`: what a revision is made of. Written last by the publisher; every reader starts from it.

Readers ignore keys they do not know (a newer writer may add some) and refuse a `format` they do not know.
Two digests, for two threats. SHA-256 of each file ties the bytes to the source and holds against a forger; it is
checked when publishing and by `model verify --deep`. XXH3-128 of each range costs 0.03 CPU-s/GB, so that every fetch
can afford it; it holds against torn, swapped and flipped bytes, not against somebody who can rewrite the manifest too.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from onecopy.core.errors import IntegrityError, ModelError
from onecopy.core.units import MiB

RANGE_SIZE = 8 * MiB
"""Bytes under one range digest: S3's own advice for ranged reads (8 to 16 MiB), and the fetch engine's unit of retry."""
DIGEST_SIZE = 16


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class FileEntry(_Stored):
    path: str
    """Relative to the revision, `/` between parts."""
    size: int
    sha256: str
    """Hex."""
    etag: str | None = None
    """As the store gave it at upload: every later read is conditional on it."""
    crc64nvme: str | None = None
    """Of the whole file, base64, where the store keeps the same (S3, files that came in parts)."""
    range_size: int = RANGE_SIZE
    range_xxh3: str = ""
    """XXH3-128 of each range of `range_size` bytes (the last may be shorter), 16 bytes each, concatenated, base64."""

    def range_digest(self, index: int) -> bytes:
        """Digest of range `index`; recomputed against `xxhash.xxh3_128_digest(bytes)`."""
        raw = base64.b64decode(self.range_xxh3)
        return raw[index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE]

    @property
    def range_count(self) -> int:
        return -(-self.size // self.range_size)


class SourceInfo(_Stored):
    uri: str
    """`hf://org/name`, `sample`, `folder`, …: never a credential, and no path of the publisher's machine."""
    revision: str | None = None
    """Commit of the hub, where there is one."""


class WeightsInfo(_Stored):
    """Summary of the safetensors headers."""

    tensors: int
    parameters: int
    bytes: int
    dtypes: dict[str, int]
    """dtype → number of bytes."""


class Manifest(_Stored):
    format: Literal[1] = 1
    model: str
    revision: str
    source: SourceInfo
    created: datetime
    files: tuple[FileEntry, ...]
    weights: WeightsInfo | None = None

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def file(self, path: str) -> FileEntry:
        for entry in self.files:
            if entry.path == path:
                return entry
        raise ModelError(f"no file {path} in {self.model}@{self.revision}")

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes, *, where: str) -> Manifest:
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            raise IntegrityError(
                f"{where} is not a manifest that this version reads: {'.'.join(map(str, first['loc']))}: {first['msg']}",
                hint="publish the model again, or use a newer onecopy",
            ) from error


def revision_id(files: Iterable[tuple[str, int, str]]) -> str:
    """Content-derived id of a set of (path, size, sha256 hex): the same content is the same revision. 16 hex digits."""
    digest = hashlib.sha256()
    for path, size, sha256 in sorted(files):
        digest.update(f"{path}\0{size}\0{sha256}\n".encode())
    return digest.hexdigest()[:16]
