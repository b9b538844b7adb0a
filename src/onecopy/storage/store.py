"""The one small protocol through which all of onecopy reaches object storage.

Keys are relative to the store's prefix, with `/` between parts. Calls are synchronous and thread-safe: callers bring
their own threads. Every call raises from the StoreError branch of `onecopy.core.errors`, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from onecopy.storage.uri import StoreUri

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store says of one object. size in bytes; etag with its quotes, as the store writes it.

    crc64nvme: of the whole object, base64: after a streamed upload or a copy, on S3.
    """

    key: str
    size: int
    etag: str | None
    version: str | None = None
    modified: float = 0.0  # seconds since the epoch, by the store's clock
    crc64nvme: str | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload under way, or abandoned. key: below the store's prefix. initiated: seconds since the epoch."""

    key: str
    upload_id: str
    initiated: float


def ignore(count: int) -> None:
    """Nobody counts."""
    del count


class RangeBody(Protocol):
    """A range on its way. Iterating gives its pieces in order; each holds only until the next is asked for."""

    def __iter__(self) -> Iterator[Buffer]: ...

    def cancel(self) -> None:
        """Ends the transfer where that can be done, from any thread: whoever iterates meets a StoreUnreachable."""
        ...


class WholeBody:
    """A range that came in one piece."""

    def __init__(self, data: Buffer) -> None:
        self._data = data

    def __iter__(self) -> Iterator[Buffer]:
        yield self._data

    def cancel(self) -> None:
        pass


class Store(Protocol):
    """An object store under one prefix. Implementations: `onecopy.storage.objectstore.open_store`, wrappers beside it."""

    @property
    def uri(self) -> StoreUri: ...

    def head(self, key: str) -> ObjectInfo:
        """Raises ObjectMissing."""
        ...

    def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        """A small object whole (manifests, refs). Raises ObjectMissing."""
        ...

    def get_range(self, key: str, start: int, end: int, *, if_match: str | None = None) -> Buffer:
        """Bytes [start, end). With `if_match`, raises PreconditionFailed when the object is another version.

        Raises IntegrityError when the store returns another number of bytes than was asked for.
        """
        ...

    def open_range(
        self, key: str, start: int, end: int, *, if_match: str | None = None, timeout: float = 60.0
    ) -> AbstractContextManager[RangeBody]:
        """As `get_range`, in pieces, without a retry and with little CPU: for the fetch engine, which retries itself.

        timeout: seconds until connected. Raises as `get_range`; StoreUnreachable for a body that ends too soon.
        """
        ...

    def release(self) -> None:
        """Closes the connections that `open_range` keeps for its next call. The store stays usable."""
        ...

    def put(self, key: str, data: Buffer, *, create: bool = False, if_match: str | None = None) -> ObjectInfo:
        """One object, atomically. `create`: only if absent; `if_match`: only over that version.

        Raises PreconditionFailed when the condition does not hold.
        """
        ...

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
        """A large object by multipart upload; holds at most `part_size × (concurrency + 1)` bytes. Visible when whole.

        chunks: of `part_size` bytes, but the last. sent: told of bytes that went to the store, from any thread; on S3
        those parts do not that an earlier upload of this key, cut before its end, has brought there already.
        create: raises PreconditionFailed when the object is there. Strict on S3 and in a folder; on GCS and Azure it is
        looked for just before the upload is completed, so of two at the same instant the later one replaces the other.
        An exception out of `chunks` is raised again, and nothing is visible. On S3 the parts stay for the next call
        unless the exception says that they are wrong (IntegrityError, SourceChanged).
        """
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects below `prefix` (whole path parts), in key order within a page."""
        ...

    def list_folders(self, prefix: str = "") -> Sequence[str]:
        """Names of the folders straight below `prefix`."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Idempotent: a key that is already gone is no error."""
        ...

    def copy_from(
        self, source: Store, source_key: str, key: str, *, size: int, if_match: str | None = None, create: bool = False
    ) -> ObjectInfo | None:
        """A copy that the store makes itself. None where it cannot: then the bytes must go through this machine.

        Between S3 stores of one endpoint, if our identity may read the source.
        """
        ...

    def checksum(self, key: str) -> str | None:
        """The store's own CRC64NVME of a whole object, base64. None: it keeps none (only S3 does), or no such object."""
        ...

    def list_uploads(self, prefix: str = "") -> Sequence[Upload]:
        """Multipart uploads whose keys start with `prefix`, under way or abandoned: no listing shows them. S3 only."""
        ...

    def abort_upload(self, upload: Upload) -> None:
        """Idempotent."""
        ...
