"""Publishing against what people use today: one run, one machine, the same hub and the same S3 server for all.

    .venv/bin/python bench/publish.py [--mib 512] [--shards 4] [--rounds 3] [--out bench/results/publish.json]

Two roads: from a hub (our streaming publish; `hf download`, then one of four uploaders), and from a folder (our publish;
the uploaders alone). Reported: wall seconds, CPU-seconds per GB of the client, peak memory of its largest process, peak
disk. The hub is tests/fakehub.py and the store SeaweedFS, both on loopback, so no figure here is one of a real network.
Memory below what this script itself holds (about 190 MB) cannot be seen.
The peers come into a virtual environment of their own; rclone is used where it is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.checkpoints import checkpoint  # noqa: E402

from onecopy.core.units import MiB, format_bytes  # noqa: E402
from onecopy.registry import catalogue, transfer  # noqa: E402
from onecopy.registry.verify import FILES_AT_ONCE, READ_AHEAD, verify  # noqa: E402
from onecopy.storage import devserver, layout  # noqa: E402
from onecopy.storage.devserver import DevServer  # noqa: E402
from onecopy.storage.objectstore import open_store  # noqa: E402
from onecopy.weights.manifest import FileEntry  # noqa: E402

PEERS = ROOT / ".artefacts/bench-peers"
PACKAGES = ["awscli==1.46.3", "boto3", "huggingface_hub", "s5cmd"]
BOTO3 = """
import sys, boto3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from boto3.s3.transfer import TransferConfig
folder, bucket, prefix, endpoint = sys.argv[1:]
client = boto3.client("s3", endpoint_url=endpoint)
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda p: client.upload_file(str(p), bucket, f"{prefix}/{p.name}", Config=TransferConfig(max_concurrency=10)),
                  [p for p in Path(folder).iterdir() if p.is_file()]))
"""
HUB = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.fakehub import Hub
hub = Hub(); hub.add("org/bench", Path(sys.argv[2]))
print(hub.endpoint, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Sample:
    seconds: float
    cpu_seconds: float
    peak_rss: int
    peak_disk: int


@dataclass(frozen=True)
class Bench:
    hub: str
    server: DevServer
    folder: Path
    scratch: Path
    env: dict[str, str]

    def run(self, *commands: list[str]) -> Sample:
        """Commands one after the other: their wall time, their CPU, the largest process, the scratch folder's peak."""
        done = threading.Event()
        disk = 0

        def watch() -> None:
            nonlocal disk
            while not done.wait(0.05):
                disk = max(disk, tree_bytes(self.scratch))

        watcher = threading.Thread(target=watch)
        watcher.start()
        began, cpu, rss = time.monotonic(), 0.0, 0
        for command in commands:
            process = subprocess.Popen(command, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            assert process.stderr is not None
            said = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                sys.exit(f"{command[0]} failed: {said.decode()[-2000:]}")
            cpu += usage.ru_utime + usage.ru_stime
            rss = max(rss, usage.ru_maxrss * 1024)
        seconds = time.monotonic() - began
        done.set()
        watcher.join()
        disk = max(disk, tree_bytes(self.scratch))
        shutil.rmtree(self.scratch)
        self.scratch.mkdir()
        return Sample(round(seconds, 3), round(cpu, 3), rss, disk)


def tree_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # it has just gone
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512  # noqa: PTH118 - a hot loop
    return total


def contenders(bench: Bench) -> dict[str, Callable[[], Sample]]:
    python, peers = sys.executable, PEERS / "bin"
    endpoint, bucket = bench.server.endpoint, bench.server.bucket

    def ours(source: str) -> Sample:
        name = f"bench-{uuid.uuid4().hex[:8]}"
        store = bench.server.uri.child(name)
        argv = [python, "-m", "onecopy", "model", "publish", source, "--name", "bench", "--store", str(store), "--json"]
        sample = bench.run(argv)
        assert verify(open_store(store, bench.server.options), "bench").ok
        return sample

    def prefix() -> str:
        return f"peer-{uuid.uuid4().hex[:8]}"

    download = [str(peers / "hf"), "download", "org/bench", "--local-dir", str(bench.scratch / "model")]
    uploads: dict[str, Callable[[Path], list[str]]] = {
        "aws s3 sync": lambda f: [
            str(peers / "aws"), "--endpoint-url", endpoint, "s3", "sync", str(f), f"s3://{bucket}/{prefix()}", "--exclude", ".cache/*"
        ],
        "boto3": lambda f: [str(peers / "python"), "-c", BOTO3, str(f), bucket, prefix(), endpoint],
        "s5cmd": lambda f: [
            str(peers / "s5cmd"), "--endpoint-url", endpoint, "sync", "--exclude", "*.cache/*", f"{f}/", f"s3://{bucket}/{prefix()}/"
        ],
    }  # fmt: skip
    if shutil.which("rclone"):
        remote = f":s3,provider=SeaweedFS,env_auth,endpoint='{endpoint}':{bucket}/"
        uploads["rclone"] = lambda f: ["rclone", "copy", str(f), f"{remote}{prefix()}", "--exclude", ".cache/**"]
    found: dict[str, Callable[[], Sample]] = {
        "hub: onecopy": lambda: ours("hf://org/bench"),
        "folder: onecopy": lambda: ours(str(bench.folder)),
    }
    for name, upload in uploads.items():
        found[f"hub: hf download + {name}"] = lambda upload=upload: bench.run(download, upload(bench.scratch / "model"))
        found[f"folder: {name}"] = lambda upload=upload: bench.run(upload(bench.folder))
    return found


def verify_against_reading(bench: Bench, rounds: int) -> dict[str, list[float]]:
    """Seconds of `verify --deep`, and of the same reads whose bytes are thrown away, in turn."""
    store = open_store(bench.server.uri.child("verify"), bench.server.options)
    subprocess.run(
        [sys.executable, "-m", "onecopy", "model", "publish", str(bench.folder), "--name", "b", "--store", str(store.uri)],
        env=bench.env, check=True, capture_output=True,
    )  # fmt: skip
    manifest = catalogue.resolve(store, "b")
    found: dict[str, list[float]] = {"read": [], "verify --deep": []}

    def read(file: FileEntry, pool: ThreadPoolExecutor) -> None:
        key = layout.file_key("b", manifest.revision, file.path)
        for _ in transfer.read_ahead(
            lambda start, end: store.get_range(key, start, end), file.size, pool, depth=READ_AHEAD, step=file.range_size
        ):
            pass

    for _ in range(rounds + 1):
        began = time.monotonic()
        with ThreadPoolExecutor(FILES_AT_ONCE) as files, ThreadPoolExecutor(FILES_AT_ONCE * READ_AHEAD) as reads:
            list(files.map(lambda file, reads=reads: read(file, reads), manifest.files))
        found["read"].append(round(time.monotonic() - began, 3))
        began = time.monotonic()
        assert verify(store, "b", deep=True).ok
        found["verify --deep"].append(round(time.monotonic() - began, 3))
    return {name: seconds[1:] for name, seconds in found.items()}  # the first warms the server


@contextmanager
def hub_of(folder: Path) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HUB, str(ROOT), str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        yield process.stdout.readline().strip()
        process.kill()


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--mib", type=int, default=512)
    options.add_argument("--shards", type=int, default=4)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", default="", help="regular expression on the names")
    options.add_argument("--out", type=Path)
    args = options.parse_args()
    if not (PEERS / "bin/aws").exists():
        subprocess.run([sys.executable, "-m", "venv", str(PEERS)], check=True)
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run([uv, "pip", "install", "-q", "--python", str(PEERS / "bin/python"), *PACKAGES], check=True)
    devserver.MEMORY_LIMIT = "4GiB"  # with the default its collector would be what is measured
    with tempfile.TemporaryDirectory(prefix="bench-publish-") as root, DevServer(Path(root) / "s3") as server:
        folder = checkpoint(Path(root) / "model", shards=args.shards, elements=args.mib * MiB // args.shards // 2)
        (folder / "README.md").unlink()
        scratch = Path(root) / "scratch"
        scratch.mkdir()
        size = sum(path.stat().st_size for path in folder.iterdir())
        secret = server.options.secret_access_key
        assert secret is not None
        env = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "HF_", "ONECOPY_"))}
        env |= {"AWS_ACCESS_KEY_ID": str(server.options.access_key_id), "AWS_SECRET_ACCESS_KEY": secret.reveal()}
        env |= {"AWS_ENDPOINT_URL": server.endpoint, "AWS_REGION": "us-east-1", "HF_HUB_DISABLE_XET": "1"}
        env |= {"HF_HOME": str(scratch / "hf"), "TMPDIR": str(scratch), "HF_HUB_DISABLE_TELEMETRY": "1"}
        with hub_of(folder) as hub:
            bench = Bench(hub, server, folder, scratch, env | {"HF_ENDPOINT": hub})
            chosen = {name: call for name, call in contenders(bench).items() if re.search(args.only, name)}
            samples: dict[str, list[Sample]] = {name: [] for name in chosen}
            for number in range(args.rounds):  # in turn, so that a busy moment of the machine hits all
                for name, call in chosen.items():
                    samples[name].append(call())
                    print(
                        f"round {number + 1}  {name:34} {samples[name][-1].seconds:7.2f} s", file=sys.stderr, flush=True
                    )
                    store = open_store(server.uri, server.options)
                    store.delete([info.key for info in store.list()])
            deep = verify_against_reading(bench, args.rounds)
    rows = {
        name: {
            "seconds": statistics.median(sample.seconds for sample in found),
            "mb_per_second": round(size / 1e6 / statistics.median(sample.seconds for sample in found), 1),
            "cpu_seconds_per_gb": round(statistics.median(sample.cpu_seconds for sample in found) / (size / 1e9), 3),
            "peak_rss_bytes": max(sample.peak_rss for sample in found),
            "peak_disk_bytes": max(sample.peak_disk for sample in found),
            "samples": [asdict(sample) for sample in found],
        }
        for name, found in samples.items()
    }
    print(f"{'':34} {'s':>7} {'MB/s':>7} {'CPU-s/GB':>9} {'memory':>10} {'disk':>10}")
    for name, row in sorted(rows.items(), key=lambda item: (item[0].split(":")[0], item[1]["seconds"])):
        print(
            f"{name:34} {row['seconds']:7.2f} {row['mb_per_second']:7.1f} {row['cpu_seconds_per_gb']:9.2f} "
            f"{format_bytes(row['peak_rss_bytes']):>10} {format_bytes(row['peak_disk_bytes']):>10}"
        )
    for name, seconds in deep.items():
        print(f"{name:34} {statistics.median(seconds):7.2f} {size / 1e6 / statistics.median(seconds):7.1f}")
    if args.out:
        machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "kernel": platform.release()}
        machine["load_average"] = os.getloadavg()[1]  # of the last five minutes; above the CPUs: others were at work
        args.out.write_text(
            json.dumps(
                {"bytes": size, "shards": args.shards, "machine": machine, "results": rows, "deep": deep}, indent=1
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
