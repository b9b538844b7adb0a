"""Environments are built once, whoever asks, and a build that was killed is made good. Needs a package index."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onecopy.core.errors import EngineError
from onecopy.core.events import Event
from onecopy.engine.environments import MARKER, ensure

pytestmark = pytest.mark.engine
LOCK = "xxhash==4.1.0\n"
BUILD = """
import sys
from onecopy.engine.environments import ensure
ensure("test", "a test", sys.argv[1], lambda event: print(event.state, event.message, flush=True))
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONECOPY_ENVIRONMENTS", str(tmp_path))


def build() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", BUILD, LOCK], stdout=subprocess.PIPE, text=True)


def test_two_at_once_build_one_and_a_killed_build_is_repaired(tmp_path: Path) -> None:
    killed = build()
    while not list(tmp_path.glob("test-*/bin/python")):
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    (folder,) = (path for path in tmp_path.glob("test-*") if path.is_dir())
    assert not (folder / MARKER).exists()
    both = [build(), build()]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("installed a test" in text for text in said) == [False, True]
    code = "import xxhash, sys; print(xxhash.VERSION, sys.prefix)"
    told = subprocess.run([folder / "bin/python", "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["4.1.0", str(folder)]
    events: list[Event] = []
    assert ensure("test", "a test", LOCK, events.append) == folder
    assert [event.state for event in events] == ["skipped"]


def test_a_package_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"xxhash==0\.0\.0") as raised:
        ensure("test", "a test", "xxhash==0.0.0\n", lambda event: None)
    assert "package index" in (raised.value.hint or "")
    assert not list(tmp_path.glob(f"*/{MARKER}"))
