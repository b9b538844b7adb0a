from __future__ import annotations

from onecopy.cli import options
from onecopy.core.errors import StackError


def command(home: options.Home = None, json: options.Json = False) -> None:
    """Show what runs, what it read from the store and how much memory the weights take. Exit 1 when nothing runs."""
    from onecopy.cli.progress import renderer
    from onecopy.core.paths import default_home
    from onecopy.targets.local import control
    from onecopy.targets.local.home import Home
    from onecopy.targets.local.summary import as_text, live

    out = options.output(json=json)
    place = Home(home.expanduser().resolve() if home else default_home())
    with renderer(out) as report:
        state = control.recover(place, report)
    if state is None:
        raise StackError(f"no stack was started in {place.root}", hint="`onecopy up` starts one")
    state = live(state)
    out.data(state.model_dump(mode="json"), lambda: as_text(state))
    if state.state in ("stopped", "failed"):
        raise typer_exit()


def typer_exit() -> Exception:
    import typer

    return typer.Exit(1)
