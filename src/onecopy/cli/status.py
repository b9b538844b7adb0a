from __future__ import annotations

from typing import Annotated

import typer

from onecopy.cli import options, stack
from onecopy.core.errors import UsageError


def command(
    home: options.Home = None,
    config: options.ConfigFile = None,
    target: stack.TargetFlag = None,
    drift: Annotated[
        bool, typer.Option("--drift", help="Ask AWS what was changed behind the stack's back; takes a minute.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Show what runs: every part's health, what was read from the store, where the weights are. Exit 1 when it is not up."""
    out = options.output(json=json)
    resolved = stack.resolved(config=config, target=target)
    if drift and resolved.config.target != "aws":
        raise UsageError(
            "--drift is for the aws target", hint="`onecopy plan` shows what differs from the configuration"
        )
    if resolved.config.target != "local":
        if not stack.show_status(out, resolved, drift=drift):
            raise typer.Exit(1)
        return
    _local(out, home)


def _local(out: options.Output, home: options.Home) -> None:
    from onecopy.cli.progress import renderer
    from onecopy.core.errors import StackError
    from onecopy.core.paths import default_home
    from onecopy.targets.local import control
    from onecopy.targets.local.home import Home
    from onecopy.targets.local.summary import as_text, live

    place = Home(home.expanduser().resolve() if home else default_home())
    with renderer(out) as report:
        state = control.recover(place, report)
    if state is None:
        raise StackError(f"no stack was started in {place.root}", hint="`onecopy up` starts one")
    state = live(state)
    out.data(state.model_dump(mode="json"), lambda: as_text(state))
    if state.state in ("stopped", "failed"):
        raise typer.Exit(1)
