"""Renders `Event`s: a live table of steps on a terminal, plain lines elsewhere, JSON lines under --json.

One renderer for every command that does long work: `with progress.renderer(out) as report: work(report=report)`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from onecopy.cli.output import Output
from onecopy.core.events import Event, Reporter, silent
from onecopy.core.units import format_bytes, format_seconds

_PLAIN_EVERY = 5.0
"""Seconds between two lines of one step's progress where no terminal redraws them."""


@contextmanager
def renderer(out: Output) -> Iterator[Reporter]:
    if out.mode == "quiet":
        yield silent
    elif out.mode == "json":
        yield _json_line
    elif out.live:
        with _live() as report:
            yield report
    else:
        yield _PlainLines()


def _json_line(event: Event) -> None:
    print(json.dumps(event.as_dict()), file=sys.stderr, flush=True)


class _PlainLines:
    """What a log file or a CI job shows: each step once when it is done, and a line now and then in between."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._next: dict[str, float] = {}
        self._rates: dict[str, _Rate] = {}

    def __call__(self, event: Event, /) -> None:
        now = time.monotonic()
        text = event.message
        if event.state == "progress":
            rate = self._rates.setdefault(event.step, _Rate())
            rate.add(event)
            if now < self._next.setdefault(event.step, now + _PLAIN_EVERY) and event.done is not None:
                return
            self._next[event.step] = now + _PLAIN_EVERY
            text = rate.text(event)
        elif event.state == "started" and not text:
            return
        mark = {"warning": "! ", "failed": "x "}.get(event.state, "")
        line = f"[{now - self._begun:6.1f} s] {event.step:<12} {mark}{text or event.state}"
        print(line.rstrip(), file=sys.stderr, flush=True)


class _Rate:
    """Average rate since the first progress of a step, and the time that is left at it."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._first = 0

    def add(self, event: Event) -> None:
        if self._begun is None:
            self._begun, self._first = time.monotonic(), event.done or 0

    def text(self, event: Event) -> str:
        if event.done is None:
            return " ".join(part for part in (event.item or "", event.message) if part)
        show: Callable[[float], str] = format_bytes if event.unit == "bytes" else lambda n: f"{n:.0f} {event.unit}"
        parts = [show(event.done) + (f" of {show(event.total)}" if event.total else "")]
        seconds = time.monotonic() - (self._begun or time.monotonic())
        moved = event.done - self._first
        if event.unit != "bytes":
            parts += [event.message] if event.message else []
        elif seconds > 0.5 and moved > 0:
            rate = moved / seconds
            parts.append(f"{show(rate)}/s")
            if event.total and event.total > event.done:
                parts.append(f"{format_seconds((event.total - event.done) / rate)} left")
        return ", ".join(parts)


@contextmanager
def _live() -> Iterator[Reporter]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(finished_text="[green]✓"),
        TextColumn("{task.description:<12}"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[text]}"),
        console=console,
    ) as progress:
        tasks: dict[str, Any] = {}
        rates: dict[str, _Rate] = {}

        def report(event: Event, /) -> None:
            if event.state in ("warning", "failed"):
                colour = "yellow" if event.state == "warning" else "red"
                console.print(f"[{colour}]{event.state}:[/] {event.step}: {event.message}", highlight=False)
                if event.state == "warning":
                    return
            if event.step not in tasks:
                tasks[event.step] = progress.add_task(event.step, total=1, text="")
            text = event.message
            if event.state == "progress":
                rate = rates.setdefault(event.step, _Rate())
                rate.add(event)
                text = rate.text(event)
            completed = 1 if event.state in ("done", "skipped") else 0
            progress.update(tasks[event.step], completed=completed, text=text)
            if event.state == "started":  # a step of two parts, an installation and a start say, runs on
                progress.start_task(tasks[event.step])

        yield report
