"""The state folder: lock, state file, credentials, placement."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from onecopy.core.errors import NoSpace, StackError
from onecopy.targets.local import processes
from onecopy.targets.local.home import Home, State
from onecopy.targets.local.placement import place


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    made.prepare()
    return made


def test_lock_is_freed_by_a_killed_holder(home: Home) -> None:
    code = (
        "import sys, pathlib, time\nfrom onecopy.targets.local.home import Home\n"
        f"with Home(pathlib.Path({str(home.root)!r})).owned():\n    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert home.is_owned()
        with pytest.raises(StackError, match="runs already"), home.owned():
            pass
        holder.kill()
    assert not home.is_owned()


def test_state_of_another_version_is_refused(home: Home) -> None:
    home.state_file.write_text(json.dumps({"format": 99}))
    with pytest.raises(StackError, match="another version") as caught:
        home.read_state()
    assert "--home" in (caught.value.hint or "")


def test_torn_state_says_how_to_start_over(home: Home) -> None:
    home.write_state(State(model="m"))
    home.state_file.write_text(home.state_file.read_text()[:40])
    with pytest.raises(StackError) as caught:
        home.read_state()
    assert "--purge" in (caught.value.hint or "")


def test_credentials_are_made_once_and_private(home: Home) -> None:
    first = home.credentials()
    assert home.credentials() == first
    assert stat.S_IMODE(home.credentials_file.stat().st_mode) == 0o600
    assert first[1].reveal() not in repr(first)


def test_a_record_is_not_fooled_by_another_process_of_the_same_pid() -> None:
    mine = processes.record("me", os.getpid())
    assert processes.alive(mine)
    assert not processes.alive(mine.model_copy(update={"started": mine.started + 1}))


def test_placement_says_what_is_needed(home: Home) -> None:
    with pytest.raises(NoSpace, match=r"5 replicas need .* is available"):
        place(home, checkpoint_bytes=10**15, replicas=5, kv_cache_bytes=None, fork_server=True, headroom=0.1)
