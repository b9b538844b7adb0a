"""Every metric that onecopy exports, declared once. Exposition, dashboards, alerts and docs are checked against this list.

Names follow Prometheus: base units (bytes, seconds, ratio), `_total` for counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """A counter's name ends in `_total`. by: who exports it, `onecopy ui` for a stack or the node agent."""

    name: str
    kind: Literal["gauge", "counter"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    by: Literal["stack", "agent"] = "stack"


def _gauge(name: str, unit: str, text: str, *labels: str) -> Metric:
    return Metric(name, "gauge", unit, text, labels)


def _counter(name: str, unit: str, text: str, *labels: str) -> Metric:
    return Metric(name, "counter", unit, text, labels)


def _agent(name: str, unit: str, text: str, *labels: str) -> Metric:
    return Metric(
        f"onecopy_agent_{name}", "counter" if name.endswith("_total") else "gauge", unit, text, labels, "agent"
    )


STACK_UP = _gauge("onecopy_stack_up", "1", "1 while the stack is in this state.", "state")
PHASE_SECONDS = _gauge("onecopy_phase_seconds", "seconds", "How long each phase of the start took; `total` is to the first answer.", "phase")  # fmt: skip

CHECKPOINT_BYTES = _gauge("onecopy_checkpoint_bytes", "bytes", "Size of the revision that is served.", "model", "revision")  # fmt: skip
STORE_READ_BYTES = _counter("onecopy_store_read_bytes_total", "bytes", "Read from the store to fill the node cache.", "model")  # fmt: skip
PRIVATE_COPIES_BYTES = _gauge("onecopy_private_copies_bytes", "bytes", "What as many replicas would read if each fetched for itself.", "model")  # fmt: skip
AMPLIFICATION = _gauge("onecopy_read_amplification_ratio", "ratio", "Bytes read from the store by the checkpoint's size: 1 is one fetch a node, 0 a warm cache.", "model")  # fmt: skip
WEIGHT_MEMORY_BYTES = _gauge("onecopy_weight_memory_bytes", "bytes", "Weights in the memory of all replicas together; a shared page counts once.", "model")  # fmt: skip
STEP_BYTES = _gauge("onecopy_step_bytes", "bytes", "Bytes that a step (publish, fill) has moved.", "step")
STEP_TOTAL_BYTES = _gauge("onecopy_step_total_bytes", "bytes", "Bytes that the step has to move in all.", "step")
FILL_FAILURES = _counter("onecopy_fill_failures_total", "1", "Fills of the node cache that failed.")

CACHE_USED_BYTES = _gauge("onecopy_cache_used_bytes", "bytes", "Held by the node cache.")
CACHE_FREE_BYTES = _gauge("onecopy_cache_free_bytes", "bytes", "Free on the file system under the node cache.")
CACHE_SIZE_BYTES = _gauge("onecopy_cache_size_bytes", "bytes", "Size of the file system under the node cache.")

REPLICA_READY = _gauge("onecopy_replica_ready", "1", "1 when the replica answers, else 0.", "replica")
REPLICA_READY_SECONDS = _gauge("onecopy_replica_ready_seconds", "seconds", "From a replica's start to its first healthy answer.", "replica")  # fmt: skip
REPLICA_RESTARTS = _counter("onecopy_replica_restarts_total", "1", "How often the replica was started again.", "replica")  # fmt: skip
LOAD_SECONDS = _gauge("onecopy_load_seconds", "seconds", "The replica's last load of the weights, by phase.", "replica", "phase")  # fmt: skip
LOAD_BYTES = _gauge("onecopy_load_bytes", "bytes", "Bytes of that load, by where they came from.", "replica", "source")

STORAGE_USD = _gauge("onecopy_storage_usd_month", "USD", "Storage at AWS list prices: `disk` a gp3 disk a replica, `own` one copy in S3. Starts are not in it.", "kind")  # fmt: skip

AGENT_STORE_READ_BYTES = _agent("store_read_bytes_total", "bytes", "Read from the store, what was thrown away included.", "model")  # fmt: skip
AGENT_FILLED_BYTES = _agent("filled_bytes_total", "bytes", "Verified and written into the node cache.", "model")
AGENT_AMPLIFICATION = _agent("read_amplification_ratio", "ratio", "Bytes read by bytes filled: 1 is no byte read twice.", "model")  # fmt: skip
AGENT_FILLS = _agent("fills_total", "1", "Fills of this node, and tries that failed.", "model", "result")
AGENT_FILL_SECONDS = _agent("fill_seconds", "seconds", "How long the last fill took.", "model")
AGENT_RETRIES = _agent("retries_total", "1", "Ranges asked for again, by what went wrong.", "cause")
AGENT_HEDGES = _agent("hedges_total", "1", "Slow ranges that were asked for a second time.")
AGENT_READY = _agent("ready", "1", "1 when what is wanted of the model is whole on this node.", "model", "wanted")
AGENT_CACHE_BYTES = _agent("cache_bytes", "bytes", "Taken by a revision on this node.", "model", "revision")
AGENT_LEASED = _agent("leased", "1", "1 while a reader holds the revision.", "model", "revision")
AGENT_EVICTED_BYTES = _agent("evicted_bytes_total", "bytes", "Removed from the node cache.")
AGENT_FREE_BYTES = _agent("cache_free_bytes", "bytes", "Free on the file system under the node cache.")

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
BY_NAME: dict[str, Metric] = {metric.name: metric for metric in METRICS}
