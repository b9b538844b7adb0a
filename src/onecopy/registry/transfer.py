"""One file from a source into the store: ranges read ahead, digests in flight, multipart out.

Memory of one file: `depth` ranges read ahead, and what the store's client holds (parts in flight and one filling).
The digests are compared before the upload is completed, so an object with wrong bytes never becomes visible.
"""

from __future__ import annotations

import base64
import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from onecopy.core.errors import IntegrityError, SourceChanged
from onecopy.core.units import MiB
from onecopy.weights.manifest import RANGE_SIZE, FileEntry

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_PARTS = 10_000
"""S3's limit of parts in one upload."""

ReadRange = Callable[[int, int], "Buffer"]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a file before it is sent. range_xxh3: empty when only the source's own SHA-256 is known."""

    path: str
    size: int
    sha256: str
    range_xxh3: str = ""


def part_size(size: int) -> int:
    """Bytes of a part: whole ranges, as small as 10,000 parts allow; the object store's own limit is 5 TiB."""
    return max(1, -(-size // (MAX_PARTS * RANGE_SIZE))) * RANGE_SIZE


def upload_concurrency(size: int) -> int:
    """Parts of one file in flight: 3, less for objects so large that their parts are too (64 MiB at 640 GB)."""
    return max(1, min(3, 64 * MiB // part_size(size)))


class Digester:
    """SHA-256 of the whole and XXH3-128 of each range, in one pass over ranges in order."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256()
        self._ranges = bytearray()

    def add(self, data: Buffer) -> None:
        """data: exactly one range (the last may be shorter)."""
        self._whole.update(data)
        self._ranges += xxhash.xxh3_128_digest(data)

    def known(self, path: str, size: int) -> Known:
        return Known(path, size, self._whole.hexdigest(), base64.b64encode(self._ranges).decode())


def read_ahead(read: ReadRange, size: int, pool: Executor, *, depth: int) -> Iterator[Buffer]:
    """The ranges of a file in order, `depth` of them being read at any time."""
    waiting: deque[Future[Buffer]] = deque()
    starts = iter(range(0, size, RANGE_SIZE))
    try:
        while True:
            while len(waiting) < depth and (start := next(starts, None)) is not None:
                waiting.append(pool.submit(read, start, min(start + RANGE_SIZE, size)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def digest(path: str, read: ReadRange, size: int, pool: Executor, *, depth: int, seen: Callable[[int], None]) -> Known:
    """Reads a file once to know its digests. `seen` is told of the bytes as they come."""
    digester = Digester()
    for data in read_ahead(read, size, pool, depth=depth):
        digester.add(data)
        seen(memoryview(data).nbytes)
    return digester.known(path, size)


def checked(
    known: Known, read: ReadRange, pool: Executor, *, depth: int, found: Callable[[Known], None]
) -> Iterator[Buffer]:
    """The file's ranges, to be sent. The last is held back until the digests are right; then `found` is told them.

    Raises IntegrityError when a source does not send what it says it has, SourceChanged when it sends other bytes than
    when they were digested.
    """
    whole = hashlib.sha256() if not known.range_xxh3 else None
    ranges = bytearray()
    held: Buffer | None = None
    for data in read_ahead(read, known.size, pool, depth=depth):
        if held is not None:
            yield held
        if whole is not None:
            whole.update(data)
        ranges += xxhash.xxh3_128_digest(data)
        held = data
    encoded = base64.b64encode(ranges).decode()
    if whole is not None and whole.hexdigest() != known.sha256:
        raise IntegrityError(
            f"{known.path}: SHA-256 is {whole.hexdigest()}, the source says {known.sha256}; nothing was committed",
            hint="run it again; if it repeats, the source's file is damaged",
        )
    if known.range_xxh3 and encoded != known.range_xxh3:
        raise SourceChanged(f"{known.path} changed while it was published; nothing was committed", hint="run it again")
    found(Known(known.path, known.size, known.sha256, encoded))
    if held is not None:
        yield held


def entry(known: Known, etag: str | None) -> FileEntry:
    return FileEntry(
        path=known.path,
        size=known.size,
        sha256=known.sha256,
        etag=etag,
        range_size=RANGE_SIZE,
        range_xxh3=known.range_xxh3,
    )
