"""What is in a node cache, who holds it, and how it leaves.

A lease is a shared lock (flock) on the revision's manifest: it ends with its holder, however that ends, works on a
read-only mount, and knows no clock. Eviction takes the same lock alone, renames, then deletes: who has the files open or
mapped keeps them. Ages are by the clock that counts from the boot of the machine, so that setting the time moves none.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from onecopy.core.errors import CacheError
from onecopy.storage.layout import MANIFEST
from onecopy.weights import locks

PACKED = ".packed"
"""Beside the revisions: what an engine made of them (`<revision>-…`); it goes when its revision goes."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """bytes: taken on the medium, packed images included. total_bytes: when it is whole. age: seconds since it was last
    asked for. state: filling has a live filler, partial is left of a dead one."""

    model: str
    revision: str
    path: Path
    state: Literal["published", "filling", "partial"]
    bytes: int
    total_bytes: int
    age: float
    leased: bool


class Lease:
    """See `NodeCache.lease`. A context manager; `close` ends it."""

    def __init__(self, folder: Path) -> None:
        handle = locks.try_shared(folder / MANIFEST)
        if handle is None:
            raise CacheError(f"not in the node cache: {folder}", hint="`onecopy cache fill` puts it there")
        self.path, self._handle = folder, handle

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def staging(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def parts(final: Path) -> Path:
    return final.with_name(f".{final.name}.parts")


def lock(final: Path) -> Path:
    return final.with_name(f".{final.name}.lock")


def touch(final: Path) -> None:
    """Notes that the revision was asked for."""
    with suppress(OSError):  # a reader's mount may be read-only, and this is but a hint for eviction
        final.with_name(f".{final.name}.used").write_text(json.dumps(_now()))


def scan(root: Path) -> list[CacheEntry]:
    found: list[CacheEntry] = []
    for model in sorted(path for path in _children(root) if path.is_dir() and not path.name.startswith(".")):
        for path in sorted(_children(model)):
            if path.name.startswith(".") and path.name.endswith(".partial"):
                final = path.with_name(path.name[1 : -len(".partial")])
                state = "filling" if held(lock(final)) or held(path) else "partial"
                found.append(
                    CacheEntry(model.name, final.name, path, state, allocated(path), length(path), age(final), False)
                )
            elif not path.name.startswith(".") and (path / MANIFEST).exists():
                packed = sum(allocated(image) for image in _children(model / PACKED) if _made_of(image, path))
                size = allocated(path)
                leased = held(path / MANIFEST)
                found.append(
                    CacheEntry(model.name, path.name, path, "published", size + packed, length(path), age(path), leased)
                )
    return found


def evict(
    root: Path,
    *,
    max_bytes: int | None,
    max_age: float | None,
    keep: Sequence[tuple[str, str]],
    only: Sequence[tuple[str, str]] | None,
) -> list[CacheEntry]:
    """Removes what was not asked for longest: until at most `max_bytes` are taken, and all older than `max_age` seconds.

    keep, only: (model, revision). What is leased or being filled stays, whatever was asked for. Returns what went.
    """
    entries = sorted(scan(root), key=lambda entry: -entry.age)
    total = sum(entry.bytes for entry in entries)
    gone: list[CacheEntry] = []
    for entry in entries:
        name = (entry.model, entry.revision)
        named = only is not None and name in only
        asked = named or (
            only is None
            and name not in keep
            and ((max_bytes is not None and total > max_bytes) or (max_age is not None and entry.age > max_age))
        )
        if asked and entry.state != "filling" and not entry.leased and _remove(entry):
            total -= entry.bytes
            gone.append(entry)
    return gone


def allocated(folder: Path) -> int:
    """Bytes that the files below take on the medium."""
    return sum(info.st_blocks * 512 for info in _stats(folder))


def length(folder: Path) -> int:
    return sum(info.st_size for info in _stats(folder))


def age(final: Path) -> float:
    """Seconds since it was last asked for; 0 when that was before this boot or is not known: then it counts from now."""
    note = final.with_name(f".{final.name}.used")
    boot, now = _now()
    try:
        then_boot, then = json.loads(note.read_text())
        if then_boot == boot and then <= now:
            return now - then
    except (OSError, ValueError, TypeError):
        pass
    touch(final)
    return 0.0


def filesystem(path: Path) -> str:
    """Type of the file system that `path` lies on, as the kernel calls it; empty when it cannot be told."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            if left.split()[2] == number:
                return right.split()[0]
    return ""


def _remove(entry: CacheEntry) -> bool:
    final = entry.path if entry.state == "published" else entry.path.with_name(entry.revision)
    filling = locks.try_exclusive(lock(final)) if lock(final).exists() else None
    if filling is None and lock(final).exists():
        return False  # somebody began to fill it just now
    try:
        alone = locks.try_exclusive(final / MANIFEST) if entry.state == "published" else -1
        if alone is None:
            return False
        try:
            going = final.with_name(f".{final.name}.evicted-{os.getpid()}")
            with suppress(FileNotFoundError):
                entry.path.rename(going)
            shutil.rmtree(going, ignore_errors=True)
            for image in _children(final.parent / PACKED):
                if _made_of(image, final):
                    _delete(image)
            for left in (parts(final), final.with_name(f".{final.name}.used")):
                left.unlink(missing_ok=True)
        finally:
            if alone >= 0:
                os.close(alone)
    finally:
        if filling is not None:
            os.close(filling)
    return not entry.path.exists()


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _made_of(image: Path, final: Path) -> bool:
    return image.name.startswith(f"{final.name}-")


def held(path: Path) -> bool:
    """Somebody holds a lock on it."""
    handle = locks.try_exclusive(path)
    if handle is None:
        return path.exists()
    os.close(handle)
    return False


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _stats(folder: Path) -> Iterator[os.stat_result]:
    for path in (folder, *folder.rglob("*")) if folder.is_dir() else (folder,):
        with suppress(FileNotFoundError):
            if path.is_file():
                yield path.stat()


def _now() -> tuple[str, float]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return boot, time.clock_gettime(time.CLOCK_BOOTTIME)
