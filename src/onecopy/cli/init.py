from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onecopy.cli import options
from onecopy.config import resolve
from onecopy.config.template import render_template
from onecopy.core.errors import UsageError


def command(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path(resolve.DEFAULT_FILE),
    force: Annotated[bool, typer.Option("--force", help="Overwrite.")] = False,
    json: options.Json = False,
) -> None:
    """Write a commented onecopy.toml: every key, its meaning and its default."""
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint="--force overwrites it")
    path.write_text(render_template(), encoding="utf-8")
    options.output(json=json).data({"path": str(path)}, f"wrote {path}")
