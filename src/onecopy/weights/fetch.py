"""The fetch engine: a revision's missing ranges, several at once, each digested while its bytes are hot.

A worker is a thread with a connection: it reads a piece (1 MiB), digests it, writes it in its place, so that memory is
bounded by workers × piece. Ranges are the unit of retry: what the store or the network did wrong is asked for again as
long as anything still comes; a limiting store (429/503) slows all workers down; wrong bytes are believed after three
tries; a refusal ends the fetch. When nothing is left to begin, the slowest range is asked for a second time: that
copy goes to memory, and is written only after the first has let go, so that no loser ever writes over verified bytes.
"""

from __future__ import annotations

import errno
import os
import random
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from onecopy.core.errors import (
    CacheError,
    IntegrityError,
    NoSpace,
    OnecopyError,
    RateLimited,
    StoreFailing,
    StoreUnreachable,
)
from onecopy.core.events import ByteCounter
from onecopy.core.units import format_bytes
from onecopy.storage.layout import file_key
from onecopy.storage.store import RangeBody, Store
from onecopy.weights.manifest import FileEntry, Manifest
from onecopy.weights.pace import Pace

BAD_BYTES = 3
"""Times that one range may come with a wrong digest or length: bytes that rot on the way come right the next time."""
PATIENCE = 30.0
"""Seconds without a byte that is new, from any connection, after which the store is given up: a server's restart fits into it."""
FIRST_PATIENCE = 10.0
"""The same before the first byte: a wrong endpoint should be said soon."""
LIMITED_FACTOR = 4
"""A store that limits requests is there, so it is given that much longer."""
HEDGE_AFTER, HEDGE_FACTOR = 2.0, 3.0
"""A range is slow when it takes longer than this many seconds and than this many times the median of its fellows."""


@dataclass(slots=True)
class Part:
    """One range of one file. taken: a second copy has won, the first must not write nor try again.

    furthest: the last byte that ever came. A store that breaks off at the same byte again and again makes no progress.
    """

    entry: FileEntry
    index: int
    tries: int = 0
    bad: int = 0
    ready_at: float = 0.0
    begun: float = 0.0
    body: RangeBody | None = None
    running: bool = False
    hedged: bool = False
    taken: bool = False
    done: bool = False
    furthest: int = 0

    @property
    def start(self) -> int:
        return self.index * self.entry.range_size

    @property
    def end(self) -> int:
        return min(self.entry.size, self.start + self.entry.range_size)


@dataclass(slots=True)
class FetchStats:
    """bytes_read: from the store, what was thrown away included. retries: by cause."""

    bytes_read: int = 0
    hedges: int = 0
    retries: Counter[str] = field(default_factory=Counter[str])
    connections: int = 0


class Fetch:
    """One fetch into `folder`, where the files lie in their full length. `run` once."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        folder: Path,
        parts: Sequence[Part],
        *,
        done: Callable[[Part], None],
        deadline: float,
    ) -> None:
        """done: told of every range that is verified and written. deadline: by the monotonic clock."""
        self._store, self._manifest, self._folder = store, manifest, folder
        self._done, self._deadline = done, deadline
        self._queue: deque[Part] = deque(parts)
        self._open: list[Part] = []  # begun and not done
        self._bodies: set[RangeBody] = set()
        self._left = len(parts)
        self._cond = threading.Condition()
        self._error: BaseException | None = None
        self._last_trouble: OnecopyError | None = None
        self._heard = 0.0
        self._times: list[float] = []
        self._workers: set[threading.Thread] = set()
        self._handles: dict[str, int] = {}
        self._writing = 0
        self._pace = Pace(len(parts), time.monotonic())
        self.stats = FetchStats()

    def run(self) -> FetchStats:
        """Returns when every range is there. Raises StoreError, IntegrityError, NoSpace, CacheError."""
        began = time.monotonic()
        try:
            for path in {part.entry.path for part in self._queue}:
                self._handles[path] = os.open(self._folder / path, os.O_WRONLY | os.O_CLOEXEC)
            with self._cond:
                while self._left and self._error is None:
                    self._grow()
                    self._cond.wait(0.1)
                    self._watch(began)
        except BaseException as error:
            self._fail(error)
        finally:
            self._stop()
        if self._error is not None:
            raise self._error
        return self.stats

    # the coordinator, with the lock held

    def _grow(self) -> None:
        self._pace.measure(self.stats.bytes_read, time.monotonic())
        while len(self._workers) < min(self._pace.workers, self._left):
            thread = threading.Thread(target=self._work, name=f"fetch-{len(self._workers)}", daemon=True)
            self._workers.add(thread)
            self.stats.connections = max(self.stats.connections, len(self._workers))
            thread.start()

    def _watch(self, began: float) -> None:
        now = time.monotonic()
        patience, since = (PATIENCE, self._heard) if self._heard else (FIRST_PATIENCE, began)
        if isinstance(self._last_trouble, RateLimited):
            patience *= LIMITED_FACTOR
        if now > self._deadline or (now - since > patience and self._last_trouble):
            total = sum(entry.size for entry in self._manifest.files)
            self._error = self._last_trouble or StoreUnreachable(
                f"{self._store.uri}: {self._left} ranges of {self._manifest.model}@{self._manifest.revision} "
                f"({format_bytes(total)}) had not come when the time was over"
            )
            self._error.hint = (
                self._error.hint or f"`onecopy model verify {self._manifest.model} --deep` checks the store"
            )

    def _stop(self) -> None:
        with self._cond:
            self._left = 0
            self._cond.notify_all()
            for body in self._bodies:
                body.cancel()
            workers = list(self._workers)
        until = time.monotonic() + 1.0
        for thread in workers:  # one that obstore holds is left behind: it can write no more
            thread.join(max(0.0, until - time.monotonic()))
        with self._cond:
            while self._writing:  # a descriptor that is closed under a writer could be another file by then
                self._cond.wait(0.05)
            for handle in self._handles.values():
                os.close(handle)
            self._handles.clear()
        self._store.release()

    def _fail(self, error: BaseException) -> None:
        with self._cond:
            self._error = self._error or error
            self._cond.notify_all()

    # workers

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                part, hedge = job
                if hedge:
                    self._second(part)
                else:
                    self._first(part)
        except BaseException as error:
            self._fail(error)
        finally:
            with self._cond:
                self._workers.discard(threading.current_thread())
                self._cond.notify_all()

    def _next(self) -> tuple[Part, bool] | None:
        with self._cond:
            while True:
                if not self._left or self._error is not None or len(self._workers) > self._pace.workers:
                    return None
                now = time.monotonic()
                wait = self._pace.hold(now)
                if not wait:
                    for _ in range(len(self._queue)):
                        part = self._queue.popleft()
                        if part.ready_at <= now:
                            part.begun, part.running, part.tries = now, True, part.tries + 1
                            self._open.append(part)
                            return part, False
                        self._queue.append(part)
                    if not self._queue and (slow := self._slow(now)) is not None:
                        slow.hedged = True
                        self.stats.hedges += 1
                        return slow, True
                self._cond.wait(wait or 0.05)

    def _slow(self, now: float) -> Part | None:
        limit = max(HEDGE_AFTER, HEDGE_FACTOR * statistics.median(self._times) if self._times else HEDGE_AFTER)
        slow = [part for part in self._open if part.running and not part.hedged and now - part.begun > limit]
        return min(slow, key=lambda part: part.begun, default=None)

    def _first(self, part: Part) -> None:
        path = part.entry.path

        def write(piece: memoryview, at: int) -> None:
            while piece:
                with self._cond:
                    if part.taken or not self._left or self._error is not None:
                        raise _Stopped
                    self._writing += 1
                try:
                    written = os.pwrite(self._handles[path], piece, at)
                finally:
                    with self._cond:
                        self._writing -= 1
                piece, at = piece[written:], at + written

        try:
            self._read(part, write)
        except _Stopped:
            self._let_go(part)
        except OnecopyError as error:
            self._again(part, error)
        except OSError as error:
            self._let_go(part)
            raise _written(error, self._folder / path) from error
        else:
            self._finish(part)

    def _second(self, part: Part) -> None:
        copy = memoryview(bytearray(part.end - part.start))

        def keep(piece: memoryview, at: int) -> None:
            if part.done:
                raise _Stopped
            copy[at - part.start : at - part.start + len(piece)] = piece

        try:
            self._read(part, keep, hedge=True)
        except (_Stopped, OnecopyError):
            with self._cond:  # the first goes on; it may be asked for once more
                part.hedged = part.done
            return
        with self._cond:
            part.taken = True
            if part.running and part.body is not None:
                part.body.cancel()
            while part.running and not part.done and self._left and self._error is None:
                self._cond.wait(0.05)
            if part.done or not self._left or self._error is not None:
                return
            self._writing += 1
            with suppress(ValueError):
                self._queue.remove(part)
        at = part.start
        try:
            while copy:
                written = os.pwrite(self._handles[part.entry.path], copy, at)
                copy, at = copy[written:], at + written
        except OSError as error:
            raise _written(error, self._folder / part.entry.path) from error
        finally:
            with self._cond:
                self._writing -= 1
        self._finish(part)

    def _read(self, part: Part, use: Callable[[memoryview, int], None], *, hedge: bool = False) -> None:
        key = file_key(self._manifest.model, self._manifest.revision, part.entry.path)
        digest, at = xxhash.xxh3_128(), part.start
        timeout = max(0.1, self._deadline - time.monotonic())
        with self._store.open_range(key, part.start, part.end, if_match=part.entry.etag, timeout=timeout) as body:
            with self._cond:
                if not self._left or self._error is not None:
                    raise _Stopped
                self._bodies.add(body)
                if not hedge:
                    part.body = body
            try:
                for got in body:
                    piece = memoryview(got).cast("B")
                    digest.update(piece)
                    use(piece, at)
                    at += len(piece)
                    if at > part.furthest or part.tries <= BAD_BYTES:
                        part.furthest = max(part.furthest, at)
                        self._heard = time.monotonic()
                    self.stats.bytes_read += len(piece)  # a race here costs a statistic, a lock would cost time
            finally:
                with self._cond:
                    self._bodies.discard(body)
        if at != part.end or digest.digest() != part.entry.range_digest(part.index):
            raise IntegrityError(
                f"{self._store.uri.child(key)}: bytes {part.start}-{part.end} are not what the manifest says",
                hint="`onecopy model verify --deep` tells whether the store or the way to it is at fault",
            )

    def _finish(self, part: Part) -> None:
        with self._cond:
            if part.done or not self._left or self._error is not None:
                return
            part.done, part.running = True, False
            with suppress(ValueError):
                self._open.remove(part)
            self._times.append(time.monotonic() - part.begun)
            self._pace.went_well()
        self._done(part)
        with self._cond:
            self._left -= 1
            if not self._left:
                self._cond.notify_all()

    def _let_go(self, part: Part) -> None:
        with self._cond:
            part.running, part.body = False, None
            self._cond.notify_all()

    def _again(self, part: Part, error: OnecopyError) -> None:
        """Puts the range back, or ends the fetch: by class of error."""
        now = time.monotonic()
        with self._cond:
            part.running, part.body = False, None
            self._cond.notify_all()
            if part.taken or part.done or not self._left:
                return
            part.bad += isinstance(error, IntegrityError)
            passing = isinstance(error, RateLimited | StoreUnreachable | StoreFailing) or (
                isinstance(error, IntegrityError) and part.bad < BAD_BYTES
            )
            if not passing:
                raise error
            self._last_trouble = error
            self.stats.retries[type(error).__name__] += 1
            if isinstance(error, RateLimited):
                self._pace.limited(error.retry_after, now)
            part.ready_at = now + random.uniform(0, min(5.0, 0.1 * 2**part.tries))  # noqa: S311 - jitter
            part.hedged = False
            self._open.remove(part)
            self._queue.append(part)


class _Stopped(Exception):
    """This copy of the range is not needed any more."""


def _written(error: OSError, path: Path) -> OnecopyError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"no space left while {path} was written", hint="free some: `onecopy cache evict`")
    return CacheError(f"cannot write {path}: {error.strerror or error}")


def fetch(
    store: Store, manifest: Manifest, folder: Path, counter: ByteCounter, *, deadline: float = 3600.0
) -> FetchStats:
    """Every file of the manifest into `folder`, which has none of them: for a private copy. The node cache does more.

    deadline: seconds. Raises as `Fetch.run`; what is there is then torn.
    """
    parts: list[Part] = []
    for entry in manifest.files:
        path = folder / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.truncate(entry.size)
        parts += [Part(entry, index) for index in range(entry.range_count)]

    def done(part: Part) -> None:
        counter.add(part.end - part.start, part.entry.path)

    return Fetch(store, manifest, folder, parts, done=done, deadline=time.monotonic() + deadline).run()
