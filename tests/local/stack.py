"""Runs the command line against a home of the test's own, as a user would: separate processes, real parts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT = 900  # the first start on a machine installs the engine


class Cli:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("ONECOPY_", "AWS_")) or key == "ONECOPY_ENVIRONMENTS"
        }

    def run(self, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "onecopy", *args, "--home", str(self.home)],
            env={**self.env, **(env or {})},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            cwd=self.home.parent,
        )

    def ok(self, *args: str) -> Any:
        result = self.run(*args, "--json")
        assert result.returncode == 0, result.stderr[-4000:]
        return json.loads(result.stdout)

    def refused(self, *args: str, env: dict[str, str] | None = None) -> str:
        """The error's message and hint; asserts that nothing was made in the home."""
        result = self.run(*args, env=env)
        assert result.returncode == 1, (result.stdout, result.stderr)
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        assert "hint:" in result.stderr
        return result.stderr

    def processes(self) -> list[str]:
        """Command lines of all processes that name this home, and of what runs in their groups."""
        groups: set[int] = set()
        found: dict[int, tuple[int, str]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    stat = (entry / "stat").read_text().rpartition(")")[2].split()
                    if stat[0] == "Z" or int(entry.name) == os.getpid():
                        continue
                    found[int(entry.name)] = (int(stat[2]), line)
                    if str(self.home) in line:
                        groups.add(int(stat[2]))
        return [f"{pid}: {line[:200]}" for pid, (group, line) in found.items() if group in groups]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def until(what: str, check: Callable[[], bool], *, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
        time.sleep(0.1)
