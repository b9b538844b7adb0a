"""Fills that are killed, raced, restarted, starved of space, or robbed of their lock and clock.

Eight kills by default; FILL_KILLS=30 is the long form.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from tests.faults.conftest import Published, assert_unlocked, wait_until
from tests.faults.proxy import Fault, FaultProxy, Request

from onecopy.core import errors
from onecopy.core.units import MiB
from onecopy.registry.publish import publish
from onecopy.registry.sources import open_source
from onecopy.storage.devserver import DevServer
from onecopy.storage.objectstore import StoreOptions, open_store
from onecopy.storage.store import Store
from onecopy.weights.cache import NodeCache

KILLS = int(os.environ.get("FILL_KILLS", "8"))
_FILL = """
import json, sys, pathlib
from onecopy.storage.objectstore import StoreOptions, open_store
from onecopy.weights.cache import NodeCache
from onecopy.weights.manifest import Manifest
uri, endpoint, manifest, root = sys.argv[1:]
store = open_store(uri, StoreOptions(endpoint=endpoint))
made = Manifest.from_json(pathlib.Path(manifest).read_bytes(), where="test")
result = NodeCache(pathlib.Path(root)).fill(store, made, deadline=60)
print(json.dumps({"fetched": result.bytes_fetched, "path": str(result.path)}))
"""


class Filler:
    """Starts fills as processes of their own, and ends those that still run."""

    def __init__(self, server: DevServer, published: Published, manifest: Path) -> None:
        secret = server.options.secret_access_key
        assert secret is not None
        self._env = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "ONECOPY_"))}
        self._env |= {
            "AWS_ACCESS_KEY_ID": str(server.options.access_key_id),
            "AWS_SECRET_ACCESS_KEY": secret.reveal(),
        }
        self._published, self._manifest = published, manifest
        manifest.write_bytes(published.manifest.to_json())
        self._started: list[subprocess.Popen[str]] = []

    def start(self, endpoint: str, root: Path) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", _FILL, str(self._published.uri), endpoint, str(self._manifest), str(root)]
        process = subprocess.Popen(argv, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._started.append(process)
        return process

    @staticmethod
    def result(process: subprocess.Popen[str]) -> tuple[int, Path]:
        out, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
        said = json.loads(out)
        return said["fetched"], Path(said["path"])

    def stop(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()


@pytest.fixture
def filler(s3_server: DevServer, published: Published, tmp_path: Path) -> Iterator[Filler]:
    made = Filler(s3_server, published, tmp_path / "manifest.json")
    yield made
    made.stop()


def test_twenty_processes_together_fetch_once(
    proxy: FaultProxy, filler: Filler, published: Published, tmp_path: Path
) -> None:
    running = [filler.start(proxy.endpoint, tmp_path / "cache") for _ in range(20)]
    results = [filler.result(process) for process in running]
    assert sorted(fetched for fetched, _ in results) == [0] * 19 + [published.manifest.total_bytes]
    assert proxy.bytes_sent == published.manifest.total_bytes
    published.assert_same(results[0][1])


def test_killed_at_random_points(proxy: FaultProxy, filler: Filler, published: Published, tmp_path: Path) -> None:
    """Killed with -9 again and again, with a waiter beside it each time: the waiter goes on where the dead one was."""
    chance = random.Random(11)
    proxy.decide = lambda _: Fault(rate=30 * MiB)  # of one connection: a fill takes half a second or more
    total = published.manifest.total_bytes
    for round_ in range(KILLS):
        root = tmp_path / f"cache-{round_}"
        sent = proxy.bytes_sent
        goal = sent + int(total * chance.uniform(0.0, 0.9))
        first = filler.start(proxy.endpoint, root)
        wait_until(lambda goal=goal: proxy.bytes_sent > goal, 30)
        second = filler.start(proxy.endpoint, root)
        time.sleep(chance.uniform(0.0, 0.3))
        first.send_signal(signal.SIGKILL)
        fetched, path = filler.result(second)
        published.assert_same(path)
        assert_unlocked(root)
        left = [entry.name for entry in (root / "m").iterdir() if ".partial" in entry.name]
        assert left == [], f"round {round_}: {left}"
        assert fetched <= total
        for entry in path.iterdir():
            assert entry.stat().st_mode & 0o222 == 0


def test_the_next_filler_resumes(proxy: FaultProxy, filler: Filler, published: Published, tmp_path: Path) -> None:
    held = threading.Event()
    last = {file.path: file.range_count - 1 for file in published.manifest.files}

    def decide(request: Request) -> Fault | None:  # the last range of each shard hangs until the kill
        name = request.path.rsplit("/", 1)[-1]
        hang = name.endswith(".safetensors") and request.start >= last[name] * 8 * MiB and not held.is_set()
        return Fault(stall=30) if hang else None

    proxy.decide = decide
    first = filler.start(proxy.endpoint, tmp_path / "cache")
    whole = 16 * MiB * 3
    wait_until(lambda: proxy.bytes_sent >= whole, 30)
    time.sleep(0.5)  # received is not yet written and noted
    first.kill()
    first.communicate()
    held.set()
    fetched, path = filler.result(filler.start(proxy.endpoint, tmp_path / "cache"))
    published.assert_same(path)
    assert fetched <= published.manifest.total_bytes - whole


def test_server_restarts_in_the_middle(published: Published, cache: NodeCache, tmp_path: Path) -> None:
    server = DevServer(tmp_path / "s3").start()
    try:
        store = open_store(server.uri.child("r"), server.options)
        manifest = publish(open_source(str(published.folder)), store, "m").manifest
        again = DevServer(
            tmp_path / "s3",
            port=server.port,
            access_key=server.options.access_key_id,
            secret_key=server.options.secret_access_key,
        )
        began = threading.Event()

        def decide(request: Request) -> Fault:
            if request.number >= 3:
                began.set()
            return Fault(rate=10 * MiB)

        with FaultProxy(server.endpoint, decide) as proxy, ExitStack() as held:

            def restart() -> None:
                began.wait(30)
                server.stop()
                time.sleep(0.5)
                held.enter_context(again)

            thread = threading.Thread(target=restart)
            thread.start()
            slow = open_store(server.uri.child("r"), _through(server, proxy))
            result = cache.fill(slow, manifest, deadline=60)
            thread.join()
            published.assert_same(result.path)
    finally:
        server.stop()


def test_object_replaced_in_the_middle(
    proxy: FaultProxy, behind: Store, published: Published, s3_server: DevServer, cache: NodeCache
) -> None:
    direct = open_store(published.uri.child("replaced"), s3_server.options)
    manifest = publish(open_source(str(published.folder)), direct, "m").manifest
    last = [file.path for file in manifest.files if file.path.endswith(".safetensors")][-1]
    once = threading.Lock()

    def decide(request: Request) -> Fault | None:
        if request.path.endswith(last) and once.acquire(blocking=False):
            direct.put(f"m/revisions/{manifest.revision}/{last}", bytes(manifest.file(last).size))
        return Fault(rate=20 * MiB)

    proxy.decide = decide
    store = open_store(published.uri.child("replaced"), _through(s3_server, proxy))
    with pytest.raises(errors.PreconditionFailed, match=last):
        cache.fill(store, manifest, deadline=30)
    assert not (cache.root / "m" / manifest.revision).exists()


def test_lock_file_deleted(proxy: FaultProxy, filler: Filler, published: Published, tmp_path: Path) -> None:
    """Whoever deletes the lock of a fill that runs lets a second one start: they may not spoil each other."""
    proxy.decide = lambda _: Fault(rate=20 * MiB)
    first = filler.start(proxy.endpoint, tmp_path / "cache")
    wait_until(lambda: proxy.bytes_sent > 8 * MiB, 30)
    for lock in (tmp_path / "cache").rglob("*.lock"):
        lock.unlink()
    second = filler.start(proxy.endpoint, tmp_path / "cache")
    for process in (first, second):
        process.communicate(timeout=90)
    # one of them may end with an error; what is published is whole
    _, path = filler.result(filler.start(proxy.endpoint, tmp_path / "cache"))
    published.assert_same(path)
    assert first.returncode == 0 or second.returncode == 0


def test_a_waiter_keeps_its_deadline(
    proxy: FaultProxy, behind: Store, filler: Filler, published: Published, cache: NodeCache
) -> None:
    proxy.decide = lambda _: Fault(rate=MiB)
    first = filler.start(proxy.endpoint, cache.root)
    wait_until(lambda: proxy.requests > 0, 30)
    began = time.monotonic()
    with pytest.raises(errors.CacheError, match="still fill"):
        cache.fill(behind, published.manifest, deadline=1)
    assert time.monotonic() - began < 2
    first.kill()
    first.communicate()


@pytest.fixture
def small(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own with 96 MiB, in memory or on a disk image."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    if request.param == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", "size=96m", "none", str(folder)]
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(96 * MiB)
        try:
            subprocess.run(["mkfs.ext4", "-q", str(image)], check=True, capture_output=True)
        except (FileNotFoundError, subprocess.CalledProcessError):
            pytest.skip("no mkfs.ext4 here")
        mount = ["mount", "-o", "loop", str(image), str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("small", ["tmpfs", "ext4"], indirect=True)
def test_full_before_and_in_the_middle(
    small: Path, proxy: FaultProxy, behind: Store, published: Published, tmp_path: Path
) -> None:
    cache = NodeCache(small / "cache", headroom=0.0)
    ballast = small / "ballast"
    ballast.write_bytes(bytes(60 * MiB))
    with pytest.raises(errors.NoSpace, match="needs 56"):
        cache.fill(behind, published.manifest, deadline=30)
    assert proxy.requests == 0
    ballast.unlink()

    def decide(request: Request) -> Fault:  # another takes the space while the fill runs
        if request.number == 3:
            with ballast.open("wb") as file, suppress(OSError):
                file.write(bytes(80 * MiB))
        return Fault(rate=20 * MiB)

    proxy.decide = decide
    try:
        result = cache.fill(behind, published.manifest, deadline=30)
    except errors.NoSpace:
        assert not (cache.root / "m" / published.manifest.revision).exists()
        ballast.unlink()
        proxy.decide = lambda _: None
        result = cache.fill(behind, published.manifest, deadline=30)
    # reserved beforehand: then it was the other who found it full
    published.assert_same(result.path)
    assert_unlocked(small)


def test_clock_set_back(behind: Store, published: Published, cache: NodeCache) -> None:
    """Every file in the cache comes from the future: still found, still whole."""
    path = cache.fill(behind, published.manifest, deadline=30).path
    ahead = time.time() + 10 * 365 * 86400
    for entry in [*cache.root.rglob("*"), cache.root]:
        os.utime(entry, (ahead, ahead))
    assert cache.fill(behind, published.manifest, deadline=5).already_there
    published.assert_same(path)


def _through(server: DevServer, proxy: FaultProxy) -> StoreOptions:
    return replace(server.options, endpoint=proxy.endpoint, request_timeout=5.0)
