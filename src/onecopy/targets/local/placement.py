"""Where the node cache goes and how much memory a stack needs, decided before anything is started.

A replica's own memory is what a vLLM CPU server holds beside weights and KV cache: 0.62 GB for a forked one (it shares
the parent's imports) and 1.5 GB for one that imported everything itself; both measured with vLLM 0.32 on x86-64.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from onecopy.core.errors import NoSpace
from onecopy.core.units import GiB, MiB, format_bytes
from onecopy.targets.local.home import SHM, Home

FORKED_REPLICA = 620 * MiB
PLAIN_REPLICA = 3 * GiB // 2
DEFAULT_KV_CACHE = 128 * MiB
# the engine's packed layout of the weights stands beside the checkpoint
COPIES_IN_CACHE = 2


@dataclass(frozen=True, slots=True)
class Placement:
    """cache: the node cache's root. in_memory: whether that is a tmpfs. needed: bytes there; memory: bytes of the whole."""

    cache: Path
    in_memory: bool
    needed: int
    memory: int
    note: str


def place(
    home: Home,
    *,
    checkpoint_bytes: int,
    replicas: int,
    kv_cache_bytes: int | None,
    fork_server: bool,
    headroom: float,
    cache_dir: Path | None = None,
) -> Placement:
    """Raises NoSpace, with what is needed and what there is, when the replicas or the cache do not fit."""
    needed = checkpoint_bytes * COPIES_IN_CACHE
    each = (kv_cache_bytes or DEFAULT_KV_CACHE) + (FORKED_REPLICA if fork_server else PLAIN_REPLICA)
    available = available_memory()
    if cache_dir is not None:
        root, in_memory, note = cache_dir, _is_tmpfs(cache_dir), "as configured"
    else:
        room = _usable(SHM, headroom) if _writable(SHM) else 0
        in_memory = needed <= room and needed + replicas * each <= available
        root = home.shm_cache if in_memory else home.disk_cache
        note = (
            "in memory" if in_memory else f"on disk: {SHM} has room for {format_bytes(room)} of {format_bytes(needed)}"
        )
    memory = replicas * each + (needed if in_memory else checkpoint_bytes)
    if memory > available:
        raise NoSpace(
            f"{replicas} replicas need {format_bytes(memory)} of memory ({format_bytes(each)} each, and one copy of the "
            f"weights); {format_bytes(available)} is available",
            hint=f"--replicas {max(1, int((available - needed) // each))}, a smaller model, or a smaller kv_cache_bytes",
        )
    room = _usable(root, headroom)
    if needed > room:
        raise NoSpace(
            f"the node cache needs {format_bytes(needed)} in {root}; {format_bytes(room)} can be used there",
            hint="free some, or name another folder: `cache.dir` in onecopy.toml, ONECOPY_CACHE_DIR",
        )
    return Placement(root, in_memory, needed, memory, note)


def available_memory() -> int:
    """MemAvailable of /proc/meminfo, or the cgroup's limit less its use where that is less; in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            host = int(line.split()[1]) * 1024
            break
    else:
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return host
    return min(host, max(0, limit - used))


def _usable(path: Path, headroom: float) -> int:
    """Free bytes under `path` less the head-room, a part of the whole file system."""
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return max(0, int(usage.free - usage.total * headroom))


def _writable(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.W_OK)


def _is_tmpfs(path: Path) -> bool:
    while not path.exists():
        path = path.parent
    best, kind = Path("/"), ""
    for line in Path("/proc/mounts").read_text().splitlines():
        mount, fs = line.split()[1:3]
        if path.resolve().is_relative_to(mount) and len(mount) >= len(str(best)):
            best, kind = Path(mount), fs
    return kind == "tmpfs"
