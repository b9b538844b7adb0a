"""`up` in the foreground: it ends with the command, however the command ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.local.stack import Cli, kill, until

from onecopy.core.events import silent
from onecopy.engine.environments import ensure_engine
from onecopy.targets.local.home import Home

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    made = Cli(tmp_path / "home")
    yield made
    made.run("down", "--purge")


@contextmanager
def started(cli: Cli) -> Iterator[subprocess.Popen[str]]:
    """A foreground `up`, with SIGINT as a terminal gives it: a test run in the background has it ignored, and children inherit that."""
    argv = [sys.executable, "-m", "onecopy", "up", "--port", "0", "--replicas", "1", "--home", str(cli.home), "--json"]
    process = subprocess.Popen(
        argv,
        env=cli.env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def nothing_left(cli: Cli) -> None:
    until("nothing is left", lambda: not cli.processes(), timeout=40)
    home = Home(cli.home)
    until("the lock is free", lambda: not home.is_owned(), timeout=5)  # a dying process loses its name before its files
    assert not home.shm_cache.exists()
    assert not home.run.exists()


def test_interrupt_while_it_comes_up(cli: Cli) -> None:
    with started(cli) as process:
        until("the store runs", lambda: (cli.home / "logs" / "store.log").exists())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    nothing_left(cli)


def test_killed_command_takes_the_stack_down(cli: Cli) -> None:
    with started(cli) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "{\n"
        process.stdout.readline()
        kill(process.pid)
        process.communicate(timeout=60)
    nothing_left(cli)
    assert cli.run("status").returncode == 1


def test_unknown_architecture_is_refused_before_anything_is_written(cli: Cli, tmp_path: Path) -> None:
    ensure_engine(silent)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["NobodysForCausalLM"]}))
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    message = cli.refused("up", "--detach", "--port", "0", "--model", str(folder))
    assert "NobodysForCausalLM" in message
    assert not cli.home.exists()
