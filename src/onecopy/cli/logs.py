from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from onecopy.cli import options
from onecopy.core.errors import UsageError


def command(
    part: Annotated[
        str | None, typer.Argument(help="replica-0, store, router, engine or supervisor; without it, all of them.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Last lines of each.")] = 100,
    home: options.Home = None,
) -> None:
    """Show what the parts of the local stack wrote."""
    from onecopy.core.paths import default_home
    from onecopy.targets.local.home import Home

    folder = Home(home.expanduser().resolve() if home else default_home()).logs
    there = sorted(path.stem for path in folder.glob("*.log"))
    chosen = [part] if part else there
    for name in chosen:
        if name not in there:
            raise UsageError(
                f"no log of {name!r} in {folder}", hint=f"there are: {', '.join(there) or 'none; `onecopy up` first'}"
            )
    prefix = len(chosen) > 1
    positions: dict[str, int] = {}
    for name in chosen:
        path = folder / f"{name}.log"
        positions[name] = path.stat().st_size
        _print(name, path.read_text(errors="replace").splitlines()[-lines:] if lines else [], prefix=prefix)
    while follow:
        time.sleep(0.3)
        for name in chosen:
            new, positions[name] = _since(folder / f"{name}.log", positions[name])
            _print(name, new.splitlines(), prefix=prefix)


def _since(path: Path, position: int) -> tuple[str, int]:
    with path.open(errors="replace") as file:
        file.seek(position if path.stat().st_size >= position else 0)
        return file.read(), file.tell()


def _print(name: str, lines: list[str], *, prefix: bool) -> None:
    for line in lines:
        print(f"{name}: {line}" if prefix else line, flush=True)
