from __future__ import annotations

from typing import Annotated

import typer

from onecopy.cli import options


def command(
    purge: Annotated[
        bool, typer.Option("--purge", help="Remove the data too: store, sample, cache, logs, credentials.")
    ] = False,
    home: options.Home = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Stop the local stack: no process, no shared memory and no lock is left. Idempotent."""
    from onecopy.cli.progress import renderer
    from onecopy.core.paths import default_home
    from onecopy.targets.local import control
    from onecopy.targets.local.home import Home

    out = options.output(json=json, quiet=quiet)
    place = Home(home.expanduser().resolve() if home else default_home())
    with renderer(out) as report:
        ran = control.stop(place, purge=purge, report=report)
    text = "stopped" if ran else "nothing was running"
    out.data(
        {"stopped": ran, "purged": purge, "home": str(place.root)}, f"{text}; {place.root} removed" if purge else text
    )
