from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from onecopy.cli import options, stack
from onecopy.cli.output import table

if TYPE_CHECKING:
    from onecopy.targets.preflight import Finding


def command(
    config: options.ConfigFile = None,
    target: stack.TargetFlag = None,
    store: options.StoreFlag = None,
    cloud: stack.CloudFlag = None,
    delivery: stack.DeliveryFlag = None,
    json: options.Json = False,
) -> None:
    """Look at the machine, the store and the cluster before anything is applied: each finding with its fix. Exit 1 on a problem."""
    from onecopy.targets.preflight import examine

    out = options.output(json=json)
    findings = examine(stack.resolved(config=config, target=target, store=store, cloud=cloud, delivery=delivery))
    out.data({"findings": [finding.as_dict() for finding in findings]}, lambda: _text(findings))
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


def _text(findings: Sequence[Finding]) -> str:
    marks = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}
    rows = [(marks[f.level], f.check, f.message) for f in findings]
    fixes = [f"{f.check}: {f.fix}" for f in findings if f.fix and f.level != "ok"]
    return "\n".join(
        [table(["level", "check", "finding"], rows), *(["", "fixes:"] if fixes else []), *(f"  {x}" for x in fixes)]
    )
