from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onecopy.cli import options, stack


def command(
    config: options.ConfigFile = None,
    target: stack.TargetFlag = None,
    store: options.StoreFlag = None,
    cloud: stack.CloudFlag = None,
    delivery: stack.DeliveryFlag = None,
    revision: stack.RevisionFlag = None,
    destroy: Annotated[bool, typer.Option("--destroy", help="Plan the destruction.")] = False,
    detailed_exitcode: Annotated[
        bool, typer.Option("--detailed-exitcode", help="Exit 3 when there are changes.")
    ] = False,
    print_policy: Annotated[
        bool, typer.Option("--print-policy", help="Print the IAM policy that this needs, and do nothing (aws).")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the plan, for `onecopy apply FILE`.")] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what apply would change. Changes nothing."""
    sink = options.output(json=json, quiet=quiet)
    settings = stack.resolved(
        config=config, target=target, store=store, cloud=cloud, delivery=delivery, revision=revision
    )
    if print_policy:
        from onecopy.cli import aws

        aws.print_policy(settings)
        return
    plan = stack.open_target(settings).plan(destroy=destroy)
    sink.data(plan.as_dict(), plan.text)
    for warning in plan.warnings:
        sink.warn(warning)
    if out is not None:
        plan.save(out)
    if detailed_exitcode and plan.has_changes:
        raise typer.Exit(3)
