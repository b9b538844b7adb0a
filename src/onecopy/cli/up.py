from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onecopy.cli import options
from onecopy.cli.output import Output


def command(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A Hugging Face folder, hf://org/name[@revision], or `sample`. [ONECOPY_MODEL]",
            show_default=False,
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option("--replicas", "-n", help="vLLM servers (default 2). [ONECOPY_REPLICAS]", show_default=False),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            "-p",
            help="Port of the endpoint (default 8080); 0 takes a free one. [ONECOPY_ROUTER_PORT]",
            show_default=False,
        ),
    ] = None,
    store: options.StoreFlag = None,
    engine_python: Annotated[
        Path | None,
        typer.Option(
            "--engine-python",
            help="A Python that has vLLM, used instead of the CPU engine. [ONECOPY_ENGINE_PYTHON]",
            show_default=False,
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Return when the stack answers; it runs on.")] = False,
    home: options.Home = None,
    config: options.ConfigFile = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Bring up a local stack: store, model, node cache, replicas, router, and a first answer.

    Idempotent: what is there already is checked and kept. In the foreground Ctrl-C stops everything in order.
    """
    from onecopy.cli.progress import renderer
    from onecopy.config.resolve import resolve
    from onecopy.core.paths import default_home
    from onecopy.targets.local import control
    from onecopy.targets.local.home import Home
    from onecopy.targets.local.summary import as_text

    out = options.output(json=json, quiet=quiet)
    flags: dict[str, Any] = {
        "models.0.source": model,
        "models.0.replicas": replicas,
        "router.port": port,
        "store.uri": store,
        "engine.python": engine_python,
    }
    resolved = resolve(file=config, flags={**flags, "target": "local"})
    place = Home(home.expanduser().resolve() if home else default_home())
    stack = None
    try:
        with renderer(out) as report:
            stack = control.start(place, resolved.config, foreground=not detach, report=report)
            state = stack.wait_ready(report)
        out.data(state.model_dump(mode="json"), lambda: as_text(state))
        if detach or not stack.mine:
            return
        out.talk("Ctrl-C stops everything.")
        with renderer(out) as report:
            stack.follow(report)
    except KeyboardInterrupt:
        if stack is not None and stack.mine:
            _stop(place, out)
        raise


def _stop(place: Any, out: Output) -> None:
    from onecopy.cli.progress import renderer
    from onecopy.targets.local import control

    out.talk("stopping …")
    with renderer(out) as report:
        control.stop(place, report=report)
