"""A change set in the words of a plan: what is made, changed, replaced, removed, and what stays as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from onecopy.targets.base import Action, Change, FieldChange

GROUP = "aws"
# Their replacement would lose what they hold, or take everything down at once: never by an apply
GUARDED = frozenset({"AWS::EKS::Cluster", "AWS::S3::Bucket", "AWS::KMS::Key", "AWS::EC2::VPC", "AWS::EC2::Subnet"})
# Minutes for one to be made, in the order in which they wait for each other. NAT is made beside the control plane.
_MINUTES = {"EKS Cluster": 10, "EKS Nodegroup": 4, "EKS Addon": 2, "EC2 NatGateway": 2}


def plan_changes(
    proposed: Iterable[Mapping[str, Any]], template: Mapping[str, Any], *, later: Mapping[str, Any] | None = None
) -> list[Change]:
    """Changed resources as AWS tells them; all others of the template as no-ops.

    later: the template that this apply goes on to once Calico is installed.
    """
    changed = [_change(change) for change in proposed]
    names = {change.name for change in changed}
    following = [
        Change(group=GROUP, kind=_short(body["Type"]), name=name, action="create", note="once Calico is installed")
        for name, body in sorted((later or template)["Resources"].items())
        if name not in template["Resources"]
    ]
    same = [
        Change(group=GROUP, kind=_short(body["Type"]), name=name, action="no-op")
        for name, body in sorted(template["Resources"].items())
        if name not in names
    ]
    return [*changed, *following, *same]


def refusals(proposed: Iterable[Mapping[str, Any]]) -> list[str]:
    """What apply will not do."""
    return [
        f"{change['LogicalResourceId']} ({_short(change['ResourceType'])}) would be replaced, and all that it holds lost"
        for change in proposed
        if change["ResourceType"] in GUARDED and _action(change) == "replace"
    ]


def _change(change: Mapping[str, Any]) -> Change:
    action = _action(change)
    kind: str = change["ResourceType"]
    notes: list[str] = []
    if action == "replace":
        notes.append("REPLACED: a new one is made, then the old one removed")
    elif change.get("Replacement") == "Conditional":
        notes.append("may be replaced: AWS decides when it is changed")
    if change["Action"] == "Remove" and "Retain" in str(change.get("PolicyAction", "")):
        notes.append("kept, and no longer part of the stack")
    return Change(
        group=GROUP,
        kind=_short(kind),
        name=change["LogicalResourceId"],
        action=action,
        fields=tuple(_fields(change)) if action in ("update", "replace") else (),
        note="; ".join(notes) or None,
    )


def _action(change: Mapping[str, Any]) -> Action:
    match change["Action"]:
        case "Add" | "Import":
            return "create"
        case "Remove":
            return "delete"
        case _:
            return "replace" if change.get("Replacement") == "True" else "update"


def _fields(change: Mapping[str, Any]) -> Iterable[FieldChange]:
    seen: set[str] = set()
    for detail in change.get("Details", []):
        target: Mapping[str, Any] = detail.get("Target", {})
        path = str(target.get("Path") or "/".join(filter(None, (target.get("Attribute"), target.get("Name")))))
        path = path.removeprefix("/").removeprefix("Properties/").replace("/", ".")
        if path and path not in seen:
            seen.add(path)
            yield FieldChange(
                path=path, before=_value(target.get("BeforeValue")), after=_value(target.get("AfterValue"))
            )


def _value(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text


def duration(changes: Iterable[Change], *, workloads: bool) -> str | None:
    """Of an apply or a destruction: what waits for each other, added up."""
    worked = [change for change in changes if change.action != "no-op"]
    if not worked:
        return None
    kinds = {change.kind for change in worked}
    minutes = sum(_MINUTES[kind] for kind in ("EKS Cluster", "EKS Nodegroup", "EKS Addon") if kind in kinds)
    if "EKS Cluster" not in kinds:
        minutes += _MINUTES["EC2 NatGateway"] if "EC2 NatGateway" in kinds else 0
    minutes += 5 if workloads else 0
    return f"about {max(minutes, 1)} min, an estimate that was not measured on AWS"


def _short(kind: str) -> str:
    return kind.removeprefix("AWS::").replace("::", " ")


def resource_change(resource: Mapping[str, Any], *, kept: bool) -> Change:
    """Of a destruction. resource: as ListStackResources tells it."""
    return Change(
        group=GROUP,
        kind=_short(resource["ResourceType"]),
        name=resource["LogicalResourceId"],
        action="no-op" if kept else "delete",
        note=f"kept: {resource.get('PhysicalResourceId', '')}" if kept else None,
    )
