"""Which ranges of a fill are there: one byte a range in a file beside it, set when the range is verified and written.

It is a filler's note to whoever goes on after it died, and to readers that wait for just what they need. It is bound to
the manifest by a digest. After a crash of the machine it may say more than the disk holds: who resumes digests again.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Self

from onecopy.weights.manifest import Manifest

_MAGIC = b"onecopy1"
_HEADER = len(_MAGIC) + 32


class PartMap:
    """Ranges are numbered through all files in the manifest's order. Use as a context manager."""

    def __init__(self, path: Path, manifest: Manifest, *, write: bool) -> None:
        """Opens it, or makes it anew when it is of another manifest. Raises FileNotFoundError when only reading."""
        self.first: dict[str, int] = {}
        self.count = 0
        for entry in manifest.files:
            self.first[entry.path] = self.count
            self.count += entry.range_count
        header = _MAGIC + hashlib.sha256(manifest.to_json()).digest()
        self._handle = os.open(path, (os.O_RDWR | os.O_CREAT if write else os.O_RDONLY) | os.O_CLOEXEC, 0o644)
        self.fresh = os.pread(self._handle, _HEADER, 0) != header
        if self.fresh and write:
            os.ftruncate(self._handle, 0)
            os.ftruncate(self._handle, _HEADER + self.count)
            os.pwrite(self._handle, header, 0)

    def mark(self, path: str, index: int) -> None:
        os.pwrite(self._handle, b"\x01", _HEADER + self.first[path] + index)

    def clear(self, path: str, index: int) -> None:
        os.pwrite(self._handle, b"\x00", _HEADER + self.first[path] + index)

    def has(self, path: str, index: int, end: int | None = None) -> bool:
        """Range `index`, or all of [index, end), of the file."""
        span = 1 if end is None else end - index
        return os.pread(self._handle, span, _HEADER + self.first[path] + index) == b"\x01" * span

    def close(self) -> None:
        os.close(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
