"""Advisory locks on files and folders: the kernel frees a dead holder's, whatever the clock says."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onecopy.core.errors import CacheError

_PAUSE = 0.02


@contextmanager
def locked(path: Path, deadline: float, *, what: str, folder: bool = False) -> Iterator[None]:
    """Exclusive, on the file (made when it is not there) or folder that `path` names when the lock is had.

    deadline: by the monotonic clock. what: who holds it, for the message. Raises CacheError at the deadline.
    """
    while True:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _wait(handle, path, deadline, what)
            if same(handle, path):
                yield
                return
        finally:
            os.close(handle)
        if folder:
            path.mkdir(exist_ok=True)  # the holder published or removed it


def try_shared(path: Path) -> int | None:
    """A descriptor that holds the file's lock together with others, or None when it is held for deletion or is gone."""
    return _try(path, fcntl.LOCK_SH)


def try_exclusive(path: Path) -> int | None:
    """A descriptor that holds the file's lock alone, or None. Close it to let go."""
    return _try(path, fcntl.LOCK_EX)


def same(handle: int, path: Path) -> bool:
    """Does `path` still name what is open?"""
    try:
        there, here = path.stat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _try(path: Path, how: int) -> int | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    if not same(handle, path):
        os.close(handle)
        return None
    return handle


def _wait(handle: int, path: Path, deadline: float, what: str) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise CacheError(f"{what} {path.parent}", hint="see `onecopy cache status`") from error
            time.sleep(_PAUSE)
        else:
            return
