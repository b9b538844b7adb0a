from __future__ import annotations

from typing import Annotated

import typer

from onecopy.cli import options, stack
from onecopy.cli.progress import renderer


def command(
    plan_file: stack.PlanFile = None,
    config: options.ConfigFile = None,
    target: stack.TargetFlag = None,
    store: options.StoreFlag = None,
    cloud: stack.CloudFlag = None,
    delivery: stack.DeliveryFlag = None,
    revision: stack.RevisionFlag = None,
    rollback: Annotated[
        bool, typer.Option("--rollback", help="Serve the previous revision of the models again; downloads nothing.")
    ] = False,
    yes: options.Yes = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show the plan, ask, and do it. Run it again after an interruption: it goes on where it stopped."""
    from onecopy.targets.base import Plan

    sink = options.output(json=json, quiet=quiet)
    settings = stack.resolved(
        config=config, target=target, store=store, cloud=cloud, delivery=delivery, revision=revision
    )
    chosen = stack.open_target(settings)
    plan = Plan.load(plan_file) if plan_file else chosen.plan(rollback=rollback)
    stack.show_plan(sink, plan)
    if plan.has_changes:
        if plan_file is None:
            stack.confirm(sink, f"Apply this to {plan.stack}?", yes=yes)
        with renderer(sink) as report:
            chosen.apply(plan, report=report)
    outputs = chosen.outputs()
    sink.data({"applied": plan.has_changes, "plan": plan.summary(), "outputs": outputs}, stack.outputs_text(outputs))
