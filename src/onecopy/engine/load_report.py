"""What one load did: bytes by source, seconds by phase. One JSON file a process, for the supervisor and the metrics."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onecopy.core import environment
from onecopy.core.units import format_bytes


@dataclass(slots=True)
class LoadReport:
    """model: its folder. sharing: packed, views or copy. bytes: source → count. seconds: phase → seconds.

    Sources: `cache` (the checkpoint's tensors), `packed` (the image that is mapped), `packed_written` (by the replica
    that made it), `shared` and `private` (views), `store` (fetched by this replica, for its cache or for itself).
    Phases: `fill` (waiting for bytes on their way from the store), `read`, `wait` (for another that packs), `pack`, `map`,
    `share`, `total`.
    """

    model: str
    sharing: str
    bytes: dict[str, int] = field(default_factory=dict[str, int])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    _inner: float = 0.0

    def add_bytes(self, source: str, count: int) -> None:
        self.bytes[source] = self.bytes.get(source, 0) + count

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds to the phase's seconds: those of a phase within it count there alone, but for `total`."""
        start, outer = time.perf_counter(), self._inner
        self._inner = 0.0
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            own = spent if name == "total" else spent - self._inner
            self.seconds[name] = self.seconds.get(name, 0.0) + own
            self._inner = outer + spent

    @property
    def weight_seconds(self) -> float:
        """Seconds for the weights alone: without building the model and without waiting for another's packing."""
        return sum(value for name, value in self.seconds.items() if name not in ("total", "wait"))

    def as_dict(self) -> dict[str, Any]:
        moved = self.bytes.get("store", 0) or self.bytes.get("cache", 0)
        rate = moved / self.weight_seconds / 1e9 if self.weight_seconds else None
        return {
            "model": self.model,
            "sharing": self.sharing,
            "bytes": self.bytes,
            "seconds": self.seconds,
            "pid": os.getpid(),
            "gb_per_s": rate,
            "finished": time.time(),
        }

    def finish(self, say: Callable[[str], object]) -> None:
        """One line in the log, and a file in the folder that ONECOPY_LOAD_REPORTS names."""
        phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        sizes = ", ".join(f"{name} {format_bytes(count)}" for name, count in self.bytes.items())
        say(f"onecopy: loaded {self.model} ({self.sharing}): {phases}; {sizes}")
        folder = environment.read("ONECOPY_LOAD_REPORTS")
        if folder is None:
            return
        path = Path(folder) / f"{os.getpid()}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self.as_dict()))
        new.replace(path)


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """Reports of a folder, oldest first."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda report: report["finished"])
