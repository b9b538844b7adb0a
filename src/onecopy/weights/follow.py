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
from typing import BinaryIO, Generic, Self, TypeVar

from onecopy.core.errors import CacheError
from onecopy.storage.layout import MANIFEST
from onecopy.weights import inventory
from onecopy.weights.manifest import Manifest
from onecopy.weights.partmap import PartMap, identity

_PAUSE = 0.005
PATIENCE = 30.0
"""Seconds that `published` waits for somebody to fill: an agent that died is started again within them."""
Result = TypeVar("Result")


class Follower(Generic[Result]):
    """A context manager. Leaving it waits for the fill, unless an exception is on its way.

    fill: returns when the revision is published. Its result is `result` after `finish`.
    """

    def __init__(self, final: Path, manifest: Manifest, fill: Callable[[], Result], deadline: float) -> None:
        self.final, self.manifest, self._fill = final, manifest, fill
        self._until = time.monotonic() + deadline
        self._known = identity(manifest)
        self._error: BaseException | None = None
        self.result: Result | None = None
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.finish()

    def finish(self) -> None:
        """Returns when the revision is published. Raises what the fill raised."""
        self._thread.join()
        self._raise()

    def open(self, path: str) -> BinaryIO:
        """The file, wherever it lies now: what is opened or mapped stays readable when the revision is published."""
        while True:
            for folder in (self.final, inventory.staging(self.final)):
                with suppress(FileNotFoundError):
                    return (folder / path).open("rb")
            self._pause(f"{path} was not begun")

    def wait(self, path: str, start: int, end: int) -> None:
        """Returns when bytes [start, end) of the file are verified. Raises what the fill raised; CacheError: too late."""
        entry = self.manifest.file(path)
        first, last = start // entry.range_size, -(-end // entry.range_size)
        while not (self.final / MANIFEST).exists():
            with (
                suppress(FileNotFoundError),
                PartMap(inventory.parts(self.final), self.manifest, write=False, known=self._known) as there,
            ):
                if there.vouched and there.has(path, first, last):
                    return
            self._pause(f"bytes {start}-{end} of {path} did not come")

    def _pause(self, what: str) -> None:
        self._raise()
        if time.monotonic() > self._until:
            raise CacheError(f"{what} in time: {self.final}", hint="see `onecopy cache status`")
        time.sleep(_PAUSE)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self.result = self._fill()
        except BaseException as error:
            self._error = error


def published(final: Path, deadline: float) -> None:
    """Waits for others to publish the revision: for readers that cannot fill it. Raises CacheError when nobody fills."""
    until = time.monotonic() + deadline
    alive = time.monotonic()
    while not (final / MANIFEST).exists():
        now = time.monotonic()
        if inventory.held(inventory.staging(final)):
            alive = now
        if now > until or now - alive > PATIENCE:
            raise CacheError(
                f"nobody fills {final}" if now <= until else f"{final} was not filled in time",
                hint="see `onecopy cache status`; `onecopy cache fill` fills it",
            )
        time.sleep(_PAUSE * 10)
