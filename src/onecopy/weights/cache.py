"""The node cache: one folder a node with whole, published, read-only revisions.

<root>/<model>/<revision>/          a published revision, as it lay in the store
<root>/<model>/.<revision>.partial  being filled
<root>/<model>/.<revision>.lock     held (flock) by the one that fills; the kernel frees a dead one's
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from onecopy.core.errors import CacheError, NoSpace
from onecopy.core.events import ByteCounter, Event, Reporter, silent
from onecopy.core.units import format_bytes
from onecopy.storage.layout import MANIFEST
from onecopy.storage.store import Store
from onecopy.weights.fetch import fetch
from onecopy.weights.manifest import Manifest


@dataclass(frozen=True, slots=True)
class FillResult:
    """path: the published folder. bytes_fetched: read from the store by this call."""

    path: Path
    bytes_fetched: int
    seconds: float
    already_there: bool


class NodeCache:
    """headroom: the part of the file system that a fill leaves free."""

    def __init__(self, root: Path, *, headroom: float = 0.1) -> None:
        self.root, self.headroom = root, headroom

    def fill(
        self, store: Store, manifest: Manifest, *, report: Reporter = silent, deadline: float = 3600
    ) -> FillResult:
        """Publishes the revision in the cache, unless it is there. One process fills, the others wait for it.

        deadline: seconds. Raises NoSpace before the first byte, IntegrityError and StoreError with nothing published.
        """
        begun = time.monotonic()
        model = self.root / manifest.model
        final = model / manifest.revision
        model.mkdir(parents=True, exist_ok=True)
        with self._single_flight(model / f".{manifest.revision}.lock", begun + deadline):
            if (final / MANIFEST).exists():
                report(Event("fill", "skipped", "already in the node cache", total=manifest.total_bytes))
                return FillResult(final, 0, time.monotonic() - begun, already_there=True)
            staging = model / f".{manifest.revision}.partial"
            shutil.rmtree(staging, ignore_errors=True)
            self._check_space(manifest.total_bytes)
            staging.mkdir()
            counter = ByteCounter(report, "fill", manifest.total_bytes)
            try:
                fetch(store, manifest, staging, counter)
                (staging / MANIFEST).write_bytes(manifest.to_json())
                _seal(staging)
                staging.rename(final)
            except BaseException:
                shutil.rmtree(staging, ignore_errors=True)
                raise
            return FillResult(final, counter.done, time.monotonic() - begun, already_there=False)

    def _check_space(self, needed: int) -> None:
        usage = shutil.disk_usage(self.root)
        room = int(usage.free - usage.total * self.headroom)
        if needed > room:
            raise NoSpace(
                f"the node cache {self.root} needs {format_bytes(needed)}; {format_bytes(max(0, room))} can be used",
                hint="free some, or name another folder with ONECOPY_CACHE_DIR",
            )

    @contextmanager
    def _single_flight(self, path: Path, deadline: float) -> Iterator[None]:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise CacheError(
                            f"another process still fills {path.parent}", hint="see `onecopy cache status`"
                        ) from error
                    time.sleep(0.02)
            yield
        finally:
            os.close(handle)


def _seal(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    folder.chmod(0o755)  # it is still to be renamed, and evicted one day
