"""The event log between the supervisor and the commands: `Event`s as JSON lines, with the seconds since the start."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onecopy.core.events import Event
from onecopy.core.redact import redact


class EventLog:
    """Appends events; safe from many threads. `started` is the monotonic time that the command began."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()
        self._begun = time.time()

    def __call__(self, event: Event, /) -> None:
        line = {"at": round(time.time() - self._begun, 3), **event.as_dict()}
        with self._lock:
            self._file.write(redact(json.dumps(line)) + "\n")

    def close(self) -> None:
        self._file.close()


class EventReader:
    """Follows the log from its beginning; `read` returns what is new and never blocks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = ""

    def read(self) -> Iterator[Event]:
        try:
            with self._path.open() as file:
                file.seek(self._offset)
                text = file.read()
                self._offset = file.tell()
        except FileNotFoundError:
            return
        lines = (self._rest + text).split("\n")
        self._rest = lines.pop()
        for line in lines:
            raw: dict[str, Any] = json.loads(line)
            raw.pop("at", None)
            yield Event(**raw)
