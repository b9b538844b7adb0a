"""The node cache: one folder a node with whole, published, read-only revisions.

<root>/<model>/<revision>/          a published revision, as it lay in the store
<root>/<model>/.<revision>.partial  being filled; its lock holds even if somebody deletes the lock file
<root>/<model>/.<revision>.parts    which ranges of it are verified: what a next filler need not fetch
<root>/<model>/.<revision>.lock     held (flock) by the one that fills; the kernel frees a dead one's
<root>/<model>/.<revision>.used     when it was last asked for, by a clock that cannot be set
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from onecopy.core.errors import CacheError, NoSpace, RateLimited, StoreFailing, StoreUnreachable
from onecopy.core.events import ByteCounter, Event, Reporter, silent
from onecopy.core.units import format_bytes
from onecopy.storage.layout import MANIFEST
from onecopy.storage.store import Store
from onecopy.weights import inventory
from onecopy.weights.fetch import Fetch, FetchStats, Part
from onecopy.weights.follow import Follower
from onecopy.weights.inventory import CacheEntry, Lease
from onecopy.weights.locks import locked
from onecopy.weights.manifest import Manifest
from onecopy.weights.partmap import PartMap

_MANIFEST_TO_BE = ".onecopy.json"
"""Written with what is reserved, so that a file system that has become full cannot stop the end of a fill."""


@dataclass(frozen=True, slots=True)
class FillResult:
    """path: the published folder. bytes_fetched: verified and written by this call. bytes_resumed: taken over from a
    filler that died. stats: what it took from the store, retries and second copies included."""

    path: Path
    bytes_fetched: int
    seconds: float
    already_there: bool
    bytes_resumed: int = 0
    stats: FetchStats = field(default_factory=FetchStats)


class NodeCache:
    """headroom: the part of the file system that a fill leaves free."""

    def __init__(self, root: Path, *, headroom: float = 0.1) -> None:
        self.root, self.headroom = root, headroom

    def fill(
        self, store: Store, manifest: Manifest, *, report: Reporter = silent, deadline: float = 3600
    ) -> FillResult:
        """Publishes the revision in the cache, unless it is there. One process fills, the others wait for it.

        deadline: seconds. Raises NoSpace before the first byte where that can be known, IntegrityError, StoreError,
        CacheError: nothing is published then. What was verified before the store fell silent stays for the next fill.
        """
        begun = time.monotonic()
        until = begun + deadline
        model, final = self.root / manifest.model, self.root / manifest.model / manifest.revision
        staging, parts = inventory.staging(final), inventory.parts(final)
        model.mkdir(parents=True, exist_ok=True)
        if self._there(final, manifest, report):
            return FillResult(final, 0, time.monotonic() - begun, already_there=True)
        busy = "another process still fills"
        with locked(inventory.lock(final), until, what=busy):
            if self._there(final, manifest, report):
                return FillResult(final, 0, time.monotonic() - begun, already_there=True)
            staging.mkdir(exist_ok=True)
            with locked(staging, until, what=busy, folder=True):
                if self._there(final, manifest, report):
                    staging.rmdir()
                    return FillResult(final, 0, time.monotonic() - begun, already_there=True)
                try:
                    with PartMap(parts, manifest, write=True) as there:
                        self._reserve(staging, manifest)
                        missing = _missing(staging, manifest, there)
                        there.vouch()
                        counter = ByteCounter(report, "fill", sum(part.end - part.start for part in missing))
                        stats = _fetch(store, manifest, staging, missing, there, counter, until)
                    (staging / _MANIFEST_TO_BE).rename(staging / MANIFEST)
                    _seal(staging)
                    staging.rename(final)
                    _sync(model)
                except (StoreUnreachable, RateLimited, StoreFailing, KeyboardInterrupt, SystemExit):
                    raise  # what is verified so far stays for the next filler
                except BaseException:
                    shutil.rmtree(staging, ignore_errors=True)
                    parts.unlink(missing_ok=True)
                    raise
                parts.unlink(missing_ok=True)
                inventory.touch(final)
        resumed = manifest.total_bytes - counter.total
        return FillResult(final, counter.done, time.monotonic() - begun, False, resumed, stats)

    def follow(
        self, store: Store, manifest: Manifest, *, report: Reporter = silent, deadline: float = 3600
    ) -> Follower[FillResult]:
        """Reads a revision while it is filled, by whoever fills it: by this process if nobody else does."""
        return Follower(
            self.root / manifest.model / manifest.revision,
            manifest,
            lambda: self.fill(store, manifest, report=report, deadline=deadline),
            deadline,
        )

    def lease(self, model: str, revision: str) -> Lease:
        """Holds the revision against eviction until closed, or until this process ends. Raises CacheError: not there."""
        return Lease(self.root / model / revision)

    def list(self) -> list[CacheEntry]:
        """What is here, published or not, in order of names."""
        return inventory.scan(self.root)

    def evict(
        self,
        *,
        max_bytes: int | None = None,
        max_age: float | None = None,
        keep: Sequence[tuple[str, str]] = (),
        only: Sequence[tuple[str, str]] | None = None,
    ) -> list[CacheEntry]:
        """See `inventory.evict`."""
        return inventory.evict(self.root, max_bytes=max_bytes, max_age=max_age, keep=keep, only=only)

    def _there(self, final: Path, manifest: Manifest, report: Reporter) -> bool:
        if not (final / MANIFEST).exists():
            return False
        report(Event("fill", "skipped", "already in the node cache", total=manifest.total_bytes))
        inventory.touch(final)
        return True

    def _reserve(self, staging: Path, manifest: Manifest) -> None:
        """Lays all files in their full length. On a disk their blocks are taken; in memory that would cost as much as
        the fetch, so there what others have begun and not yet written is counted instead."""
        needed = manifest.total_bytes
        with locked(self.root, time.monotonic() + 60, what="another process reserves space in", folder=True):
            usage = shutil.disk_usage(self.root)
            promised = sum(entry.total_bytes - entry.bytes for entry in self.list() if entry.state == "filling")
            own = inventory.allocated(staging)
            promised -= max(0, inventory.length(staging) - own)  # this fill is among those that are filling
            room = int(usage.free - usage.total * self.headroom) + own - max(0, promised)
            if needed > room:
                raise NoSpace(
                    f"the node cache {self.root} needs {format_bytes(needed)}; {format_bytes(max(0, room))} can be used",
                    hint="free some with `onecopy cache evict`, or name another folder with ONECOPY_CACHE_DIR",
                )
            in_memory = inventory.filesystem(self.root) in ("tmpfs", "ramfs")
            with _no_space(staging):
                new = staging / f"{_MANIFEST_TO_BE}.new"
                new.write_bytes(manifest.to_json())
                new.rename(staging / _MANIFEST_TO_BE)  # whole for whoever reads while we fill
            for entry in manifest.files:
                path = staging / entry.path
                path.parent.mkdir(parents=True, exist_ok=True)
                with _no_space(path):
                    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
                    try:
                        os.ftruncate(handle, entry.size)
                        if entry.size and not in_memory:
                            os.posix_fallocate(handle, 0, entry.size)
                    finally:
                        os.close(handle)


def staged_manifest(final: Path) -> Manifest:
    """The manifest of a revision that is published or being filled. Raises CacheError when it is neither."""
    for path in (final / MANIFEST, inventory.staging(final) / _MANIFEST_TO_BE, final / MANIFEST):
        with suppress(FileNotFoundError):
            return Manifest.from_json(path.read_bytes(), where=str(path))
    raise CacheError(f"not in the node cache: {final}", hint="`onecopy cache fill` puts it there")


def _missing(staging: Path, manifest: Manifest, there: PartMap) -> list[Part]:
    """The ranges to fetch. What a dead filler noted is digested again: a crash may have lost what it wrote."""
    missing: list[Part] = []
    for entry in manifest.files:
        with (staging / entry.path).open("rb", buffering=0) as file:
            for index in range(entry.range_count):
                part = Part(entry, index)
                if there.has(entry.path, index):
                    data = os.pread(file.fileno(), part.end - part.start, part.start)
                    if xxhash.xxh3_128_digest(data) == entry.range_digest(index):
                        continue
                    there.clear(entry.path, index)
                missing.append(part)
    # who reads while we fill begins with config and tokenizer, then with every file's header
    missing.sort(key=lambda part: (part.entry.path.endswith(".safetensors"), part.index > 0))
    return missing


def _fetch(
    store: Store,
    manifest: Manifest,
    staging: Path,
    missing: list[Part],
    there: PartMap,
    counter: ByteCounter,
    until: float,
) -> FetchStats:
    def done(part: Part) -> None:
        there.mark(part.entry.path, part.index)
        counter.add(part.end - part.start, part.entry.path)

    return Fetch(store, manifest, staging, missing, done=done, deadline=until).run() if missing else FetchStats()


@contextmanager
def _no_space(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"no space left for {path}", hint="free some: `onecopy cache evict`") from error
        raise CacheError(f"cannot write {path}: {error.strerror or error}") from error


def _seal(folder: Path) -> None:
    """Read-only, and on the medium. In memory fsync costs nothing."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
        _sync(path)
    folder.chmod(0o755)  # it is still to be renamed, and evicted one day
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
