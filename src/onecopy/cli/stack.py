"""What the verbs of planned targets share: flags to a target, and the way from a plan to a yes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from onecopy.cli.output import Output, table
from onecopy.core.errors import UsageError

if TYPE_CHECKING:
    from onecopy.config.resolve import Resolved
    from onecopy.targets.aws.target import AwsTarget
    from onecopy.targets.base import Plan, Status, Target

TargetFlag = Annotated[
    str | None,
    typer.Option("--target", help="local, kubernetes or aws. [ONECOPY_TARGET]", show_default=False),
]
CloudFlag = Annotated[
    str | None,
    typer.Option("--cloud", help="aws, gcp, azure or none. [ONECOPY_KUBERNETES_CLOUD]", show_default=False),
]
DeliveryFlag = Annotated[
    str | None,
    typer.Option("--delivery", help="node-cache, mount or stream. [ONECOPY_KUBERNETES_DELIVERY]", show_default=False),
]
RevisionFlag = Annotated[
    str | None,
    typer.Option("--revision", help="Ref or revision of the first model. [ONECOPY_REVISION]", show_default=False),
]
PlanFile = Annotated[
    Path | None, typer.Argument(help="A plan that `onecopy plan --out` wrote; without it one is made and shown.")
]


def resolved(
    *,
    config: Path | None,
    target: str | None = None,
    store: str | None = None,
    cloud: str | None = None,
    delivery: str | None = None,
    revision: str | None = None,
) -> Resolved:
    from onecopy.config.resolve import resolve

    return resolve(
        file=config,
        flags={
            "target": target,
            "store.uri": store,
            "kubernetes.cloud": cloud,
            "kubernetes.delivery": delivery,
            "models.0.revision": revision,
        },
    )


def open_target(resolved: Resolved) -> Target:
    from onecopy.targets.select import select

    return select(resolved)


def confirm(out: Output, question: str, *, yes: bool) -> None:
    """Asks at a terminal. Raises UsageError when nobody can answer, and Abort on a no."""
    if yes:
        return
    if out.mode != "human" or not sys.stdin.isatty():
        raise UsageError("not at a terminal, and nobody to ask", hint="say yes beforehand with --yes")
    typer.confirm(question, abort=True, err=True)


def show_plan(out: Output, plan: Plan) -> None:
    """On the way to apply a plan is talk: stdout is left to the result."""
    out.talk(plan.text())
    for warning in plan.warnings:
        out.warn(warning)


def show_status(out: Output, resolved: Resolved, *, drift: bool) -> bool:
    """Prints the status of a planned target (any but local). True when every part is ready. drift: of aws alone."""
    target = open_target(resolved)
    status = target.status()
    if drift:
        status = status.model_copy(update={"drift": cast("AwsTarget", target).drift()})
    out.data(status.as_dict(), lambda: status_text(status))
    return status.healthy


def status_text(status: Status) -> str:
    rows = [
        (p.kind, p.name, p.health, "-" if p.desired is None else f"{p.ready or 0}/{p.desired}", p.reason or "")
        for p in status.parts
    ]
    blocks = [table(["kind", "name", "health", "ready", "reason"], rows)]
    if status.weights:
        cached = [
            (w.node, f"{w.model}@{w.revision}", w.state, "-" if w.bytes_fetched is None else w.bytes_fetched)
            for w in status.weights
        ]
        blocks.append(table(["node", "weights", "state", "bytes fetched"], cached))
    if status.drift is not None:
        changed = [
            (d.kind, d.name, d.status.lower(), "; ".join(field.text() for field in d.fields)) for d in status.drift
        ]
        found = table(["kind", "name", "drift", "template → found"], changed) if changed else "as the template says"
        blocks.append(f"drift: {found}" if not changed else found)
    blocks += [f"{name}: {value}" for name, value in status.endpoints.items()]
    return "\n\n".join(blocks)


def outputs_text(outputs: Mapping[str, Any], prefix: str = "") -> str:
    """`key = value` lines, nested keys dotted."""
    lines: list[str] = []
    for key, value in outputs.items():
        if isinstance(value, dict):
            lines.append(outputs_text(cast("dict[str, Any]", value), f"{prefix}{key}."))
        else:
            lines.append(f"{prefix}{key} = {'' if value is None else value}")
    return "\n".join(line for line in lines if line)
