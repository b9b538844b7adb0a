"""The command line's root. A command is imported when it is run, so that `--help` stays quick.

A command is `command` in `cli/<module>.py`: a function, or a Typer app for a group. `COMMANDS` is the only list of them.
"""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any, NamedTuple, cast

import typer
import typer.core
import typer.main

from onecopy.cli.output import Output
from onecopy.core.errors import OnecopyError


class Entry(NamedTuple):
    module: str
    panel: str
    help: str


COMMANDS: dict[str, Entry] = {
    "up": Entry("up", "Local stack", "Bring up a local stack and ask it a first question."),
    "status": Entry("status", "Local stack", "Show what runs, what it read and what it holds in memory."),
    "ui": Entry("ui", "Local stack", "Watch the local stack in the browser; metrics for Prometheus."),
    "logs": Entry("logs", "Local stack", "Show what the parts of the local stack wrote."),
    "down": Entry("down", "Local stack", "Stop the local stack."),
    "init": Entry("init", "Configuration", "Write a commented onecopy.toml."),
    "config": Entry("config", "Configuration", "Show the configuration and where each value came from."),
    "loadtest": Entry("loadtest", "Local stack", "Ask many questions at once, and show which replica served how many."),
    "gpu": Entry("gpu", "Plan", "Plan what fits on a GPU; list cards and instance types."),
    "cost": Entry("cost", "Plan", "What each kind of storage costs a month, GPUs that wait included."),
    "plan": Entry("plan", "Stacks", "Show what apply would change."),
    "apply": Entry("apply", "Stacks", "Show the plan, ask, and do it."),
    "outputs": Entry("outputs", "Stacks", "Print endpoints, namespace, store, models."),
    "destroy": Entry("destroy", "Stacks", "Remove all that the stack made; the store stays."),
    "render": Entry("render", "Stacks", "Write what apply would send as files, for GitOps."),
    "aws": Entry("aws", "Stacks", "What only AWS has: policy, kubeconfig, tokens, orphans."),
    "model": Entry("model", "Registry", "Publish, list, check and care for models in object storage."),
    "cache": Entry("cache", "Registry", "Fill, show and evict the node cache; run the node agent."),
    "doctor": Entry("doctor", "Help", "Look before you apply: every finding with its fix."),
    "version": Entry("version", "Help", "Print the version."),
}


class LazyGroup(typer.core.TyperGroup):
    """Lists the commands from the table and imports one only to run it (or to complete its options)."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        # only the names are asked for, when a mistyped command looks for its neighbours
        self.commands = dict.fromkeys(COMMANDS, cast(Any, None))

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        del ctx
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else load(cmd_name, entry)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        del ctx
        for panel in dict.fromkeys(entry.panel for entry in COMMANDS.values()):
            with formatter.section(panel):
                formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items() if entry.panel == panel])


def load(name: str, entry: Entry) -> Any:
    made: Any = importlib.import_module(f"onecopy.cli.{entry.module}").command
    if isinstance(made, typer.Typer):
        made._add_completion = False  # pyright: ignore[reportPrivateUsage]  # the root offers it: once is enough
        made.info.help = made.info.help if isinstance(made.info.help, str) else entry.help
        group = typer.main.get_command(made)
        group.name = name
        return group
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(made)
    return typer.main.get_command(app)


app = typer.Typer(
    name="onecopy",
    cls=LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from onecopy import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One copy of the weights, every replica.

    Keeps LLM weights once in object storage, fetches them once a node, and lets every vLLM replica share them.
    Start with `onecopy up`.
    """
    del version


def main() -> None:
    """Entry point. Exit codes: 0 done; 1 the user's or the domain's error; 2 usage; 3 changes; 130 interrupt."""
    try:
        app(prog_name="onecopy")
    except OnecopyError as error:
        Output("json" if "--json" in sys.argv else "human").error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
