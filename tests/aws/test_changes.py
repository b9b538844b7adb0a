"""AWS's change sets in the words of a plan. The documents have the shape of DescribeChangeSet's reference."""

from __future__ import annotations

import json
from typing import Any

from onecopy.targets.aws import changes
from onecopy.targets.aws.stacks import first_cause

TEMPLATE = {"Resources": {"GpuNodes": {"Type": "AWS::EKS::Nodegroup"}, "Same": {"Type": "AWS::KMS::Key"}}}


def change(name: str, kind: str, action: str = "Modify", **more: Any) -> dict[str, Any]:
    return {"LogicalResourceId": name, "ResourceType": kind, "Action": action, "Details": [], **more}


def detail(path: str, before: Any, after: Any) -> dict[str, Any]:
    target = {"Attribute": "Properties", "Path": f"/Properties/{path}", "RequiresRecreation": "Always"}
    return {"Target": {**target, "BeforeValue": json.dumps(before), "AfterValue": json.dumps(after)}}


def test_a_replacement_is_loud_and_shows_what_causes_it() -> None:
    replaced = change(
        "GpuNodes",
        "AWS::EKS::Nodegroup",
        Replacement="True",
        Details=[detail("InstanceTypes/0", "g6.2xlarge", "g6.12xlarge")],
    )
    nodes, same = changes.plan_changes([replaced], TEMPLATE)
    assert nodes.action == "replace"
    assert "REPLACED" in (nodes.note or "")
    assert nodes.fields[0].text() == "InstanceTypes.0: g6.2xlarge → g6.12xlarge"
    assert (same.name, same.action) == ("Same", "no-op")
    assert changes.refusals([replaced]) == [], "node groups are made to be replaced"


def test_a_conditional_replacement_says_that_it_may_be() -> None:
    (nodes, _) = changes.plan_changes([change("GpuNodes", "AWS::EKS::Nodegroup", Replacement="Conditional")], TEMPLATE)
    assert nodes.action == "update"
    assert "may be replaced" in (nodes.note or "")


def test_what_would_lose_everything_is_refused() -> None:
    for kind in ("AWS::EKS::Cluster", "AWS::S3::Bucket", "AWS::KMS::Key", "AWS::EC2::VPC"):
        assert len(changes.refusals([change("It", kind, Replacement="True")])) == 1
        assert changes.refusals([change("It", kind, Replacement="False"), change("It", kind, "Add")]) == []


def test_nodes_that_wait_for_calico_are_in_the_plan() -> None:
    later = {"Resources": {**TEMPLATE["Resources"], "CpuNodes": {"Type": "AWS::EKS::Nodegroup"}}}
    now = {change.name: change for change in changes.plan_changes([], TEMPLATE, later=later)}
    assert (now["CpuNodes"].action, now["CpuNodes"].note) == ("create", "once Calico is installed")
    assert {change.action for change in changes.plan_changes([], later)} == {"no-op"}


def test_a_retained_resource_is_said_to_be_kept() -> None:
    (bucket, *_) = changes.plan_changes(
        [change("ModelBucket", "AWS::S3::Bucket", "Remove", PolicyAction="Retain")], TEMPLATE
    )
    assert bucket.action == "delete"
    assert "kept" in (bucket.note or "")


def test_the_first_real_cause_is_found_among_the_echoes() -> None:
    def event(name: str, status: str, reason: str = "", kind: str = "AWS::EKS::Nodegroup") -> dict[str, Any]:
        return {
            "LogicalResourceId": name,
            "ResourceType": kind,
            "ResourceStatus": status,
            "ResourceStatusReason": reason,
        }

    cause = first_cause(
        [
            event("demo", "CREATE_IN_PROGRESS", kind="AWS::CloudFormation::Stack"),
            event("CpuNodes", "CREATE_FAILED", "Resource creation cancelled"),
            event("GpuNodes", "CREATE_FAILED", "VcpuLimitExceeded: 0 vCPUs"),
            event("Addon", "CREATE_FAILED", "Something later"),
            event("demo", "CREATE_FAILED", "The following resource(s) failed", kind="AWS::CloudFormation::Stack"),
        ]
    )
    assert cause == "GpuNodes (AWS::EKS::Nodegroup): VcpuLimitExceeded: 0 vCPUs"
    assert first_cause([]) is None
