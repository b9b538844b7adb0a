"""Replicas share one copy of the weights, and none outlives what started it."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.local.engine.conftest import Serve, free_port
from tests.local.engine.models import Tiny, write

from onecopy.engine import memory
from onecopy.engine.environments import Engine, plugin_path
from onecopy.engine.launch import EngineSpec, ForkServer, Replica, replica_argv, replica_env, wait_ready
from onecopy.engine.sample import BYTES

pytestmark = pytest.mark.engine
Publish = Callable[[Path], Path]
HEAD = 49152 * 576 * 2
"""Bytes of SmolLM2's embedding, which is its output layer too: looked up in one form and multiplied in another."""


def gone(pids: list[int], within: float = 10.0) -> bool:
    deadline = time.monotonic() + within
    while any(_runs(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def exit_code(replica: Replica, within: float = 20.0) -> int | None:
    deadline = time.monotonic() + within
    while (code := replica.poll()) is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return code


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_replicas_map_one_copy(smollm2: Path, publish: Publish, serve: Serve) -> None:
    revision = publish(smollm2)
    first = serve(revision, name="replica-0")
    alone = memory.weights([first.replica.pid], [revision.parent])
    second = serve(revision, name="replica-1")
    replicas = [first.replica.pid, second.replica.pid]
    for served in (first, second):
        assert served.replica.forked
        assert served.complete("The quick brown fox")  # touches every weight
    both = memory.weights(replicas, [revision.parent])
    one_copy = BYTES + HEAD
    assert 0.95 * BYTES < both.pss < 1.02 * one_copy
    assert both.rss > 1.9 * both.pss
    assert alone.pss < 1.02 * one_copy
    # without the format each holds its own: the proof that the weights are not merely counted elsewhere
    theirs = serve(smollm2, name="theirs", load_format="safetensors")
    assert theirs.complete("The quick brown fox")
    grown = memory.private([theirs.replica.pid]).pss - memory.private([second.replica.pid]).pss
    assert grown > 0.8 * BYTES


def test_a_killed_api_server_takes_its_engine_along_and_can_be_started_again(
    smollm2: Path, tmp_path: Path, publish: Publish, serve: Serve
) -> None:
    revision = publish(write(tmp_path / "tiny", Tiny(), smollm2))
    killed, other = serve(revision, name="replica-0"), serve(revision, name="replica-1")
    pids = memory.processes(killed.replica.pid)
    assert len(pids) == 2
    os.kill(killed.replica.pid, signal.SIGKILL)
    assert gone(pids, within=5)
    assert exit_code(killed.replica) == -signal.SIGKILL
    assert other.replica.poll() is None
    assert other.complete("x", 4)
    again = serve(revision, name="replica-0")
    assert again.complete("x", 4) == other.complete("x", 4)


def test_a_killed_engine_ends_the_replica(smollm2: Path, tmp_path: Path, publish: Publish, serve: Serve) -> None:
    served = serve(publish(write(tmp_path / "tiny", Tiny(), smollm2)))
    (core,) = set(memory.processes(served.replica.pid)) - {served.replica.pid}
    os.kill(core, signal.SIGKILL)
    assert exit_code(served.replica) is not None
    assert gone([served.replica.pid], within=0)


def test_replicas_die_with_a_killed_fork_server(
    engine: Engine, smollm2: Path, tmp_path: Path, publish: Publish, start: Serve
) -> None:
    """Started afresh, so that the plain start, its own parent-death signals and its sharing are seen too.

    In a Python without a store's client: whole folders need none.
    """
    revision = publish(write(tmp_path / "tiny", Tiny(), smollm2))
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    for name in ("obstore", "xxhash"):
        (lacking / f"{name}.py").write_text("raise ImportError('not here')")
    server = ForkServer.start(engine.python, tmp_path / "own", tmp_path / "engine.log", preload=False)
    try:
        served = start(revision, server=server, env={"PYTHONPATH": f"{lacking}:{plugin_path()}"})
        assert not served.replica.forked
        wait_ready(served.replica, served.endpoint, 120)
        assert served.report["sharing"] == "packed"
        pids = memory.processes(served.replica.pid)
        assert len(pids) >= 2
        os.kill(server.pid, signal.SIGKILL)
        assert gone(pids)
        assert exit_code(served.replica) == -signal.SIGKILL
    finally:
        server.stop()


OWNER = """
import sys, time
from pathlib import Path
from onecopy.engine.launch import ForkServer
folder, python = Path(sys.argv[1]), Path(sys.argv[2])
server = ForkServer.start(python, folder / "owned", folder / "owned.log", preload=False)
server.forks()
print(server.pid, flush=True)
time.sleep(600)
"""


def test_a_fork_server_ends_with_its_owner(engine: Engine, tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), str(engine.python)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.communicate()
    assert gone([pid])
    assert not (tmp_path / "owned").exists()


def test_stopping_leaves_no_process_and_no_file(
    engine: Engine, smollm2: Path, tmp_path: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM leaves a file in the temporary folder at each start: here it has a folder of its own, which goes."""
    scratch = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))  # short, or the server would go elsewhere
    monkeypatch.setenv("TMPDIR", str(scratch))
    revision = publish(write(tmp_path / "tiny", Tiny(), smollm2))
    spec = EngineSpec(engine, revision, "m", max_model_len=256, kv_cache_bytes=64 << 20)
    port = free_port()
    shared_memory = set(Path("/dev/shm").iterdir())
    with ForkServer.start(engine.python, tmp_path / "s", tmp_path / "engine.log") as server:
        # as on a machine where vLLM has never run: what it learns of a model's class is kept in this folder
        env = replica_env(spec, VLLM_CACHE_ROOT=str(tmp_path / "vllm"))
        replica = server.spawn("replica-0", replica_argv(spec, port), env, tmp_path / "replica-0.log")
        seconds = wait_ready(replica, f"http://127.0.0.1:{port}", 120)
        assert seconds < 60
        assert list((tmp_path / "vllm").rglob("*LlamaForCausalLM*"))
        pids = memory.processes(replica.pid)
        assert list(scratch.rglob("vllm_dist_*"))
        assert replica.stop() == 0
        assert gone(pids, within=0)
        assert not list(scratch.rglob("vllm_dist_*"))
    left = [path.name for path in scratch.iterdir() if path.name != f"torchinductor_{getpass.getuser()}"]
    assert left == []  # torch makes its cache folder when it is imported, once a machine
    shutil.rmtree(scratch)
    new = {path.name for path in Path("/dev/shm").iterdir()} - {path.name for path in shared_memory}
    assert not [name for name in new if "vllm" in name or "torch" in name]


def test_a_model_that_the_engine_lacks_is_explained(tmp_path: Path, smollm2: Path, start: Serve) -> None:
    folder = write(tmp_path / "tiny", Tiny(), smollm2)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "NobodyKnowsForCausalLM"))
    served = start(folder)
    with pytest.raises(Exception, match=r"(?i)architectures .*NobodyKnows"):
        wait_ready(served.replica, served.endpoint, 60)


def test_a_cache_too_small_for_the_context_is_explained(tmp_path: Path, smollm2: Path, start: Serve) -> None:
    served = start(write(tmp_path / "tiny", Tiny(), smollm2), kv_cache_bytes=1 << 16)
    with pytest.raises(Exception, match=r"cache blocks|KV cache") as raised:
        wait_ready(served.replica, served.endpoint, 60)
    assert "kv_cache_bytes" in str(getattr(raised.value, "hint", ""))
