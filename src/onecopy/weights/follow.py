"""Reading a revision while it is filled: wait for just the bytes that are needed, whoever fetches them.

The part map is shared by all processes of the node. A follower also asks for the fill itself, on a thread: that waits
while another process fills, and goes on from the part map should that one die. So a reader never waits for nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from onecopy.core.errors import CacheError
from onecopy.storage.layout import MANIFEST
from onecopy.weights import inventory
from onecopy.weights.manifest import Manifest
from onecopy.weights.partmap import PartMap

_PAUSE = 0.005


class Follower:
    """A context manager. Leaving it waits for the fill, unless an exception is on its way."""

    def __init__(self, final: Path, manifest: Manifest, fill: Callable[[], object], deadline: float) -> None:
        self._final, self._manifest, self._fill = final, manifest, fill
        self._until = time.monotonic() + deadline
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._thread.join()
            self._raise()

    def open(self, path: str) -> Path:
        """Where the file lies now: it can be opened and mapped, and stays readable when the revision is published."""
        while True:
            for folder in (self._final, inventory.staging(self._final)):
                if (folder / path).exists():
                    return folder / path
            self._pause(f"{path} was not begun")

    def wait(self, path: str, start: int, end: int) -> None:
        """Returns when bytes [start, end) of the file are verified. Raises what the fill raised; CacheError: too late."""
        entry = self._manifest.file(path)
        first, last = start // entry.range_size, -(-end // entry.range_size)
        while not (self._final / MANIFEST).exists():
            with (
                suppress(FileNotFoundError),
                PartMap(inventory.parts(self._final), self._manifest, write=False) as there,
            ):
                if not there.fresh and there.has(path, first, last):
                    return
            self._pause(f"bytes {start}-{end} of {path} did not come")

    def _pause(self, what: str) -> None:
        self._raise()
        if time.monotonic() > self._until:
            raise CacheError(f"{what} in time: {self._final}", hint="see `onecopy cache status`")
        time.sleep(_PAUSE)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._fill()
        except BaseException as error:
            self._error = error
