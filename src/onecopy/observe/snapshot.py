"""What is known about a running stack at one moment: the only thing that the status page and the metrics are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Load:
    """One replica's load of the weights. seconds: phase → seconds; bytes: source → bytes; sharing: packed, views, copy."""

    sharing: str
    seconds: dict[str, float]
    bytes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Counters:
    """A replica's own counters since its start; kv_use from 0 to 1."""

    requests: int
    running: int
    waiting: int
    prompt_tokens: int
    generation_tokens: int
    kv_use: float


@dataclass(frozen=True, slots=True)
class Replica:
    """counters and load are None when it does not answer, or has not loaded yet."""

    name: str
    endpoint: str
    state: str
    restarts: int
    ready_seconds: float | None = None
    error: str | None = None
    counters: Counters | None = None
    load: Load | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One line of what happened; at: seconds since the stack was started."""

    at: float
    step: str
    state: str
    message: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of a step that moves bytes: `publish`, `fill`."""

    step: str
    done: int
    total: int
    running: bool


@dataclass(frozen=True, slots=True)
class Cache:
    """Bytes of the file system that the node cache lies on, and what the cache uses of it."""

    path: str
    used: int
    size: int
    free: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Bytes are bytes, phases are seconds. None: not known yet."""

    state: str
    model: str | None = None
    revision: str | None = None
    store: str | None = None
    endpoint: str | None = None
    replicas: tuple[Replica, ...] = ()
    wanted_replicas: int = 0
    checkpoint_bytes: int | None = None
    store_bytes_read: int | None = None
    private_copies_bytes: int | None = None
    weight_bytes_resident: int | None = None
    cache: Cache | None = None
    progress: tuple[Progress, ...] = ()
    phases: dict[str, float] = field(default_factory=dict[str, float])
    steps: tuple[Step, ...] = ()
    fill_failures: int = 0
    storage_usd_month: dict[str, float] = field(default_factory=dict[str, float])
    """disk: at rest with a disk a replica; own: one copy in object storage."""
    error: str | None = None
    hint: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Source = Callable[[], Snapshot]
"""Takes a snapshot now; may be called from any thread."""
