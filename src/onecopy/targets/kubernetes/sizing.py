"""Deadlines and memory, derived from the model's size: a checkpoint of 70 GB must not meet the probes of one of 2 GB.

Every figure is an upper bound for something healthy; what takes longer is stuck, and is said to be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onecopy.config.kubernetes import KubernetesConfig
from onecopy.core.units import GiB, MiB, parse_bytes

ASSUMED_BYTES = 16 * GiB
"""A checkpoint of which nothing is known: an 8B model in bf16. Said as a warning wherever it is used."""
ENGINE_START = 300
"""Seconds for vLLM itself: imports, compilation, graph capture on a slow card. Its own chart allows 615 in all."""
PAGE_READ_RATE = 500 * 10**6
"""Bytes a second from pages that are in memory already into a card or a process: a tenth of what was measured on
slow machines, so that only a stuck load misses it."""
HOST_BASE = 6 * GiB
"""Host memory of a vLLM server without weights: Python, torch, CUDA contexts, tokenizer, API server."""
HOST_PER_CARD = 3 * GiB
"""Further host memory of each worker of a tensor-parallel server: its own torch and CUDA context."""
STREAM_BUFFER = 4 * GiB
"""Limit that we give runai_streamer (its own default is 40 GB a process)."""
AGENT_OVERHEAD = 1 * GiB
"""The agent beside the cache that it fills: a Python process and its bounded fetch buffers."""
PROBE_PERIOD = 10
PUBLISH_LEAST = 6 * 3600
"""Seconds: 2 TB at 100 MB/s. The hub's rate is not ours to judge, and a failed job says so by itself."""


@dataclass(frozen=True, slots=True)
class Sizing:
    """Seconds and bytes for one stack, made from its largest checkpoint and from all of them together."""

    largest: int
    total: int
    fill_deadline: int
    """One node's fill of the largest model."""
    publish_deadline: int
    start_deadline: int
    """A replica from its container's start to its first answer."""
    startup_failures: int
    """Failure threshold of the start-up probe, at PROBE_PERIOD."""
    replica_memory: int
    cache_bytes: int
    agent_memory: int

    @property
    def roll_deadline(self) -> int:
        """A whole roll: scheduling and image pull on top of the start (vLLM images are about 10 GB)."""
        return self.start_deadline + 900


def size(config: KubernetesConfig, sizes: tuple[int | None, ...], kv_cache: int | None) -> Sizing:
    """sizes: bytes of each model's revision, None where not known. kv_cache: bytes a CPU replica keeps for its KV cache."""
    assumed = parse_bytes(config.model_bytes) if config.model_bytes else ASSUMED_BYTES
    known = [assumed if value is None else value for value in sizes]
    largest, total = max(known), sum(known)
    rate = parse_bytes(config.fill_rate)
    fetch = math.ceil(largest / rate)
    # Reading from the node's memory is bounded by its bus, from the store by the network
    load = math.ceil(largest / PAGE_READ_RATE) if config.delivery == "node-cache" else fetch
    start = ENGINE_START + load
    cache = parse_bytes(config.cache.size) if config.cache.size else _up(2 * total, GiB)
    return Sizing(
        largest=largest,
        total=total,
        fill_deadline=120 + fetch,
        # Both legs pass through the job. From the configuration alone, never from the size that is known afterwards: the
        # deadline is part of the job, and a job that changes is a new one, which would publish again
        publish_deadline=max(PUBLISH_LEAST, 4 * math.ceil(assumed / rate)),
        start_deadline=start,
        startup_failures=math.ceil(start / PROBE_PERIOD),
        replica_memory=parse_bytes(config.memory) if config.memory else _replica(config, largest, kv_cache),
        cache_bytes=cache,
        # Pages of a tmpfs are charged to who wrote them first: the agent
        agent_memory=_up((cache if config.cache.medium == "memory" else 0) + AGENT_OVERHEAD, 256 * MiB),
    )


def _replica(config: KubernetesConfig, largest: int, kv_cache: int | None) -> int:
    cards = config.gpu.count
    need = HOST_BASE + cards * HOST_PER_CARD
    if config.delivery == "stream":
        need += STREAM_BUFFER
    if cards == 0:
        need += kv_cache or 4 * GiB
        # Without a shared cache each CPU replica has a copy of its own
        need += 0 if config.delivery == "node-cache" else largest
    return _up(need, GiB)


def _up(value: int, unit: int) -> int:
    return math.ceil(value / unit) * unit


def quantity(count: int) -> str:
    """Bytes as a Kubernetes quantity, exact."""
    for suffix, unit in (("Gi", GiB), ("Mi", MiB)):
        if count % unit == 0:
            return f"{count // unit}{suffix}"
    return str(count)
