"""Store to memory: ours against the floor and its peers, on one embedded server, in fresh processes, medians of rounds.

    python bench/load.py --quick --json      own loader, floor, runai-model-streamer, boto3; under a minute once set up
    python bench/load.py --save NAME         all peers, two checkpoints, 1 to 8 replicas, shaped links

Rows: checkpoint, link (Gbps; null: loopback), loader, replicas, seconds (start of the first to end of the last), first
and last (seconds until the first and last replica were done), gb_per_s, client_cpu_s_per_gb, server_cpu_s_per_gb,
peak_bytes (of all replicas together, files in memory included), server_bytes (sent by the S3 server), runs.
Rounds go round the loaders, so that a slow minute of the machine hits all of them. Shaped links need root: the whole
runs in a network namespace of its own, and `tc` shapes what leaves the S3 port.
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
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store

from onecopy.core.paths import environments_dir
from onecopy.registry.publish import publish
from onecopy.registry.sources import open_source
from onecopy.storage.devserver import REGION, DevServer
from onecopy.storage.layout import file_key
from onecopy.storage.objectstore import open_store

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
QUICK = ("floor", "onecopy", "runai-model-streamer", "boto3")
REPLICAS = ("onecopy", "runai-model-streamer", "download+safetensors")
TORCH = "torch==2.13.0+cpu"
Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """Llama's shape. The default is TinyLlama-1.1B's: 2.2 GB in bf16."""

    layers: int = 22
    hidden: int = 2048
    inner: int = 5632
    key_value: int = 256
    words: int = 32000

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "model.embed_tokens.weight", (self.words, self.hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            for name, rows in (("q", self.hidden), ("k", self.key_value), ("v", self.key_value), ("o", self.hidden)):
                yield f"{at}.self_attn.{name}_proj.weight", (rows, self.hidden)
            yield f"{at}.mlp.gate_proj.weight", (self.inner, self.hidden)
            yield f"{at}.mlp.up_proj.weight", (self.inner, self.hidden)
            yield f"{at}.mlp.down_proj.weight", (self.hidden, self.inner)
            yield f"{at}.input_layernorm.weight", (self.hidden,)
            yield f"{at}.post_attention_layernorm.weight", (self.hidden,)
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.words, self.hidden)


def write_checkpoint(folder: Path, shape: Shape, shards: int) -> None:
    """Random bytes under real names and shapes; bf16."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}))
    tensors = list(shape.tensors())
    each = -(-len(tensors) // shards)
    noise = os.urandom(16 << 20)
    for shard in range(shards):
        header: dict[str, Any] = {}
        at = 0
        for name, dims in tensors[shard * each : (shard + 1) * each]:
            size = 2 * dims[0] * (dims[1] if len(dims) > 1 else 1)
            header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [at, at + size]}
            at += size
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        with (folder / f"model-{shard + 1:05}-of-{shards:05}.safetensors").open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for start in range(0, at, len(noise)):  # no two pieces alike
                turn = start // len(noise) + 97 * shard
                file.write((noise[turn:] + noise[:turn])[: min(len(noise), at - start)])


class Bench:
    """One server, one folder in memory, and the peers' Python."""

    def __init__(self, held: ExitStack, *, peers: Path) -> None:
        self.work = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="onecopy-bench-")))
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.memory = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="onecopy-bench-", dir=memory)))
        self.server = held.enter_context(DevServer(self.work / "s3", metrics=True))
        self.python = peers
        self.tasks: dict[str, Row] = {}
        self.sizes: dict[str, int] = {}

    def publish(self, name: str, shape: Shape, shards: int) -> None:
        folder = self.work / "checkpoint"
        write_checkpoint(folder, shape, shards)
        store = open_store(self.server.uri.child(name), self.server.options)
        manifest = publish(open_source(str(folder)), store, "m").manifest
        shutil.rmtree(folder)
        (self.work / f"{name}.json").write_bytes(manifest.to_json())
        files = [file for file in manifest.files if file.path.endswith(".safetensors")]
        keys = [f"{name}/{file_key('m', manifest.revision, file.path)}" for file in files]
        secret = self.server.options.secret_access_key
        signer = S3Store(
            self.server.bucket,
            endpoint=self.server.endpoint,
            region=REGION,
            access_key_id=self.server.options.access_key_id,
            secret_access_key=secret.reveal() if secret else None,
            client_options={"allow_http": True},
        )
        urls = dict(zip(keys, obstore.sign(signer, "GET", keys, timedelta(hours=6)), strict=True))
        self.sizes[name] = sum(file.size for file in files)
        self.tasks[name] = {
            "store": str(store.uri),
            "bucket": self.server.bucket,
            "endpoint": self.server.endpoint,
            "region": REGION,
            "files": [[key, file.size] for key, file in zip(keys, files, strict=True)],
            "urls": urls,
            "manifest": str(self.work / f"{name}.json"),
        }

    def load(self, loader: str, checkpoint: str, replicas: int) -> Row:
        """One run: `replicas` fresh processes, all let go at once."""
        own = loader in ("floor", "onecopy")
        python = sys.executable if own else str(self.python)
        secret = self.server.options.secret_access_key
        # without the byte code a peer's imports would be compiled anew in every run
        env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"} | {
            "AWS_ACCESS_KEY_ID": str(self.server.options.access_key_id),
            "AWS_SECRET_ACCESS_KEY": secret.reveal() if secret else "",
            "AWS_ENDPOINT_URL": self.server.endpoint,
            "AWS_REGION": REGION,
        }
        folder = self.memory / "run"
        folder.mkdir()
        started: list[subprocess.Popen[str]] = []
        try:
            for number in range(replicas):
                place = folder if loader == "onecopy" else folder / str(number)
                place.mkdir(exist_ok=True)
                argv = [python, str(HERE / "loaders.py"), loader]
                process = subprocess.Popen(
                    argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
                started.append(process)
                _tell(process, json.dumps(self.tasks[checkpoint] | {"folder": str(place)}))
            for process in started:
                _hear(process, loader)
            sent, server_cpu = self._sent(), self._server_cpu()
            for process in started:
                _tell(process, "go")
            said = [json.loads(_hear(process, loader)) for process in started]
            server_cpu, sent = self._server_cpu() - server_cpu, self._sent() - sent
            peak = sum(_peak(process.pid) for process in started) + _size(folder)
            for process in started:
                _tell(process, "end")
        finally:
            for process in started:
                if sys.exc_info()[0] is not None:
                    process.kill()
                process.communicate()
            shutil.rmtree(folder)
        began = min(run["began"] for run in said)
        ends = sorted(run["ended"] - began for run in said)
        gigabytes = self.sizes[checkpoint] / 1e9
        return {
            "seconds": ends[-1],
            "first": ends[0],
            "last": ends[-1],
            "gb_per_s": gigabytes / ends[-1],
            "client_cpu_s_per_gb": sum(run["cpu"] for run in said) / gigabytes,
            "server_cpu_s_per_gb": server_cpu / gigabytes,
            "peak_bytes": peak,
            "server_bytes": sent,
        }

    def rows(
        self, loaders: tuple[str, ...], checkpoint: str, replicas: int, rounds: int, link: float | None
    ) -> list[Row]:
        runs: dict[str, list[Row]] = {loader: [] for loader in loaders}
        for _ in range(rounds):
            for loader in loaders:
                try:
                    runs[loader].append(self.load(loader, checkpoint, replicas))
                except RuntimeError as error:  # one peer that fails must not take the others' figures with it
                    print(f"{checkpoint} {loader} x{replicas} failed: {error}", file=sys.stderr)
                    continue
                print(f"{checkpoint} {loader} x{replicas}: {runs[loader][-1]['seconds']:.2f} s", file=sys.stderr)
        rows: list[Row] = []
        for loader, each in runs.items():
            if not each:
                continue
            middle = {key: statistics.median(run[key] for run in each) for key in each[0]}
            ints = {key: int(middle[key]) for key in ("peak_bytes", "server_bytes")}
            rounded = {key: round(value, 4) for key, value in middle.items()}
            head: Row = {"checkpoint": checkpoint, "bytes": self.sizes[checkpoint], "link": link, "loader": loader}
            rows.append(
                head | {"replicas": replicas} | rounded | ints | {"runs": [round(run["seconds"], 3) for run in each]}
            )
        return rows

    def replicas(self, checkpoint: str, loaders: tuple[str, ...], rounds: int) -> list[Row]:
        return [row for count in (1, 2, 4, 8) for row in self.rows(loaders, checkpoint, count, rounds, None)]

    def shape_link(self, gbps: float) -> None:
        """What leaves the S3 port goes at `gbps`; the server's own traffic stays free."""
        subprocess.run(["tc", "qdisc", "del", "dev", "lo", "root"], check=False, capture_output=True)
        for command in (
            "qdisc add dev lo root handle 1: htb default 2",
            f"class add dev lo parent 1: classid 1:1 htb rate {gbps}gbit ceil {gbps}gbit burst 256k cburst 256k",
            "class add dev lo parent 1: classid 1:2 htb rate 100gbit ceil 100gbit burst 4m cburst 4m",
            f"filter add dev lo parent 1: protocol ip u32 match ip sport {self.server.port} 0xffff flowid 1:1",
        ):
            subprocess.run(["tc", *command.split()], check=True)

    def _sent(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.server.metrics_port}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
        found = re.findall(r"(?m)^SeaweedFS_s3_bucket_traffic_sent_bytes_total\{.*\} (\S+)$", text)
        return int(sum(map(float, found)))

    def _server_cpu(self) -> float:
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == self.server.pid:
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def peers_python() -> Path:
    """The peers' environment, made once."""
    folder = environments_dir() / "bench-peers"
    python = folder / "bin/python"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"making the peers' environment in {folder} (some minutes, once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if subprocess.run([*pip, TORCH], check=False, capture_output=True).returncode:
            subprocess.run([*pip, "torch"], check=True)
        subprocess.run([*pip, "-r", str(HERE / "peers.txt")], check=True)
        (folder / "done").touch()
    return python


def machine() -> Row:
    models = re.findall(r"(?m)^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def run(options: argparse.Namespace) -> list[Row]:
    with ExitStack() as held:
        bench = Bench(held, peers=peers_python())
        everyone = tuple(options.only.split(",")) if options.only else None
        if options.quick:
            bench.publish("half-gigabyte", Shape(layers=3), 2)
            if options.part == "replicas":
                return bench.replicas("half-gigabyte", everyone or REPLICAS, options.rounds or 1)
            rows = bench.rows(everyone or QUICK, "half-gigabyte", 1, options.rounds or 3, None)
            return rows + bench.rows(("onecopy",), "half-gigabyte", 4, 1, None)
        rows: list[Row] = []
        bench.publish("tinyllama", Shape(), 1)
        if options.inside:
            for gbps in (1.0, 2.5, 5.0):
                bench.shape_link(gbps)
                rows += bench.rows(everyone or QUICK, "tinyllama", 1, options.rounds or 3, gbps)
            return rows
        if options.part in ("all", "peers"):
            rows += bench.rows(everyone or _loaders(), "tinyllama", 1, options.rounds or 5, None)
        if options.part in ("all", "replicas"):
            rows += bench.replicas("tinyllama", everyone or REPLICAS, options.rounds or 3)
        if options.part in ("all", "shards"):
            bench.publish("many-shards", Shape(), 16)
            rows += bench.rows(everyone or _loaders(), "many-shards", 1, options.rounds or 5, None)
        return rows


def table(rows: list[Row]) -> str:
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("checkpoint", lambda row: row["checkpoint"]),
        ("link", lambda row: f"{row['link']:g} Gbps" if row["link"] else "loopback"),
        ("loader", lambda row: row["loader"]),
        ("replicas", lambda row: str(row["replicas"])),
        ("s", lambda row: f"{row['seconds']:.2f}"),
        ("GB/s", lambda row: f"{row['gb_per_s']:.2f}"),
        ("client CPU-s/GB", lambda row: f"{row['client_cpu_s_per_gb']:.2f}"),
        ("server CPU-s/GB", lambda row: f"{row['server_cpu_s_per_gb']:.2f}"),
        ("memory", lambda row: f"{row['peak_bytes'] / 1e9:.2f} GB"),
        ("from the server", lambda row: f"{row['server_bytes'] / row['bytes']:.3f} ×"),
    ]
    lines = ["| " + " | ".join(name for name, _ in columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join(lines + ["| " + " | ".join(cell(row) for _, cell in columns) + " |" for row in rows])


def _loaders() -> tuple[str, ...]:
    sys.path.insert(0, str(HERE))
    from loaders import LOADERS

    return tuple(LOADERS)


def _tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str], loader: str) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        assert process.stderr is not None
        raise RuntimeError(f"{loader}: {process.stderr.read()[-2000:]}")
    return line


def _peak(pid: int) -> int:
    """High water of a process's own memory: without mapped files in memory, which are counted once for all."""
    fields = dict(re.findall(r"(?m)^(\w+):\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text()))
    return (int(fields["VmHWM"]) - int(fields["RssShmem"]) - int(fields["RssFile"])) * 1024


def _size(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="half a gigabyte, four loaders")
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout (else a table)")
    parser.add_argument("--part", choices=("all", "peers", "replicas", "shards"), default="all")
    parser.add_argument("--link", action="store_true", help="links of 1, 2.5 and 5 Gbps instead of loopback (root)")
    parser.add_argument("--only", help="loaders, with commas between")
    parser.add_argument("--rounds", type=int, help="runs of each (default: 5; quick and link 3)")
    parser.add_argument("--save", metavar="NAME", help="also write bench/results/NAME.json")
    parser.add_argument("--show", metavar="NAME", help="print what was saved, and run nothing")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.show:
        rows = json.loads((RESULTS / f"{options.show}.json").read_text())["rows"]
        print(json.dumps(rows, indent=1) if options.json else table(rows))
        return
    if options.link and not options.inside:
        os.execvp("unshare", ["unshare", "-n", sys.executable, __file__, *sys.argv[1:], "--inside"])
    if options.inside:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    began = time.time()
    rows = run(options)
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        saved = {"machine": machine(), "date": time.strftime("%Y-%m-%d", time.gmtime(began)), "rows": rows}
        (RESULTS / f"{options.save}.json").write_text(json.dumps(saved, indent=1) + "\n")
    print(json.dumps(rows, indent=1) if options.json else table(rows))


if __name__ == "__main__":
    main()
