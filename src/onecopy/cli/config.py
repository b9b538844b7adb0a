from __future__ import annotations

from typing import Any

import typer

from onecopy.cli import options
from onecopy.cli.output import table

command = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@command.callback()
def group() -> None:
    """What a stack's configuration is, and where each value came from."""


@command.command("show")
def show(config: options.ConfigFile = None, json: options.Json = False) -> None:
    """Every value with its origin: flag, environment variable, file or default."""
    from onecopy.config.resolve import leaves, resolve

    resolved = resolve(file=config)
    rows: list[dict[str, Any]] = [
        {"key": key, "value": value, "origin": resolved.origins.get(key, "default")}
        for key, value in leaves(resolved.config.model_dump(mode="json"))
    ]
    options.output(json=json).data(
        rows,
        lambda: table(["key", "value", "origin"], [[row["key"], _shown(row["value"]), row["origin"]] for row in rows]),
    )


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)
