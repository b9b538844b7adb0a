"""One file from a source into the store: ranges read ahead, digests in flight, multipart out.

Memory of one file: `ahead` parts read ahead, one at hand, and those in flight (`lanes` says how many of each).
The digests are compared before the upload is completed, so an object with wrong bytes never becomes visible.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
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
FILES_AT_ONCE = 4
BUFFERS = 256 * MiB
"""All parts held at a time."""
_M_ARENA_MAX = -8  # of glibc's mallopt

ReadRange = Callable[[int, int], "Buffer"]


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a file before it is sent. range_xxh3: empty when only the source's own SHA-256 is known."""

    path: str
    size: int
    sha256: str
    range_xxh3: str = ""


@dataclass(frozen=True, slots=True)
class Lanes:
    """files: sent at once. For each: parts that are read ahead, and parts that are in flight; one more is at hand."""

    files: int
    ahead: int
    in_flight: int


def part_size(size: int) -> int:
    """Bytes of a part: two ranges (a request costs 3 ms of CPU), more where 10,000 parts would not do."""
    return max(2, -(-size // (MAX_PARTS * RANGE_SIZE))) * RANGE_SIZE


def lanes(sizes: Collection[int]) -> Lanes:
    """How files of these sizes are sent within BUFFERS; what few files leave unused, they have in more parts at once."""
    parts = BUFFERS // part_size(max(sizes, default=0))
    files = max(1, min(FILES_AT_ONCE, sum(size > RANGE_SIZE for size in sizes), parts // 3))
    each = max(3, min(parts // files, 16))
    ahead = (each - 1) // 2
    return Lanes(files, ahead, each - 1 - ahead)


def keep_one_arena() -> None:
    """glibc gives each thread an arena of its own, and each keeps what it has freed: 500 MiB in place of 310 at the peak
    of a publish, and more CPU for fresh pages. Another C library has no such call, and no such arenas."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


class Digester:
    """SHA-256 of the whole and XXH3-128 of each range, in one pass over ranges in order."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256()
        self._ranges = bytearray()

    def add(self, data: Buffer) -> None:
        """data: whole ranges (the file's last may be shorter)."""
        self._whole.update(data)
        self._ranges += range_digests(data)

    def known(self, path: str, size: int) -> Known:
        return Known(path, size, self._whole.hexdigest(), base64.b64encode(self._ranges).decode())


def range_digests(data: Buffer) -> bytes:
    view = memoryview(data)
    return b"".join(xxhash.xxh3_128_digest(view[at : at + RANGE_SIZE]) for at in range(0, view.nbytes, RANGE_SIZE))


def read_ahead(read: ReadRange, size: int, pool: Executor, *, depth: int, step: int) -> Iterator[Buffer]:
    """A file's bytes in order, `step` at a time, `depth` such pieces being read at any time."""
    waiting: deque[Future[Buffer]] = deque()
    starts = iter(range(0, size, step))
    try:
        while True:
            while len(waiting) < depth and (start := next(starts, None)) is not None:
                waiting.append(pool.submit(read, start, min(start + step, size)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def digest(path: str, read: ReadRange, size: int, pool: Executor, *, depth: int, seen: Callable[[int], None]) -> Known:
    """Reads a file once to know its digests. `seen` is told of the bytes as they come."""
    digester = Digester()
    for data in read_ahead(read, size, pool, depth=depth, step=RANGE_SIZE):
        digester.add(data)
        seen(memoryview(data).nbytes)
    return digester.known(path, size)


def checked(
    known: Known, read: ReadRange, pool: Executor, *, depth: int, found: Callable[[Known], None]
) -> Iterator[Buffer]:
    """The file's parts, to be sent. The last is held back until the digests are right; then `found` is told them.

    Raises IntegrityError when a source does not send what it says it has, SourceChanged when it sends other bytes than
    when they were digested.
    """
    whole = hashlib.sha256() if not known.range_xxh3 else None
    ranges = bytearray()
    last: Buffer | None = None
    at = 0
    for data in read_ahead(read, known.size, pool, depth=depth, step=part_size(known.size)):
        if whole is not None:
            whole.update(data)
        ranges += range_digests(data)
        at += memoryview(data).nbytes
        if at < known.size:
            yield data
        else:
            last = data
    encoded = base64.b64encode(ranges).decode()
    if whole is not None and whole.hexdigest() != known.sha256:
        raise IntegrityError(
            f"{known.path}: SHA-256 is {whole.hexdigest()}, the source says {known.sha256}; nothing was committed",
            hint="run it again; if it repeats, the source's file is damaged",
        )
    if known.range_xxh3 and encoded != known.range_xxh3:
        raise SourceChanged(f"{known.path} changed while it was published; nothing was committed", hint="run it again")
    found(Known(known.path, known.size, known.sha256, encoded))
    if last is not None:
        yield last


def entry(known: Known, etag: str | None, crc64nvme: str | None) -> FileEntry:
    return FileEntry(
        path=known.path,
        size=known.size,
        sha256=known.sha256,
        etag=etag,
        crc64nvme=crc64nvme,
        range_size=RANGE_SIZE,
        range_xxh3=known.range_xxh3,
    )
