"""Memory of running replicas, as the kernel counts it: /proc/<pid>/smaps.

PSS shares a page's bytes among the processes that map it, so a sum over processes counts every page once. RSS counts it
once a process: the sum is what N copies would take.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ [0-9a-f]+ \S+ \d+\s*(.*)$")
_DELETED = " (deleted)"
_Wanted = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. pss: every page once among the processes asked about. rss: once for each process that maps it."""

    pss: int = 0
    rss: int = 0

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.pss + other.pss, self.rss + other.rss)


def processes(leader: int) -> list[int]:
    """Pids of a process group: a replica's API server and all that it started."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == leader:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


def weights(leaders: Iterable[int], folders: Iterable[Path]) -> Memory:
    """Resident memory of the weight files below `folders` (the cache with its packed images) in replicas' processes.

    leaders: pids that lead the replicas' process groups. Processes that have ended count as nothing.
    """
    prefixes = tuple(f"{folder.resolve()}/" for folder in folders)
    return _sum(leaders, lambda path: path.startswith(prefixes))


def private(leaders: Iterable[int]) -> Memory:
    """Memory that no file is behind: interpreters, KV caches, and weights that are not shared."""
    return _sum(leaders, lambda path: not path.startswith("/"))


def total(leaders: Iterable[int]) -> Memory:
    """All memory of the replicas."""
    return _sum(leaders, lambda _path: True)


def _sum(leaders: Iterable[int], wanted: _Wanted) -> Memory:
    result = Memory()
    for leader in leaders:
        for pid in processes(leader):
            result += _of(pid, wanted)
    return result


def _of(pid: int, wanted: _Wanted) -> Memory:
    pss = rss = 0
    counts = False
    try:
        with Path(f"/proc/{pid}/smaps").open(encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                if line.startswith("Pss:"):
                    pss += int(line.split()[1]) if counts else 0
                elif line.startswith("Rss:"):
                    rss += int(line.split()[1]) if counts else 0
                elif match := _MAPPING.match(line):
                    counts = wanted(match[1].removesuffix(_DELETED))
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return Memory()
    return Memory(pss << 10, rss << 10)
