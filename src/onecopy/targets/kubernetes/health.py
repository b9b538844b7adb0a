"""Is it ready, and if not, why: each kind's own rules, and the last words of what is stuck.

Reasons are the cluster's: a pod's waiting reason, a condition's message, the last events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from onecopy.targets.base import Health
from onecopy.targets.kubernetes.cluster import Cluster
from onecopy.targets.kubernetes.stack import Object, dig, dig_list, dig_map

# Waiting reasons that do not heal by waiting
_HOPELESS = {"InvalidImageName", "CreateContainerConfigError", "ErrImageNeverPull"}
EVENTS = 3
YOUNG = 15
"""Seconds in which a DaemonSet without nodes is not believed yet."""


@dataclass(frozen=True, slots=True)
class Verdict:
    health: Health
    ready: int | None = None
    desired: int | None = None
    reason: str | None = None


def judge(cluster: Cluster, obj: Object) -> Verdict:
    """obj: as desired; the live one is read. `failed` means that waiting is of no use."""
    live = cluster.get_like(obj)
    if live is None:
        return Verdict("missing")
    return judge_live(cluster, live)


def judge_live(cluster: Cluster, live: Object) -> Verdict:
    if live["metadata"].get("deletionTimestamp"):
        return Verdict("progressing", reason="being deleted")
    kind, status = str(live["kind"]), dig_map(live, "status")
    if kind == "Namespace":
        phase = status.get("phase") or "Active"
        return Verdict("ready") if phase == "Active" else Verdict("progressing", reason=str(phase))
    if kind == "PersistentVolumeClaim":
        bound = status.get("phase") == "Bound"
        return Verdict("ready" if bound else "progressing", reason=None if bound else _events(cluster, live))
    if kind == "Job":
        return _job(cluster, live, status)
    if kind in ("DaemonSet", "Deployment"):
        return _workload(cluster, live, status)
    return Verdict("ready")


def _job(cluster: Cluster, live: Object, status: Object) -> Verdict:
    conditions = {c["type"]: c for c in dig_list(status, "conditions") if c.get("status") == "True"}
    if "Complete" in conditions:
        return Verdict("ready", 1, 1)
    if "Failed" in conditions:
        said = last_message(cluster, live)
        return Verdict("failed", 0, 1, said or conditions["Failed"].get("message"))
    return Verdict("progressing", 0, 1, _pods_reason(cluster, live) or _events(cluster, live))


def _workload(cluster: Cluster, live: Object, status: Object) -> Verdict:
    if live["kind"] == "DaemonSet":
        desired, ready = int(status.get("desiredNumberScheduled") or 0), int(status.get("numberReady") or 0)
        updated = int(status.get("updatedNumberScheduled") or 0)
    else:
        desired = 1 if dig(live, "spec", "replicas") is None else int(live["spec"]["replicas"])
        ready, updated = int(status.get("availableReplicas") or 0), int(status.get("updatedReplicas") or 0)
        if int(status.get("replicas") or 0) != desired:
            updated = -1  # old ones are still going
    if int(status.get("observedGeneration") or 0) < int(live["metadata"].get("generation") or 0):
        return Verdict("progressing", ready, desired, "not seen by its controller yet")
    if desired == 0 and live["kind"] == "DaemonSet":
        # Right for a pool that grows from nothing; but a controller that has just seen it says 0 as well
        young = _age(live) < YOUNG
        return Verdict("progressing" if young else "ready", 0, 0, "no node matches its node selector")
    if updated >= desired and ready >= desired:
        return Verdict("ready", ready, desired)
    hopeless, reason = _pods(cluster, live)
    return Verdict(
        "failed" if hopeless else "progressing", ready, desired, reason or _events(cluster, live) or "starting"
    )


def pods_of(cluster: Cluster, owner: Object) -> list[Object]:
    selector = dig_map(owner, "spec", "selector", "matchLabels")
    return cluster.list("v1", "Pod", namespace=owner["metadata"]["namespace"], labels=selector) if selector else []


def last_message(cluster: Cluster, job: Object) -> str | None:
    """What the job's last container said when it ended: for a publish job its result, or its error."""
    ended: list[tuple[str, str]] = []
    for pod in pods_of(cluster, job):
        for container in dig_list(pod, "status", "containerStatuses"):
            state = dig_map(container, "state", "terminated")
            if state.get("message"):
                ended.append((str(state.get("finishedAt") or ""), str(state["message"]).strip()))
    return max(ended)[1] if ended else None


def _pods_reason(cluster: Cluster, live: Object) -> str | None:
    return _pods(cluster, live)[1]


def _pods(cluster: Cluster, live: Object) -> tuple[bool, str | None]:
    """(waiting is of no use, reason) of the first pod that is not ready."""
    for pod in pods_of(cluster, live):
        hopeless, reason = _pod(pod)
        if reason:
            name = pod["metadata"]["name"]
            said = _events(cluster, pod)
            return hopeless, f"{name}: {reason}" + (f"; {said}" if said and said not in reason else "")
    return False, None


def _pod(pod: Object) -> tuple[bool, str | None]:
    status = dig_map(pod, "status")
    for container in [*dig_list(status, "initContainerStatuses"), *dig_list(status, "containerStatuses")]:
        waiting = dig_map(container, "state", "waiting")
        if waiting.get("reason") and waiting["reason"] not in ("ContainerCreating", "PodInitializing"):
            last = dig_map(container, "lastState", "terminated")
            text = ": ".join(str(part) for part in (waiting["reason"], waiting.get("message")) if part)
            if last.get("message"):
                text += f" (it said: {_tail(last['message'])})"
            return waiting["reason"] in _HOPELESS, text
    conditions: dict[str, Any] = {str(c["type"]): c for c in dig_list(status, "conditions")}
    for condition in conditions.values():
        if condition["type"] == "PodScheduled" and condition.get("status") != "True":
            return False, f"{condition.get('reason')}: {condition.get('message')}"
    if status.get("phase") == "Running" and dig(conditions, "Ready", "status") != "True":
        return False, "running, not ready yet"
    return False, None


def _events(cluster: Cluster, obj: Object) -> str | None:
    namespace = obj["metadata"].get("namespace")
    if namespace is None:
        return None
    mine: list[Object] = [
        event
        for event in cluster.list("v1", "Event", namespace=namespace)
        if dig(event, "involvedObject", "uid") == obj["metadata"].get("uid") and event.get("type") == "Warning"
    ]
    mine.sort(key=_when)
    texts = list(dict.fromkeys(f"{event.get('reason')}: {event.get('message')}" for event in mine[-EVENTS:]))
    return "; ".join(texts) or None


def _age(obj: Object) -> float:
    made = datetime.fromisoformat(str(obj["metadata"]["creationTimestamp"]))
    return (datetime.now(UTC) - made).total_seconds()


def _when(event: Object) -> str:
    found: Any = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp")
    return str(found or "")


def _tail(text: str) -> str:
    lines: Sequence[str] = text.strip().splitlines()
    return lines[-1][:200] if lines else ""
