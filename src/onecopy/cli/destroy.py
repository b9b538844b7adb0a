from __future__ import annotations

from typing import Annotated

import typer

from onecopy.cli import options, stack
from onecopy.cli.progress import renderer


def command(
    plan_file: stack.PlanFile = None,
    config: options.ConfigFile = None,
    target: stack.TargetFlag = None,
    delete_models: Annotated[
        list[str] | None,
        typer.Option("--delete-models", metavar="NAME", help="Delete this model's revisions too; may be repeated."),
    ] = None,
    yes: options.Yes = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Remove all that the stack made, in reverse order. The store and its models stay unless named."""
    from onecopy.targets.base import Plan

    sink = options.output(json=json, quiet=quiet)
    chosen = stack.open_target(stack.resolved(config=config, target=target))
    plan = Plan.load(plan_file) if plan_file else chosen.plan(destroy=True)
    stack.show_plan(sink, plan)
    models = frozenset(delete_models or ())
    if plan.has_changes or models:
        if plan_file is None:
            also = f" and delete the models {', '.join(sorted(models))} from the store" if models else ""
            stack.confirm(sink, f"Destroy {plan.stack}{also}?", yes=yes)
        with renderer(sink) as report:
            chosen.destroy(plan, delete_models=models, report=report)
    sink.data({"destroyed": plan.has_changes, "plan": plan.summary(), "models_deleted": sorted(models)}, "destroyed")
