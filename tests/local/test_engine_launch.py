"""The fork server and its client with a Python that has no vLLM: what is said and cleaned up when nothing can start."""

from __future__ import annotations

import os
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onecopy.core.errors import EngineError
from onecopy.engine.environments import VLLM_VERSION, Engine
from onecopy.engine.launch import EngineSpec, ForkServer, replica_argv, replica_env, wait_ready

CPU = Engine(Path(sys.executable), VLLM_VERSION, cpu=True)


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ONECOPY_ENVIRONMENTS", str(tmp_path / "environments"))
    scratch = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))  # short, or the server would go elsewhere
    monkeypatch.setenv("TMPDIR", str(scratch))
    yield scratch
    scratch.rmdir()  # fails when something is left


def test_imports_that_fail_are_told_and_replicas_started_afresh(tmp_path: Path) -> None:
    spec = EngineSpec(CPU, tmp_path, "m")
    socket = tmp_path / "run" / "s"
    with ForkServer.start(CPU.python, socket, tmp_path / "engine.log") as server:
        forks, why = server.forks()
        assert not forks
        assert "No module named 'vllm'" in str(why)
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        replica = server.spawn("replica-0", replica_argv(spec, 1), replica_env(spec), tmp_path / "replica-0.log")
        assert not replica.forked
        with pytest.raises(
            EngineError, match=r"replica-0 ended with 1 before it answered: .*No module named"
        ) as raised:
            wait_ready(replica, "http://127.0.0.1:1", timeout=30)
        assert str(tmp_path / "replica-0.log") in (raised.value.hint or "")
        assert replica.poll() == 1
        assert replica.stop() == 1
    assert server.poll() == 0
    assert not socket.exists()


def test_a_killed_server_is_reported_and_its_folder_swept_by_the_next(tmp_path: Path, scratch: Path) -> None:
    spec = EngineSpec(CPU, tmp_path, "m")
    server = ForkServer.start(CPU.python, tmp_path / "s", tmp_path / "engine.log", preload=False)
    assert server.forks() == (False, "not asked to")
    os.kill(server.pid, signal.SIGKILL)
    while server.poll() is None:
        time.sleep(0.01)
    with pytest.raises(EngineError, match="fork server ended with -9"):
        server.spawn("replica-0", replica_argv(spec, 1), replica_env(spec), tmp_path / "replica-0.log")
    server.stop()
    left = {path.name for path in scratch.iterdir()}
    assert len(left) == 1
    with ForkServer.start(CPU.python, tmp_path / "s", tmp_path / "engine.log", preload=False) as second:
        second.forks()
        assert not left & {path.name for path in scratch.iterdir()}


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nowhere"):
        ForkServer.start(tmp_path / "nowhere", tmp_path / "s", tmp_path / "log")


def test_a_socket_path_that_the_kernel_would_refuse(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="too long") as raised:
        ForkServer.start(CPU.python, tmp_path / ("x" * 100) / "s", tmp_path / "log")
    assert "--home" in (raised.value.hint or "")


def test_arguments_of_the_user_win_and_choose_the_executor(tmp_path: Path) -> None:
    spec = EngineSpec(CPU, tmp_path, "m", engine_args=("--tensor-parallel-size", "2", "--max-num-seqs", "4"))
    argv = replica_argv(spec, 8000)
    assert argv[-4:] == ["--tensor-parallel-size", "2", "--max-num-seqs", "4"]
    assert "--distributed-executor-backend" not in argv
    assert "--distributed-executor-backend" in replica_argv(EngineSpec(CPU, tmp_path, "m"), 8000)


def test_nothing_of_the_cpu_settings_reaches_a_gpu(tmp_path: Path) -> None:
    spec = EngineSpec(Engine(Path(sys.executable), "0.32.0", cpu=False), tmp_path, "m")
    assert not {"--enforce-eager", "--dtype", "--kv-cache-memory-bytes", "--max-model-len"} & set(replica_argv(spec, 1))
    assert "VLLM_CPU_OMP_THREADS_BIND" not in replica_env(spec)
