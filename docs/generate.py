"""Writes docs/reference/ from the code: `python docs/generate.py` (or `--check`, which tests run)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from onecopy.cli import main as cli
from onecopy.config.resolve import environment_names, fields
from onecopy.config.schema import StackConfig
from onecopy.core.environment import REGISTER
from onecopy.core.metrics import METRICS

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- made by docs/generate.py: do not edit -->\n\n"


def configuration() -> str:
    """One table row a field: key, environment variable, default, meaning."""
    names = {dotted: name for name, dotted in environment_names().items()}
    lines = ["# Configuration", "", "`onecopy.toml`, environment variables and flags end in one schema. Precedence: flag > environment > file > default.", "",
             "| key | environment | default | meaning |", "|---|---|---|---|"]  # fmt: skip
    for dotted, field in fields(StackConfig):
        default = "" if field.is_required() else field.get_default(call_default_factory=True)
        shown = "" if default is None or default == "" else f"`{default}`"
        meaning = " ".join((field.description or "").split())
        variable = f"`{names[dotted]}`" if dotted in names else ""
        lines.append(f"| `{dotted}` | {variable} | {shown} | {meaning} |".replace("models.0.", "models[].", 1))
    return NOTE + "\n".join(lines) + "\n"


def environment() -> str:
    rows = [f"| `{name}` | {' '.join(text.split())} |" for name, text in REGISTER.items()]
    return NOTE + "\n".join(["# Environment variables", "", "Besides the [configuration](configuration.md)'s own.", "",
                             "| variable | meaning |", "|---|---|", *rows]) + "\n"  # fmt: skip


def commands() -> str:
    root: Any = typer.main.get_command(cli.app)
    blocks = ["# Commands", "", "As `--help` prints them."]
    for path, command in _walk(root, "onecopy"):
        context = command.make_context(
            path,
            [],
            resilient_parsing=True,
            help_option_names=["-h", "--help"],
            terminal_width=100,
            max_content_width=100,
        )
        context.info_name = path
        blocks += ["", f"## `{path}`", "", "```", command.get_help(context).rstrip(), "```"]
    return NOTE + "\n".join(blocks) + "\n"


def _walk(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, command
    if hasattr(command, "list_commands"):
        for name in command.list_commands(None):
            yield from _walk(command.get_command(None, name), f"{path} {name}")


def metrics() -> str:
    rows = [
        f"| `{m.name}` | {m.by} | {m.kind} | {m.unit} | {', '.join(f'`{label}`' for label in m.labels)} | {m.help} |"
        for m in METRICS
    ]
    return NOTE + "\n".join(["# Metrics", "", "`stack`: under `/metrics` of `onecopy ui`; `agent`: of the node agent. vLLM's own are not listed here.", "",
                             "| name | by | kind | unit | labels | meaning |", "|---|---|---|---|---|---|", *rows]) + "\n"  # fmt: skip


PAGES = {
    "configuration.md": configuration,
    "environment.md": environment,
    "commands.md": commands,
    "metrics.md": metrics,
}


def stale() -> list[str]:
    """Names of the pages that are not what the code says."""
    return [
        name for name, make in PAGES.items() if not (FOLDER / name).exists() or (FOLDER / name).read_text() != make()
    ]


def main() -> None:
    if "--check" in sys.argv:
        if names := stale():
            sys.exit(f"stale: {', '.join(names)}; run `make docs`")
        return
    FOLDER.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make())


if __name__ == "__main__":
    main()
