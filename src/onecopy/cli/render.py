from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onecopy.cli import options, stack


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")],
    config: options.ConfigFile = None,
    target: stack.TargetFlag = None,
    store: options.StoreFlag = None,
    cloud: stack.CloudFlag = None,
    delivery: stack.DeliveryFlag = None,
    revision: stack.RevisionFlag = None,
    json: options.Json = False,
) -> None:
    """Write what apply would send as files, for GitOps: manifests, Helm values, templates."""
    sink = options.output(json=json)
    settings = stack.resolved(
        config=config, target=target, store=store, cloud=cloud, delivery=delivery, revision=revision
    )
    rendered = stack.open_target(settings).render(out)
    for warning in rendered.warnings:
        sink.warn(warning)
    files = [str(path) for path in rendered.files]
    sink.data({"out": str(out), "files": files, "warnings": list(rendered.warnings)}, "\n".join(files))
