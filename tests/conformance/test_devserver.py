"""The embedded S3 server: where it listens, what it leaves, and that it dies with whoever started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onecopy.core.errors import StackError
from onecopy.storage.devserver import DevServer
from onecopy.storage.objectstore import open_store

STARTER = """
import sys, time
from pathlib import Path
from onecopy.storage.devserver import DevServer
server = DevServer(Path(sys.argv[1])).start()
print(server.pid, flush=True)
time.sleep(60)
"""


def processes_of(group: int) -> list[Path]:
    found: list[Path] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(stat.parent)
    return found


def listening_addresses() -> dict[str, set[str]]:
    """socket inode → addresses, of IPv4 and IPv6 listeners."""
    found: dict[str, set[str]] = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            parts = line.split()
            if parts[3] == "0A":
                found.setdefault(parts[9], set()).add(parts[1].partition(":")[0])
    return found


def test_keeps_data_between_starts_and_listens_on_loopback_only(tmp_path: Path) -> None:
    with DevServer(tmp_path / "data", access_key="first", secret_key="first-secret") as server:
        store = open_store(server.uri, server.options)
        store.put("a/b", b"kept")
        listening = listening_addresses()
        assert server.pid is not None
        addresses: set[str] = set()
        for process in processes_of(server.pid):
            assert b"first-secret" not in (process / "cmdline").read_bytes()
            for fd in (process / "fd").iterdir():
                addresses |= listening.get(str(fd.readlink())[len("socket:[") : -1], set())
        assert addresses == {"0100007F"}
        sockets = server._sockets
        group = server.pid
    assert processes_of(group) == []
    assert sockets is not None
    assert not sockets.exists()
    with DevServer(tmp_path / "data", access_key="first", secret_key="first-secret") as server:
        assert open_store(server.uri, server.options).get("a/b")[0] == b"kept"


def test_two_servers_side_by_side(tmp_path: Path) -> None:
    with DevServer(tmp_path / "one") as one, DevServer(tmp_path / "two") as two:
        open_store(one.uri, one.options).put("k", b"1")
        open_store(two.uri, two.options).put("k", b"2")
        assert open_store(one.uri, one.options).get("k")[0] == b"1"


def test_dies_with_its_parent_when_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        group = int(parent.stdout.readline())
        assert processes_of(group)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 15
    while processes_of(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(group) == []


def test_says_so_when_it_cannot_start(tmp_path: Path) -> None:
    server = DevServer(tmp_path, binary=Path("/bin/false"))
    with pytest.raises(StackError, match="did not answer"):
        server.start(timeout=1)
    assert not server.running
