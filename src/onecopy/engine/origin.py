"""Where a replica's weights come from: a whole folder, a node cache that is being filled, or a private copy.

All look alike to the loader: safetensors files below one folder, `wait` for some bytes of one, `finish` for all of them.
A folder of a node cache is leased when it is whole, for as long as this process lives, so that eviction never takes what
serves. Only what reaches a store imports a store's client.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from onecopy.core.errors import CacheError, NoSpace
from onecopy.core.units import format_bytes
from onecopy.engine.load_report import LoadReport
from onecopy.storage.layout import MANIFEST
from onecopy.weights import locks
from onecopy.weights.inventory import Lease

if TYPE_CHECKING:
    from onecopy.storage.store import Store
    from onecopy.weights.cache import FillResult
    from onecopy.weights.follow import Follower
    from onecopy.weights.manifest import Manifest

Say = Callable[[str], object]
FILL_DEADLINE = 3600.0
"""Seconds. vLLM's own patience with its engine process (VLLM_ENGINE_READY_TIMEOUT_S) may end before."""
_MARGIN = 1.05
"""Space asked for, over the bytes that will be written: pages and directories."""
_SCRATCH = "onecopy-weights-"
_LEASE_PATIENCE = 5.0
"""Seconds: who lists the cache holds the lock for a moment."""
_CANNOT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM)
_leases: dict[Path, Lease] = {}
"""Held until the process ends: the model maps the files as long."""


class Origin:
    """folder: where the weights lie when they are whole. private: nobody else maps them, and the folder goes."""

    def __init__(
        self, folder: Path, report: LoadReport, say: Say, *, follower: Follower[FillResult] | None, private: bool
    ) -> None:
        self.folder, self.private = folder, private
        self._report, self._say, self._follower = report, say, follower
        if follower is None:
            self._hold()

    @property
    def files(self) -> list[str] | None:
        """Names of the safetensors files, while the folder cannot be looked into because it is being filled."""
        if self._follower is None:
            return None
        names = [entry.path for entry in self._follower.manifest.files]
        return [name for name in names if name.endswith(".safetensors") and "/" not in name]

    @property
    def published(self) -> bool:
        """Its files never change, and others may map them too."""
        return not self.private and (self._follower is not None or (self.folder / MANIFEST).is_file())

    def open(self, path: Path) -> BinaryIO:
        return self._follower.open(path.name) if self._follower else path.open("rb")

    def wait(self, path: Path, start: int, end: int) -> None:
        """See `mapped.Wait`. The seconds count as `fill`."""
        if self._follower is not None:
            with self._report.phase("fill"):
                self._follower.wait(path.name, start, end)

    def finish(self) -> None:
        """Returns when the folder is whole and published. Raises what the fill raised."""
        follower = self._follower
        if follower is None:
            return
        with self._report.phase("fill"):
            follower.finish()
        self._follower = None
        if follower.result is not None:
            self._report.add_bytes("store", follower.result.bytes_fetched)
        self._hold()

    def _hold(self) -> None:
        if not self.published or self.folder in _leases:
            return
        until = time.monotonic() + _LEASE_PATIENCE
        while True:
            try:
                _leases[self.folder] = Lease(self.folder)
            except CacheError:
                if time.monotonic() > until or not (self.folder / MANIFEST).exists():
                    raise
                time.sleep(0.02)
            except OSError as error:
                self._say(f"no lease on {self.folder}, which eviction may take: {error.strerror or error}")
                return
            else:
                return


@contextmanager
def open_origin(
    model: Path,
    *,
    store: str | None,
    name: str | None,
    revision: str | None,
    cache: Path | None,
    report: LoadReport,
    say: Say,
) -> Iterator[Origin]:
    """model: `--model`. The others: keys of `loader.Settings`.

    A cache that cannot be used (no space, not writable) is left for a private copy, once said. What the store refuses and
    bytes that are wrong are errors: nothing else is tried then.
    """
    if any(model.glob("*.safetensors")) or not name or not revision or not (store or cache):
        yield Origin(model, report, say, follower=None, private=False)
        return
    with ExitStack() as kept:
        if store is None:
            assert cache is not None
            follower = kept.enter_context(_join(cache / name / revision))
            yield Origin(follower.final, report, say, follower=follower, private=False)
            return
        from onecopy.engine import remote

        with report.phase("fill"):
            opened, manifest = remote.open_revision(store, name, revision)
            try:
                origin = kept.enter_context(_cached(opened, manifest, cache, report, say))
            except (CacheError, OSError) as error:
                say(f"no node cache ({error}): a private copy of {format_bytes(manifest.total_bytes)} from the store")
                origin = kept.enter_context(_private(opened, manifest, report, say))
        yield origin


@contextmanager
def _cached(store: Store, manifest: Manifest, root: Path | None, report: LoadReport, say: Say) -> Iterator[Origin]:
    if root is None:
        raise CacheError("none is named")
    from onecopy.weights.cache import FillResult, NodeCache
    from onecopy.weights.follow import Follower, published

    cache = NodeCache(root)
    final = root / manifest.model / manifest.revision

    def fill() -> FillResult:
        try:
            return cache.fill(store, manifest, deadline=FILL_DEADLINE)
        except OSError as error:
            if error.errno not in _CANNOT_WRITE:
                raise
            published(final, FILL_DEADLINE)  # a mount to read from: whoever can write to it fills it
            return FillResult(final, 0, 0.0, already_there=True)

    with Follower(final, manifest, fill, FILL_DEADLINE) as follower:
        _begun(follower)
        yield Origin(final, report, say, follower=follower, private=False)


@contextmanager
def _private(store: Store, manifest: Manifest, report: LoadReport, say: Say) -> Iterator[Origin]:
    """In memory where it fits, else on disk: a node cache of our own, which is gone at the end."""
    from onecopy.engine import remote
    from onecopy.weights.cache import NodeCache

    weights = remote.weights_of(manifest)
    with _scratch(_roomy(weights.total_bytes)) as folder:
        cache = NodeCache(folder / "cache", headroom=0.0)  # who reserves space in a cache locks it too
        with cache.follow(store, weights, deadline=FILL_DEADLINE) as follower:
            _begun(follower)
            yield Origin(follower.final, report, say, follower=follower, private=True)


def _join(final: Path) -> Follower[FillResult]:
    """Follows a fill that others do, without a store."""
    from onecopy.weights.cache import FillResult, staged_manifest
    from onecopy.weights.follow import Follower, published

    def wait() -> FillResult:
        published(final, FILL_DEADLINE)
        return FillResult(final, 0, 0.0, already_there=True)

    return Follower(final, staged_manifest(final), wait, FILL_DEADLINE)


def _begun(follower: Follower[FillResult]) -> None:
    """Raises at once what keeps a fill from its first bytes, so that something else can still be tried."""
    first = next((entry.path for entry in follower.manifest.files if entry.path.endswith(".safetensors")), None)
    if first is None:
        follower.finish()
    else:
        follower.wait(first, 0, 1)


@contextmanager
def _scratch(base: Path) -> Iterator[Path]:
    """A folder of our own, which goes with us: what a killed replica has left is removed by the next one."""
    for old in base.glob(f"{_SCRATCH}*"):
        if old.stat().st_uid == os.geteuid() and (lock := locks.try_exclusive(old)) is not None:
            shutil.rmtree(old, ignore_errors=True)
            os.close(lock)
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=base, ignore_cleanup_errors=True) as name:
        lock = locks.try_exclusive(Path(name))
        if lock is None:
            raise CacheError(f"{name} was taken away", hint="start the replica again")
        try:
            yield Path(name)
        finally:
            os.close(lock)


def _roomy(needed: int) -> Path:
    """Memory where it fits, else the temporary folder. Raises NoSpace."""
    bases = [Path("/dev/shm"), Path(tempfile.gettempdir())]  # noqa: S108 - a private folder is made in it
    free = {base: shutil.disk_usage(base).free for base in bases if base.is_dir()}
    for base, room in free.items():
        if room >= needed * _MARGIN:
            return base
    rooms = ", ".join(f"{format_bytes(room)} free in {base}" for base, room in free.items())
    raise NoSpace(
        f"a private copy of the weights needs {format_bytes(needed * _MARGIN)}; {rooms}",
        hint="raise the size of /dev/shm, or give the replica a node cache",
    )
