"""The local stack as `observe` wants it: read from the home, the replicas' own counters, and what the loads left."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from onecopy.core.redact import redact
from onecopy.core.units import GiB
from onecopy.cost.model import compute
from onecopy.engine.load_report import read_reports
from onecopy.observe import vllm
from onecopy.observe.snapshot import Cache, Load, Progress, Replica, Snapshot, Step
from onecopy.targets.local.home import Home, ReplicaStatus, State
from onecopy.targets.local.summary import live

LAST_STEPS = 40
REPORTS = "reports"


def snapshot(home: Home) -> Snapshot:
    """Raises StackError for a home of another version. A stack that never ran is `absent`."""
    state = home.read_state()
    if state is None:
        return Snapshot("absent", hint="`onecopy up` starts a stack")
    if state.state in ("starting", "ready", "degraded") and not home.is_owned():
        state = state.model_copy(update={"state": "lost", "replicas": [], "processes": []})
    running = state.state in ("ready", "degraded", "starting")
    state = live(state) if running else state
    events = _events(home.events)
    loads = _loads(home.root / REPORTS, state) if running else {}

    def one(status: ReplicaStatus) -> Replica:
        return _replica(status, loads.get(status.name))

    with ThreadPoolExecutor(max(1, len(state.replicas))) as pool:
        replicas = tuple(pool.map(one, state.replicas))
    return Snapshot(
        state=state.state,
        model=state.model,
        revision=state.revision,
        store=state.store,
        endpoint=state.endpoint,
        replicas=replicas,
        wanted_replicas=_wanted(home, state),
        checkpoint_bytes=state.checkpoint_bytes,
        store_bytes_read=state.store_bytes_read,
        private_copies_bytes=state.private_copies_bytes,
        weight_bytes_resident=state.weight_bytes_resident,
        cache=_cache(state.cache) if running else None,
        progress=_progress(events),
        phases=state.phases,
        steps=tuple(
            Step(e["at"], e["step"], e["state"], e.get("message", ""))
            for e in events
            if e["state"] != "progress" or e.get("total") is None
        )[-LAST_STEPS:],
        fill_failures=sum(e["step"] == "fill" and e["state"] == "failed" for e in events),
        storage_usd_month=_storage_usd(state),
        error=redact(state.error) if state.error else None,
        hint=state.hint,
    )


def _replica(status: ReplicaStatus, load: Load | None) -> Replica:
    counters = vllm.read(status.endpoint) if status.state == "ready" else None
    return Replica(
        name=status.name,
        endpoint=status.endpoint,
        state=status.state,
        restarts=status.restarts,
        ready_seconds=status.ready_seconds,
        error=status.error,
        counters=counters,
        load=load,
    )


def _loads(folder: Path, state: State) -> dict[str, Load]:
    """Replica → its last load. A report names the engine's process, which is in the group of its replica's."""
    names = {replica.pid: replica.name for replica in state.replicas if replica.pid}
    found: dict[str, Load] = {}
    if folder.is_dir():
        for report in read_reports(folder):
            with contextlib.suppress(ProcessLookupError):
                if name := names.get(os.getpgid(report["pid"])):
                    found[name] = Load(report["sharing"], report["seconds"], report["bytes"])
    return found


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text().split("\n")[:-1]  # what follows the last line's end is still being written
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _progress(events: list[dict[str, Any]]) -> tuple[Progress, ...]:
    last: dict[str, Progress] = {}
    for event in events:
        step = event["step"]
        if event["state"] == "progress" and event.get("total"):
            last[step] = Progress(step, event.get("done", 0), event["total"], running=True)
        elif step in last and event["state"] in ("done", "failed"):
            last[step] = Progress(step, last[step].done, last[step].total, running=False)
    return tuple(last.values())


def _storage_usd(state: State) -> dict[str, float]:
    """What this stack's bytes would cost at rest: no start, no publish, so no waiting GPU either."""
    if not state.checkpoint_bytes or not state.replicas:
        return {}
    rows = compute(
        {
            "model_gb": state.checkpoint_bytes / GiB,
            "replicas": len(state.replicas),
            "nodes": 1,
            "starts_per_month": 0,
            "publishes_per_month": 0,
        },
        cloud="aws",
    )
    return {row.storage.role: float(row.monthly_usd) for row in rows if row.storage.role != "other"}


def _cache(root: str | None) -> Cache | None:
    if root is None or not Path(root).exists():
        return None
    usage = shutil.disk_usage(root)
    used = 0
    for path in Path(root).rglob("*"):
        with contextlib.suppress(OSError):
            used += path.stat().st_blocks * 512 if path.is_file() else 0
    return Cache(root, used, usage.total, usage.free)


def _wanted(home: Home, state: State) -> int:
    if state.replicas:
        return len(state.replicas)
    try:
        return int(json.loads(home.settings.read_text())["models"][0]["replicas"])
    except (OSError, ValueError, KeyError, IndexError):
        return 0
