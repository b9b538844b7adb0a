"""Which ranges of a fill are there: one byte a range in a file beside it, set when the range is verified and written.

It is a filler's note to whoever goes on after it died, and to readers that wait for just what they need. It is bound to
the manifest by a digest. After a crash of the machine it may say more than the disk holds: who resumes digests again,
and until it has, readers do not believe the map (`vouched`).
"""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path
from typing import Self

from onecopy.weights.manifest import Manifest

_MAGIC = b"onecopy1"
_IDENTITY = len(_MAGIC) + 32
_BOOT = 16
_HEADER = _IDENTITY + _BOOT


def identity(manifest: Manifest) -> bytes:
    """What the map of this manifest begins with."""
    return _MAGIC + hashlib.sha256(manifest.to_json()).digest()


class PartMap:
    """Ranges are numbered through all files in the manifest's order. Use as a context manager."""

    def __init__(self, path: Path, manifest: Manifest, *, write: bool, known: bytes | None = None) -> None:
        """Opens it, or makes it anew when it is of another manifest. Raises FileNotFoundError when only reading.

        known: `identity(manifest)`, for who opens it many times.
        """
        self.first: dict[str, int] = {}
        self.count = 0
        for entry in manifest.files:
            self.first[entry.path] = self.count
            self.count += entry.range_count
        known = known or identity(manifest)
        self._handle = os.open(path, (os.O_RDWR | os.O_CREAT if write else os.O_RDONLY) | os.O_CLOEXEC, 0o644)
        there = os.pread(self._handle, _HEADER, 0)
        self.fresh = there[:_IDENTITY] != known
        self.vouched = not self.fresh and there[_IDENTITY:] == _boot()
        if write:
            if self.fresh:
                os.ftruncate(self._handle, 0)
                os.ftruncate(self._handle, _HEADER + self.count)
            os.pwrite(self._handle, known + bytes(_BOOT), 0)  # not vouched for

    def vouch(self) -> None:
        """What the map says was checked by a filler of this boot: readers may believe it from now on."""
        os.pwrite(self._handle, _boot(), _IDENTITY)

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


def _boot() -> bytes:
    """The same until the machine starts again. Where the system does not tell, every boot is the same one."""
    try:
        return uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()).bytes
    except (OSError, ValueError):
        return b"\xff" * _BOOT
