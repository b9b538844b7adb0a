"""A Hugging Face folder on this machine. Pinned by each file's size, modification time and inode."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from onecopy.core.errors import SourceChanged, SourceDenied, SourceError, SourceMissing
from onecopy.registry.sources.base import SourceFile
from onecopy.registry.sources.selection import Selection
from onecopy.weights.manifest import SourceInfo

_Pin = tuple[int, int, int]


class FolderSource:
    """uri: what the manifest will say of the source; by default only that it was a folder, never its path."""

    def __init__(self, folder: Path, selection: Selection | None = None, *, uri: str = "folder") -> None:
        if not folder.is_dir():
            raise SourceMissing(f"no such folder: {folder}", hint="give a Hugging Face folder, or hf://org/name")
        self._folder = folder
        self.info = SourceInfo(uri=uri)
        found: dict[str, os.stat_result] = {}
        for parent, _, names in os.walk(folder, followlinks=True):
            for name in names:
                path = Path(parent, name)
                with suppress(FileNotFoundError):  # a dangling link, or a file that has just gone: not there
                    found[path.relative_to(folder).as_posix()] = path.stat()
        chosen = (selection or Selection()).chosen(found)
        self._pins: dict[str, _Pin] = {path: _pin(found[path]) for path in chosen}
        self.files: Sequence[SourceFile] = [SourceFile(path, found[path].st_size) for path in chosen]
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(self, file: SourceFile, start: int, end: int) -> memoryview:
        fd = self._fd(file.path)
        buffer = bytearray(end - start)
        view, at = memoryview(buffer), 0
        while at < len(view):
            try:
                count = os.preadv(fd, [view[at:]], start + at)
            except OSError as error:
                raise SourceError(f"cannot read {self._folder / file.path}: {error.strerror}") from error
            if count == 0:
                break
            at += count
        if at < len(view) or _pin(os.fstat(fd)) != self._pins[file.path]:
            raise SourceChanged(f"{self._folder / file.path} changed while it was read", hint="publish it again")
        return view

    def close(self) -> None:
        with self._lock:
            for fd in self._open.values():
                os.close(fd)
            self._open.clear()

    def _fd(self, path: str) -> int:
        with self._lock:
            if path not in self._open:
                where = self._folder / path
                try:
                    self._open[path] = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError as error:
                    raise SourceChanged(f"{where} is gone", hint="publish again") from error
                except OSError as error:
                    raise SourceDenied(f"cannot open {where}: {error.strerror}") from error
            return self._open[path]


def _pin(stat: os.stat_result) -> _Pin:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
