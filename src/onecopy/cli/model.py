from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onecopy.cli import options
from onecopy.cli.output import table

if TYPE_CHECKING:
    from onecopy.core.events import Reporter
    from onecopy.registry.sources import Source

command = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME[@REF]", help="Model, with a ref or a revision (default: main).")]
SourceEndpoint = Annotated[
    str | None, typer.Option("--source-endpoint", help="Endpoint of a source store (default: as the store's).")
]


@command.callback()
def group() -> None:
    """Models in object storage: immutable revisions, movable refs."""


@command.command("publish")
def publish(
    source: Annotated[
        str, typer.Argument(help="hf://org/name[@revision], a folder, s3://bucket/prefix#name[@ref], or sample.")
    ],
    name: Annotated[str | None, typer.Option("--name", help="Name in the registry (default: from the source).")] = None,
    ref: Annotated[str, typer.Option("--ref", help="Name to point at the revision.")] = "main",
    include: Annotated[list[str] | None, typer.Option("--include", help="Only these files (pattern; repeat).")] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Not these files (pattern; repeat).")] = None,
    source_endpoint: SourceEndpoint = None,
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
    from onecopy.storage.objectstore import open_configured

    out = options.output(json=json, quiet=quiet)
    section = stores.section_of(store, config)
    target, beside = open_configured(section), stores.beside(section, source, source_endpoint)
    with progress.renderer(out) as report:
        chosen = Selection(tuple(include or ()), tuple(exclude or ()))
        if source == "sample":
            opened, named = _sample(report)
        else:
            opened, named = open_source(source, chosen, report=report, options=beside), name or default_name(source)
        try:
            done = registry.publish(opened, target, name or named, ref=ref, report=report)
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


@command.command("verify")
def verify(
    name: Name,
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte; otherwise sizes, ETags, checksums.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what is found, from the source.")] = False,
    source: Annotated[
        str | None, typer.Option("--source", help="Where to mend from (default: the hub commit).")
    ] = None,
    source_endpoint: SourceEndpoint = None,
    store: options.StoreFlag = None,
    config: options.ConfigFile = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check a revision against its manifest. Exit code 1 when something is wrong and stays so."""
    from onecopy.cli import progress, stores
    from onecopy.core.units import format_bytes, format_seconds
    from onecopy.registry import catalogue
    from onecopy.registry import verify as registry
    from onecopy.registry.sources import open_source
    from onecopy.storage.objectstore import open_configured

    out = options.output(json=json, quiet=quiet)
    section = stores.section_of(store, config)
    target = open_configured(section)
    model, wanted = catalogue.split(name)
    with progress.renderer(out) as report:
        found = registry.verify(target, model, wanted, deep=deep, report=report)
        mended = not found.ok and repair
        if mended:
            for problem in found.problems:
                out.warn(str(problem))
            opened = (
                open_source(source, report=report, options=stores.beside(section, source, source_endpoint))
                if source
                else None
            )
            registry.repair(target, found, source=opened, report=report)
            found = registry.verify(target, model, found.revision, deep=deep, report=report)

    def human() -> str:
        read = f", {format_bytes(found.bytes_read)} read" if found.deep else ""
        head = f"{model}@{found.revision}: {found.files} files{read} in {format_seconds(found.seconds)}: "
        lines = [head + ("ok" if found.ok else f"{len(found.problems)} problems")]
        return "\n".join(lines + [f"  {problem}" for problem in found.problems])

    out.data({**asdict(found), "ok": found.ok, "repaired": mended and found.ok}, human)
    if not found.ok:
        if not json:
            out.talk(f"hint: `onecopy model verify {model}@{found.revision} --repair` mends it")
        raise typer.Exit(1)


@command.command("refs")
def refs(
    model: Annotated[str, typer.Argument(help="The model.")],
    move: Annotated[
        str | None, typer.Option("--set", metavar="REF=REVISION", help="Point a ref at a revision.")
    ] = None,
    delete: Annotated[str | None, typer.Option("--delete", metavar="REF", help="Drop a ref.")] = None,
    store: options.StoreFlag = None,
    config: options.ConfigFile = None,
    json: options.Json = False,
) -> None:
    """A model's refs; move one, or drop one."""
    from onecopy.cli import stores
    from onecopy.core.errors import UsageError
    from onecopy.registry import catalogue

    out = options.output(json=json)
    target = stores.from_flags(store, config)
    if move and delete:
        raise UsageError("--set and --delete are two things", hint="run the command twice")
    if move:
        ref, found, wanted = move.partition("=")
        if not found:
            raise UsageError(f"not REF=REVISION: {move}", hint="for example --set main=0123456789abcdef")
        before = catalogue.read_ref(target, model, ref)
        revision = catalogue.resolve(target, model, wanted).revision
        catalogue.write_ref(target, model, ref, revision, expected=before)
        was = before.revision if before else None
        out.data({"ref": ref, "old": was, "new": revision}, f"{ref}: {was or 'nothing'} → {revision}")
        return
    if delete:
        gone = catalogue.delete_ref(target, model, delete)
        out.data({"ref": delete, "old": gone.revision, "new": None}, f"{delete}: {gone.revision} → nothing")
        return
    listed = catalogue.list_refs(target, model)
    out.data(
        [{"ref": ref.name, "revision": ref.revision, "updated": ref.updated.isoformat()} for ref in listed],
        lambda: table(
            ["ref", "revision", "updated"], [[r.name, r.revision, f"{r.updated:%Y-%m-%d %H:%M}"] for r in listed]
        ),
    )


@command.command("hold")
def hold(
    name: Name,
    holder: Annotated[str, typer.Option("--as", help="Who needs it: a cluster, a job.")],
    days: Annotated[float, typer.Option("--days", min=0.001, help="For how long.")] = 30,
    release: Annotated[bool, typer.Option("--release", help="Give it up again.")] = False,
    store: options.StoreFlag = None,
    config: options.ConfigFile = None,
    json: options.Json = False,
) -> None:
    """Keep a revision from delete and gc, whatever the refs say."""
    from datetime import UTC, datetime, timedelta

    from onecopy.cli import stores
    from onecopy.registry import catalogue

    out = options.output(json=json)
    target = stores.from_flags(store, config)
    model, wanted = catalogue.split(name)
    if release:
        catalogue.release(target, model, holder)
        out.data({"model": model, "holder": holder, "until": None}, f"{holder} holds nothing of {model}")
        return
    revision = catalogue.resolve(target, model, wanted).revision
    lease = catalogue.hold(target, model, revision, holder, until=datetime.now(UTC) + timedelta(days=days))
    out.data(
        {"model": model, "revision": revision, "holder": holder, "until": lease.until.isoformat()},
        f"{holder} holds {model}@{revision} until {lease.until:%Y-%m-%d %H:%M}",
    )


@command.command("delete")
def delete(
    name: Annotated[str, typer.Argument(metavar="NAME@REVISION", help="One revision; NAME alone is the whole model.")],
    yes: options.Yes = False,
    store: options.StoreFlag = None,
    config: options.ConfigFile = None,
    json: options.Json = False,
) -> None:
    """Remove a revision that nothing names, or a model with all its revisions and refs."""
    from onecopy.cli import stores
    from onecopy.core.errors import UsageError
    from onecopy.core.units import format_bytes
    from onecopy.registry import care, catalogue

    out = options.output(json=json)
    target = stores.from_flags(store, config)
    model, wanted = catalogue.split(name)
    if "@" in name and not catalogue.is_revision(wanted):
        raise UsageError(
            f"{wanted} is a ref, not a revision", hint=f"`onecopy model refs {model} --delete {wanted}` drops a ref"
        )
    if "@" in name:
        manifest = catalogue.read_manifest(target, model, wanted)
        _agree(yes, f"Delete {name} ({format_bytes(manifest.total_bytes)}) from {target.uri}?")
        freed = care.delete_revision(target, model, wanted)
    else:
        count = len(list(catalogue.list_revisions(target, model)))
        _agree(yes, f"Delete {model}, all {count} revisions and its refs, from {target.uri}?")
        freed = care.delete_model(target, model)
    out.data({"deleted": name, "bytes": freed}, f"deleted {name}: {format_bytes(freed)}")


@command.command("gc")
def gc(
    model: Annotated[str | None, typer.Argument(help="Only this model.")] = None,
    grace: Annotated[float, typer.Option("--grace-days", min=0, help="Leave alone what is younger.")] = 7,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show.")] = False,
    yes: options.Yes = False,
    store: options.StoreFlag = None,
    config: options.ConfigFile = None,
    json: options.Json = False,
) -> None:
    """Show what nothing names any more, ask, and remove it."""
    from onecopy.cli import stores
    from onecopy.core.units import format_bytes, format_seconds
    from onecopy.registry import care, catalogue

    out = options.output(json=json)
    target = stores.from_flags(store, config)
    plan = care.plan_gc(target, grace=grace * 86400, models=[catalogue.check_model_name(model)] if model else None)
    rows = [
        {
            "kind": i.kind,
            "model": i.model,
            "revision": i.revision,
            "objects": len(i.keys),
            "bytes": i.bytes,
            "age": i.age,
        }
        for i in plan
    ]
    body = [
        [i.kind, i.model, i.revision or "-", len(i.keys), format_bytes(i.bytes), format_seconds(i.age)] for i in plan
    ]
    shown = (
        table(["kind", "model", "revision", "objects", "size", "untouched for"], body) if plan else "nothing to remove"
    )
    if dry_run or not plan:
        out.data({"planned": rows, "removed": []}, shown)
        return
    out.talk(shown)
    _agree(yes, f"Remove these from {target.uri}?")
    done = care.collect(target, plan)
    freed = sum(item.bytes for item in done)
    out.data(
        {"planned": rows, "removed": [rows[plan.index(item)] for item in done]},
        f"removed {len(done)} of {len(plan)}: {format_bytes(freed)}",
    )


def _sample(report: Reporter) -> tuple[Source, str]:
    """The sample model, written into the home once. Needs the tools environment, which is made when it is not there."""
    from onecopy.core.paths import default_home
    from onecopy.engine import sample
    from onecopy.engine.environments import ensure_tools
    from onecopy.registry.sources.folder import FolderSource

    tools = ensure_tools(report)
    folder = sample.write_sample(default_home() / "sample" / sample.NAME, tools / "python", report)
    return FolderSource(folder, uri=sample.SOURCE), sample.NAME


def _agree(yes: bool, question: str) -> None:
    """Asks at a terminal. Raises UsageError where nobody can be asked."""
    import sys

    from onecopy.core.errors import UsageError

    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to say yes", hint="--yes answers for you")
    typer.confirm(question, abort=True, err=True)
