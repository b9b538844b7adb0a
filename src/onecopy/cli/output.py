"""The one output sink: stdout is data, stderr is talk.

human: text for people, progress on stderr. json: one JSON object on stdout, progress as JSON lines on stderr.
quiet: data alone, no talk but errors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

from onecopy.core import environment
from onecopy.core.errors import OnecopyError
from onecopy.core.redact import redact

Mode = Literal["human", "json", "quiet"]


class Output:
    def __init__(self, mode: Mode = "human") -> None:
        self.mode: Mode = mode
        self.color = sys.stderr.isatty() and environment.read("NO_COLOR") is None

    @property
    def live(self) -> bool:
        """True when progress may be drawn: people at a terminal."""
        return self.mode == "human" and sys.stderr.isatty()

    def data(self, value: Any, human: Callable[[], str] | str | None = None) -> None:
        """The command's result. `human` gives (or makes) the text for people; without it JSON is printed."""
        if self.mode == "json" or human is None:
            text = json.dumps(value, indent=2, default=str)
        else:
            text = human if isinstance(human, str) else human()
        if text:
            print(text, flush=True)

    def talk(self, text: str) -> None:
        if self.mode == "human":
            print(text, file=sys.stderr, flush=True)
        elif self.mode == "json":
            print(json.dumps({"message": text}), file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        if self.mode == "json":
            print(json.dumps({"warning": text}), file=sys.stderr, flush=True)
        else:
            print(f"{self._paint('warning:', 33)} {text}", file=sys.stderr, flush=True)

    def error(self, error: OnecopyError) -> None:
        message = redact(error.message)
        if self.mode == "json":
            body = {"error": {"type": type(error).__name__, "message": message, "hint": error.hint}}
            print(json.dumps(body), file=sys.stderr, flush=True)
            return
        print(f"{self._paint('error:', 31)} {message}", file=sys.stderr, flush=True)
        if error.hint:
            print(f"{self._paint('hint:', 36)} {error.hint}", file=sys.stderr, flush=True)

    def _paint(self, text: str, code: int) -> str:
        return f"\x1b[1;{code}m{text}\x1b[0m" if self.color else text


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Plain aligned columns, as kubectl prints them: they survive a pipe."""
    body = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headers), *body]) for i in range(len(headers))]
    lines = [list(map(str.upper, headers)), *body]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
