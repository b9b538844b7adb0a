from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from onecopy.cli import options
from onecopy.cli.output import table

command = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME[@REF]", help="Model, with a ref or a revision (default: main).")]
Many = Annotated[list[str] | None, typer.Option(show_default=False)]


@command.callback()
def group() -> None:
    """Models in object storage: immutable revisions, movable refs."""


@command.command("publish")
def publish(
    source: Annotated[
        str, typer.Argument(help="hf://org/name[@revision], a folder, or s3://bucket/prefix#name[@ref].")
    ],
    name: Annotated[str | None, typer.Option("--name", help="Name in the registry (default: from the source).")] = None,
    ref: Annotated[str, typer.Option("--ref", help="Name to point at the revision.")] = "main",
    include: Annotated[list[str] | None, typer.Option("--include", help="Only these files (pattern; repeat).")] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Not these files (pattern; repeat).")] = None,
    store: options.StoreFlag = None,
    config: options.ConfigFile = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Put a model into the store: verified in flight, resumed when cut, visible only when whole."""
    from onecopy.cli import progress, stores
    from onecopy.core.units import format_bytes, format_seconds
    from onecopy.registry import publish as registry
    from onecopy.registry.sources import Selection, default_name, open_source

    out = options.output(json=json, quiet=quiet)
    target = stores.from_flags(store, config)
    with progress.renderer(out) as report:
        chosen = Selection(tuple(include or ()), tuple(exclude or ()))
        opened = open_source(source, chosen, report=report)
        try:
            done = registry.publish(opened, target, name or default_name(source), ref=ref, report=report)
        finally:
            opened.close()
    out.data(
        {
            "model": done.manifest.model,
            "revision": done.revision,
            "ref": ref,
            "bytes": done.bytes,
            "bytes_sent": done.bytes_sent,
            "files": done.files,
            "seconds": round(done.seconds, 3),
        },
        f"{done.manifest.model}@{done.revision}: {done.files} files, {format_bytes(done.bytes)}, "
        f"{format_bytes(done.bytes_sent)} sent in {format_seconds(done.seconds)}; {ref} points at it",
    )


@command.command("list")
def list_(
    model: Annotated[str | None, typer.Argument(help="Only this model's revisions.")] = None,
    store: options.StoreFlag = None,
    config: options.ConfigFile = None,
    json: options.Json = False,
) -> None:
    """Every revision in the store."""
    from onecopy.cli import stores
    from onecopy.core.units import format_bytes
    from onecopy.registry import catalogue

    target = stores.from_flags(store, config)
    names = [catalogue.check_model_name(model)] if model else catalogue.list_models(target)
    found = [info for name in names for info in catalogue.list_revisions(target, name)]
    rows: list[dict[str, Any]] = [asdict(info) for info in found]
    options.output(json=json).data(
        rows,
        lambda: table(
            ["model", "revision", "refs", "size", "files", "source", "published"],
            [
                [
                    i.model,
                    i.revision,
                    ",".join(i.refs) or "-",
                    format_bytes(i.bytes),
                    i.files,
                    i.source,
                    f"{i.created:%Y-%m-%d %H:%M}",
                ]
                for i in found
            ],
        ),
    )


@command.command("show")
def show(
    name: Name,
    store: options.StoreFlag = None,
    config: options.ConfigFile = None,
    json: options.Json = False,
) -> None:
    """One revision: where it came from, its files and their digests."""
    from onecopy.cli import stores
    from onecopy.core.units import format_bytes
    from onecopy.registry import catalogue

    manifest = catalogue.resolve(stores.from_flags(store, config), *catalogue.split(name))

    def human() -> str:
        weights = manifest.weights
        head = [
            f"{manifest.model}@{manifest.revision}",
            f"source     {manifest.source.uri}" + (f"@{manifest.source.revision}" if manifest.source.revision else ""),
            f"published  {manifest.created:%Y-%m-%d %H:%M:%S %Z}",
            f"size       {format_bytes(manifest.total_bytes)} in {len(manifest.files)} files",
        ]
        if weights:
            dtypes = ", ".join(f"{dtype} {format_bytes(size)}" for dtype, size in weights.dtypes.items())
            head.append(
                f"weights    {weights.parameters / 1e6:,.1f} M parameters in {weights.tensors} tensors: {dtypes}"
            )
        files = table(["file", "size", "sha256"], [[f.path, format_bytes(f.size), f.sha256] for f in manifest.files])
        return "\n".join([*head, "", files])

    options.output(json=json).data(manifest.model_dump(mode="json"), human)
