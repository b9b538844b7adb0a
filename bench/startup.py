"""Start to ready through the real vLLM, and the memory of N replicas: our load format against vLLM's own.

    python bench/startup.py                    every row (about 5 minutes on 2 quiet cores; one plain start), saved in bench/results/startup.json
    python bench/startup.py --quick --json     one run of N = 2, printed

Rows: how replicas start (`fork`: one process has imported vLLM; `plain`: each imports it), the load format, N. Seconds
count from the first start to each replica's first 200 on /health, all N started at once, files in the page cache. The
fork server's own imports (`engine_seconds`) are paid once and not in a fork row's figures. Memory is PSS after each
replica has answered one request.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import statistics
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from onecopy.core.events import silent
from onecopy.engine import memory, sample
from onecopy.engine.environments import Engine, ensure_engine, ensure_tools, inspect_engine
from onecopy.engine.launch import EngineSpec, ForkServer, Replica, replica_argv, replica_env, wait_ready

RESULTS = Path(__file__).parent / "results" / "startup.json"
TOKENS = 64


@dataclass(frozen=True)
class Row:
    start: str
    load_format: str
    replicas: int
    first_ready_s: float
    all_ready_s: float
    cpu_s: float
    """CPU seconds of all replicas until all are ready: what a busy machine does not change."""
    weights_pss: int
    private_pss: int
    total_pss: int
    tokens_per_s: float
    """One stream on one replica, the others idle."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def complete(port: int) -> float:
    """Seconds for TOKENS tokens."""
    body = {"model": "m", "prompt": "Once upon a time", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"content-type": "application/json"},
    )
    begun = time.monotonic()
    with urllib.request.urlopen(request, timeout=120) as answer:
        answer.read()
    return time.monotonic() - begun


def measure(server: ForkServer, engine: Engine, revision: Path, start: str, load_format: str, count: int) -> Row:
    spec = EngineSpec(
        engine, revision, "m", replicas=count, max_model_len=1024, kv_cache_bytes=128 << 20, load_format=load_format
    )
    ports = [free_port() for _ in range(count)]
    logs = Path(tempfile.mkdtemp(prefix="onecopy-bench-"))
    replicas: list[Replica] = []
    try:
        begun = time.monotonic()
        for at, port in enumerate(ports):
            log = logs / f"{at}.log"
            replicas.append(server.spawn(f"replica-{at}", replica_argv(spec, port), replica_env(spec), log))

        def ready(pair: tuple[Replica, int]) -> float:
            wait_ready(pair[0], f"http://127.0.0.1:{pair[1]}", 300)
            return time.monotonic() - begun

        with ThreadPoolExecutor(count) as pool:
            seconds = sorted(pool.map(ready, zip(replicas, ports, strict=True)))
        pids = [replica.pid for replica in replicas]
        cpu = sum(cpu_seconds(pid) for leader in pids for pid in memory.processes(leader))
        for port in ports:
            complete(port)
        speed = TOKENS / min(complete(ports[0]) for _ in range(3))
        # vLLM's own format maps the checkpoint while it reads; what it keeps is private
        return Row(
            start,
            load_format,
            count,
            round(seconds[0], 2),
            round(seconds[-1], 2),
            round(cpu, 2),
            memory.weights(pids, [revision.parent]).pss,
            memory.private(pids).pss,
            memory.total(pids).pss,
            round(speed, 1),
        )
    finally:
        for replica in replicas:
            replica.stop()
        shutil.rmtree(logs, ignore_errors=True)


def median(rows: list[Row]) -> Row:
    """The row whose time for all replicas is the median: one that happened, not a mixture."""
    middle = statistics.median_low([row.all_ready_s for row in rows])
    return next(row for row in rows if row.all_ready_s == middle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run of N = 2, nothing saved")
    parser.add_argument("--json", action="store_true", help="rows as JSON on stdout")
    parser.add_argument("--runs", type=int, default=3, help="runs of each fork row; plain rows run once")
    options = parser.parse_args()
    engine = inspect_engine(ensure_engine(silent))
    tools = ensure_tools(silent)
    counts = [2] if options.quick else [1, 2, 4]
    rows: list[Row] = []
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="onecopy-bench-", dir=base) as name:
        revision = sample.write_sample(Path(name) / "smollm2" / "0123456789abcdef", tools / "python", silent)
        (revision / "onecopy.json").write_text("{}")
        load_average = os.getloadavg()[0]
        engine_seconds = 0.0
        for start in ("fork", "plain"):
            log = Path(name) / f"{start}.log"
            begun = time.monotonic()
            with ForkServer.start(engine.python, Path(name) / "s", log, preload=start == "fork") as server:
                forks, why = server.forks()
                if start == "fork":
                    engine_seconds = round(time.monotonic() - begun, 2)
                    if not forks:
                        sys.exit(f"cannot fork: {why}")
                for load_format in ("onecopy", "safetensors"):
                    for count in counts if start == "fork" else counts[:1]:
                        runs = 1 if options.quick or start == "plain" else options.runs
                        args = (server, engine, revision, start, load_format, count)
                        rows.append(median([measure(*args) for _ in range(runs)]))
                        print(rows[-1], file=sys.stderr)
    result = {
        "model": "SmolLM2-135M-Instruct, bf16, 269060544 bytes",
        "vllm": engine.vllm,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {cpu_name()}",
        "load_average_before": load_average,
        "engine_seconds": engine_seconds,
        "runs": 1 if options.quick else options.runs,
        "rows": [asdict(row) for row in rows],
    }
    if options.json:
        print(json.dumps(result["rows"], indent=1))
    if not options.quick:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


if __name__ == "__main__":
    main()
