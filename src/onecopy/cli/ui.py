from __future__ import annotations

from typing import Annotated

import typer

from onecopy.cli import options


def command(
    port: Annotated[
        int, typer.Option("--port", "-p", min=0, max=65535, help="Port on loopback; 0 takes a free one.")
    ] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    home: options.Home = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show the local stack as it lives: a page, and its metrics for Prometheus under /metrics. Ctrl-C ends it."""
    import webbrowser

    from onecopy.core.paths import default_home
    from onecopy.observe.statuspage import StatusServer
    from onecopy.targets.local.home import Home
    from onecopy.targets.local.observed import snapshot

    out = options.output(json=json, quiet=quiet)
    place = Home(home.expanduser().resolve() if home else default_home())
    place.read_state()  # a home of another version is refused before anything is served
    server = StatusServer(lambda: snapshot(place), port=port)
    try:
        out.data({"url": server.url, "metrics": f"{server.url}metrics"}, f"{server.url}\nmetrics: {server.url}metrics")
        if browser:
            webbrowser.open(server.url)
        out.talk("Ctrl-C ends the page; the stack runs on.")
        server.wait()
    finally:
        server.close()
