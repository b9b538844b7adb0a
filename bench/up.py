"""The main job, measured: `onecopy up` with 1, 2 and 4 replicas, from nothing running to an answer.

    python bench/up.py [--json]        writes bench/results/up.json

The engine and the tools must be installed (one `onecopy up` before does that), so that what is timed is a start and not
an installation. The store keeps the model between the runs, as it would in use.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "up.json"


def onecopy(home: Path, *args: str) -> Any:
    argv = [sys.executable, "-m", "onecopy", *args, "--home", str(home), "--json"]
    return json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def measure(home: Path, replicas: int) -> dict[str, Any]:
    begun = time.monotonic()
    state = onecopy(home, "up", "--detach", "--port", "0", "--replicas", str(replicas))
    seconds = time.monotonic() - begun
    ready = [replica["ready_seconds"] for replica in state["replicas"]]
    one = state["checkpoint_bytes"]
    row = {
        "replicas": replicas,
        "seconds_to_answer": round(seconds, 1),
        "phases": state["phases"],
        "first_replica_ready_s": min(ready),
        "last_after_first_s": round(max(ready) - min(ready), 2),
        "checkpoint_bytes": one,
        "store_bytes_read": state["store_bytes_read"],
        "store_read_per_checkpoint": round(state["store_bytes_read"] / one, 3),
        "weight_bytes_resident": state["weight_bytes_resident"],
        "weights_per_checkpoint": round(state["weight_bytes_resident"] / one, 3),
        "answer": state["answer"],
    }
    onecopy(home, "down")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the result, do not save it")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onecopy-bench-") as folder:
        home = Path(folder) / "home"
        measure(home, 1)  # writes the sample and publishes it
        rows = [measure(home, count) for count in args.replicas]
        onecopy(home, "down", "--purge")
    result = {
        "what": "onecopy up, SmolLM2-135M-Instruct bf16, warm machine, CPU",
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "rows": rows,
    }
    print(json.dumps(result, indent=1))
    if not args.json:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
