"""Child processes: each in a group of its own, dying with the supervisor, and told from a later one of the same pid."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from onecopy.targets.local.home import ProcessRecord

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def start(name: str, argv: Sequence[str], *, log: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Starts a child that the kernel ends when its parent does. Call from a thread that lives as long as the child should."""

    def in_child() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    with log.open("ab") as out:
        out.write(f"--- {name} started {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        out.flush()
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, start_new_session=True, preexec_fn=in_child
        )


def started_at(pid: int) -> int | None:
    """Clock ticks since boot at which `pid` started (field 22 of /proc/PID/stat); None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def record(name: str, pid: int) -> ProcessRecord:
    return ProcessRecord(name=name, pid=pid, started=started_at(pid) or 0)


def alive(process: ProcessRecord) -> bool:
    return process.started != 0 and started_at(process.pid) == process.started


def end(processes: Iterable[ProcessRecord], *, timeout: float = 10.0) -> list[ProcessRecord]:
    """SIGTERM to each live one's group, SIGKILL to what is left at the deadline. Returns those that were alive."""
    live = [process for process in processes if alive(process)]
    for process in live:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while any(alive(process) for process in live) and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in live:
        if alive(process):
            _signal(process, signal.SIGKILL)
    return live


def _signal(process: ProcessRecord, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, number)
        else:
            os.kill(process.pid, number)


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def port_is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free for a listener
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def descendants(root: int) -> list[int]:
    """Pids below `root`, children before grandchildren."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                below.setdefault(parent, []).append(int(entry.name))
    found, queue = list[int](), [root]
    while queue:
        for child in below.get(queue.pop(0), ()):
            found.append(child)
            queue.append(child)
    return found


def end_descendants() -> None:
    """SIGKILL to whatever is still below this process: an installer that was interrupted, a helper of a child."""
    for pid in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
