"""Progress of long work, as typed events.

Work that takes time is given a `Reporter` and calls it; who renders (a terminal, JSON lines, the supervisor's event
log) is decided by the caller. The default reporter is silent, so that no function needs to ask whether one is there.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

State = Literal["started", "progress", "done", "skipped", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Event:
    """One step's news.

    step: stable machine name, e.g. `publish`, `fill`, `replica-0`. done/total: bytes unless `unit` says otherwise.
    """

    step: str
    state: State
    message: str = ""
    item: str | None = None
    done: int | None = None
    total: int | None = None
    unit: str = "bytes"

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None and value != ""}


class Reporter(Protocol):
    def __call__(self, event: Event, /) -> None: ...


def silent(event: Event, /) -> None:
    """The reporter that says nothing."""
    del event


class ByteCounter:
    """Adds bytes from many threads and reports at most every `step_bytes`; the last call is the caller's `finish`."""

    def __init__(self, report: Reporter, step: str, total: int, *, step_bytes: int = 4 << 20) -> None:
        self._report, self._step, self.total, self._every = report, step, total, step_bytes
        self._lock = threading.Lock()
        self.done = 0
        self._told = 0

    def add(self, count: int, item: str | None = None) -> None:
        with self._lock:
            self.done += count
            if self.done - self._told < self._every and self.done < self.total:
                return
            self._told = done = self.done
        self._report(Event(self._step, "progress", item=item, done=done, total=self.total))
