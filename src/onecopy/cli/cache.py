from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from onecopy.cli import options
from onecopy.cli.output import table

command = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Dir = Annotated[
    Path | None,
    typer.Option(
        "--dir", help="Folder of the node cache (default: the local stack's). [ONECOPY_CACHE_DIR]", show_default=False
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME[@REF]", help="Model, with a ref or a revision (default: main).")]


@command.callback()
def group() -> None:
    """The node cache: one fetched copy of the weights that all replicas of a node share."""


@command.command("fill")
def fill(
    name: Name,
    cache_dir: Dir = None,
    deadline: Annotated[float, typer.Option("--deadline", min=1, help="Longest time in seconds.")] = 3600,
    store: options.StoreFlag = None,
    config: options.ConfigFile = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fetch a revision into the cache, unless it is there: every byte checked, visible only when whole."""
    from onecopy.cli import progress, stores
    from onecopy.core.units import format_bytes, format_seconds
    from onecopy.registry import catalogue

    out = options.output(json=json, quiet=quiet)
    target, cache = stores.from_flags(store, config), _cache(cache_dir, config)
    manifest = catalogue.resolve(target, *catalogue.split(name))
    with progress.renderer(out) as report:
        done = cache.fill(target, manifest, report=report, deadline=deadline)
    out.data(
        {
            "model": manifest.model,
            "revision": manifest.revision,
            "path": str(done.path),
            "already_there": done.already_there,
            "bytes_fetched": done.bytes_fetched,
            "bytes_resumed": done.bytes_resumed,
            "bytes_read": done.stats.bytes_read,
            "retries": dict(done.stats.retries),
            "seconds": round(done.seconds, 3),
        },
        f"{done.path}: already there"
        if done.already_there
        else f"{done.path}: {format_bytes(done.bytes_fetched)} in {format_seconds(done.seconds)}"
        + (f", {format_bytes(done.bytes_resumed)} were there" if done.bytes_resumed else ""),
    )


@command.command("status")
def status(cache_dir: Dir = None, config: options.ConfigFile = None, json: options.Json = False) -> None:
    """What is in the cache, what is being filled, and what a reader holds."""
    import shutil

    from onecopy.core.units import format_bytes, format_seconds

    cache = _cache(cache_dir, config)
    entries = cache.list()
    rows = [
        (
            entry.model,
            entry.revision,
            entry.state,
            format_bytes(entry.bytes),
            format_seconds(entry.age),
            "yes" if entry.leased else "no",
        )
        for entry in entries
    ]
    usage = shutil.disk_usage(cache.root) if cache.root.exists() else None
    options.output(json=json).data(
        {
            "dir": str(cache.root),
            "free_bytes": usage.free if usage else None,
            "revisions": [_record(entry) for entry in entries],
        },
        lambda: (
            table(("model", "revision", "state", "size", "last used", "leased"), rows)
            if rows
            else f"nothing in {cache.root}"
        ),
    )


@command.command("evict")
def evict(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME@REVISION]...", help="These revisions.", show_default=False)
    ] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", help="Evict the longest unused until it fits, e.g. 40GiB.")
    ] = None,
    max_age: Annotated[
        float | None, typer.Option("--max-age-hours", min=0, help="Evict what was not asked for so long.")
    ] = None,
    cache_dir: Dir = None,
    config: options.ConfigFile = None,
    json: options.Json = False,
) -> None:
    """Remove revisions from the cache. What a reader holds or somebody fills stays."""
    from onecopy.core.errors import CacheError, UsageError
    from onecopy.core.units import format_bytes, parse_bytes
    from onecopy.registry import catalogue

    if not names and max_size is None and max_age is None:
        raise UsageError("nothing says what to evict", hint="name revisions, or give --max-size or --max-age-hours")
    out, cache = options.output(json=json), _cache(cache_dir, config)
    only = [catalogue.split(name) for name in names] if names else None
    gone = cache.evict(
        max_bytes=parse_bytes(max_size) if max_size is not None else None,
        max_age=max_age * 3600 if max_age is not None else None,
        only=only,
    )
    if only and len(gone) < len(only):
        went = {(entry.model, entry.revision) for entry in gone}
        stays = ", ".join(f"{model}@{revision}" for model, revision in only if (model, revision) not in went)
        raise CacheError(f"not evicted: {stays}", hint="it is held, being filled or not there: `onecopy cache status`")
    out.data(
        {"evicted": [_record(entry) for entry in gone], "bytes": sum(entry.bytes for entry in gone)},
        lambda: (
            "\n".join(f"evicted {entry.model}@{entry.revision}: {format_bytes(entry.bytes)}" for entry in gone)
            or "nothing to evict"
        ),
    )


@command.command("agent")
def agent(
    names: Annotated[list[str], typer.Argument(metavar="NAME[@REF]...", help="Revisions to keep on this node.")],
    cache_dir: Dir = None,
    host: Annotated[str, typer.Option("--host", help="Address of /healthz, /readyz and /metrics.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 9400,
    max_size: Annotated[
        str | None, typer.Option("--max-size", help="Evict what is not wanted beyond this size.")
    ] = None,
    max_age: Annotated[
        float | None, typer.Option("--max-age-hours", min=0, help="Evict what is not wanted after so long.")
    ] = None,
    interval: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between two looks at refs.")] = 30,
    store: options.StoreFlag = None,
    config: options.ConfigFile = None,
    json: options.Json = False,
) -> None:
    """Run on a node: keep revisions there, follow their refs, evict what nobody wants, export metrics."""
    import signal
    import sys
    import threading

    from onecopy.cli import progress, stores
    from onecopy.core.units import parse_bytes
    from onecopy.registry import catalogue
    from onecopy.weights.agent import Agent, serve

    out = options.output(json=json)
    target, cache = stores.from_flags(store, config), _cache(cache_dir, config)

    def end(number: int, frame: Any) -> None:
        """A fill that is under way ends with this, and keeps what it has for the next one."""
        del number, frame
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    with progress.renderer(out) as report:
        made = Agent(
            cache,
            target,
            [catalogue.split(name) for name in names],
            lambda model, wanted: catalogue.resolve(target, model, wanted),
            max_bytes=parse_bytes(max_size) if max_size is not None else None,
            max_age=max_age * 3600 if max_age is not None else None,
            look_every=interval,
            report=report,
        )
        cache.root.mkdir(parents=True, exist_ok=True)
        with serve(made, host, port) as address:
            out.talk(f"{address}: /healthz /readyz /metrics")
            made.run(threading.Event())


def _record(entry: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(entry), "path": str(entry.path), "age": round(entry.age, 1)}


def _cache(cache_dir: Path | None, config: Path | None) -> Any:
    from onecopy.config.resolve import resolve
    from onecopy.core.errors import UsageError
    from onecopy.core.paths import default_home
    from onecopy.targets.local.home import Home
    from onecopy.weights.cache import NodeCache

    section = resolve(file=config, flags={"cache.dir": str(cache_dir) if cache_dir else None}).config.cache
    root = section.dir
    if root is None:
        state = Home(default_home()).read_state()
        root = Path(state.cache) if state is not None and state.cache else None
    if root is None:
        raise UsageError(
            "no node cache is named", hint="give --dir, set cache.dir in onecopy.toml, or run `onecopy up`"
        )
    return NodeCache(root, headroom=section.headroom)
