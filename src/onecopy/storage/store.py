"""The one small protocol through which all of onecopy reaches object storage.

Keys are relative to the store's prefix, with `/` between parts. Calls are synchronous and thread-safe: callers bring
their own threads. Every call raises from the StoreError branch of `onecopy.core.errors`, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from onecopy.storage.uri import StoreUri

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store says of one object. size in bytes; etag with its quotes, as the store writes it."""

    key: str
    size: int
    etag: str | None
    version: str | None = None
    modified: float = 0.0  # seconds since the epoch, by the store's clock


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
        self, key: str, chunks: Iterable[Buffer], *, part_size: int, concurrency: int = 4, create: bool = False
    ) -> ObjectInfo:
        """A large object by multipart upload; holds at most `part_size × (concurrency + 1)` bytes. Visible when whole.

        create: raises PreconditionFailed when the object is there. Strict in a folder; elsewhere it is looked for
        just before the upload is completed, so of two at the same instant the later one replaces the other.
        An exception out of `chunks` aborts the upload and is raised again.
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

    def copy(self, source: str, target: str) -> None:
        """Server-side, within this store."""
        ...
