"""What a stack may leave behind: things that controllers inside the cluster made, which CloudFormation does not know.

They are found by the tags that the controllers put on them (the cluster's name), by the VPC, or by EKS's own names.
Each is named with the reason why it is ours; nothing is deleted that bears no such mark.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from onecopy.core.events import Event, Reporter
from onecopy.targets.aws.inputs import TAG_STACK
from onecopy.targets.aws.session import Session, code, translated

LOAD_BALANCER_TAG = "elbv2.k8s.aws/cluster"
# A deleted load balancer's interfaces stay for a few minutes
DEADLINE = 600.0


@dataclass(frozen=True, slots=True)
class Orphan:
    kind: str
    id: str
    why: str


class Orphans:
    def __init__(self, session: Session, name: str, *, poll: float = 5.0) -> None:
        self._session, self.name, self._poll = session, name, poll

    def find(self, *, vpc: str | None) -> list[Orphan]:
        """vpc: where free interfaces and groups are looked for; those of a VPC that went with its stack went too.
        In the order in which they can be deleted. Raises CloudError when AWS may not be asked."""
        with translated("ec2, elasticloadbalancing and logs: Describe*"):
            return [
                *self._load_balancers(),
                *self._network_interfaces(vpc),
                *self._security_groups(vpc),
                *self._volumes(),
                *self._log_groups(),
            ]

    def load_balancers(self) -> list[Orphan]:
        with translated("elasticloadbalancing:DescribeLoadBalancers"):
            return [orphan for orphan in self._load_balancers() if orphan.kind == "load balancer"]

    def delete(self, orphans: Iterable[Orphan], *, report: Reporter) -> list[Orphan]:
        """Deletes what it can, waits for what lets go slowly, and returns what is left."""
        left = list(orphans)
        deadline = time.monotonic() + DEADLINE
        while True:
            left = [orphan for orphan in left if not self._delete(orphan, report)]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(self._poll)

    def _delete(self, orphan: Orphan, report: Reporter) -> bool:
        ec2, elb = self._session.client("ec2"), self._session.client("elbv2")
        actions: dict[str, Callable[[], Any]] = {
            "load balancer": lambda: elb.delete_load_balancer(LoadBalancerArn=orphan.id),
            "target group": lambda: elb.delete_target_group(TargetGroupArn=orphan.id),
            "network interface": lambda: ec2.delete_network_interface(NetworkInterfaceId=orphan.id),
            "security group": lambda: ec2.delete_security_group(GroupId=orphan.id),
            "volume": lambda: ec2.delete_volume(VolumeId=orphan.id),
            "log group": lambda: self._session.client("logs").delete_log_group(logGroupName=orphan.id),
        }
        try:
            actions[orphan.kind]()
        except ClientError as error:
            kind = code(error)
            if "NotFound" in kind:
                return True
            if kind in ("DependencyViolation", "ResourceInUse", "VolumeInUse", "InvalidParameterValue"):
                return False
            with translated(f"delete {orphan.kind} {orphan.id}"):
                raise
        report(Event("orphans", "progress", f"deleted {orphan.kind} {orphan.id}: {orphan.why}", item=orphan.id))
        return True

    def _load_balancers(self) -> list[Orphan]:
        elb = self._session.client("elbv2")
        balancers = [b["LoadBalancerArn"] for b in _all(elb, "describe_load_balancers", "LoadBalancers")]
        groups = [g["TargetGroupArn"] for g in _all(elb, "describe_target_groups", "TargetGroups")]
        found: list[Orphan] = []
        for kind, arns in (("load balancer", balancers), ("target group", groups)):
            for start in range(0, len(arns), 20):  # DescribeTags takes 20 at a time
                for entry in elb.describe_tags(ResourceArns=arns[start : start + 20])["TagDescriptions"]:
                    tags = {tag["Key"]: tag["Value"] for tag in entry["Tags"]}
                    if tags.get(LOAD_BALANCER_TAG) == self.name:
                        found.append(Orphan(kind, entry["ResourceArn"], f"tag {LOAD_BALANCER_TAG}={self.name}"))
        return found

    def _network_interfaces(self, vpc: str | None) -> list[Orphan]:
        """Free ones alone: an attached interface is in use by something that is still there."""
        if vpc is None:
            return []
        filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "status", "Values": ["available"]}]
        found = _all(self._session.client("ec2"), "describe_network_interfaces", "NetworkInterfaces", Filters=filters)
        ours: list[Orphan] = []
        for interface in found:
            tags = {tag["Key"]: tag["Value"] for tag in interface.get("TagSet", [])}
            if tags.get("cluster.k8s.amazonaws.com/name") == self.name or tags.get(TAG_STACK) == self.name:
                ours.append(
                    Orphan("network interface", interface["NetworkInterfaceId"], "tagged with the cluster's name, free")
                )
        return ours

    def _security_groups(self, vpc: str | None) -> list[Orphan]:
        found: dict[str, Orphan] = {}
        for tag in (LOAD_BALANCER_TAG, "aws:eks:cluster-name"):
            filters = [{"Name": f"tag:{tag}", "Values": [self.name]}]
            if vpc is not None:
                filters.append({"Name": "vpc-id", "Values": [vpc]})
            for group in _all(
                self._session.client("ec2"), "describe_security_groups", "SecurityGroups", Filters=filters
            ):
                found[group["GroupId"]] = Orphan("security group", group["GroupId"], f"tag {tag}={self.name}")
        return list(found.values())

    def _volumes(self) -> list[Orphan]:
        filters = [
            {"Name": f"tag:kubernetes.io/cluster/{self.name}", "Values": ["owned"]},
            {"Name": "status", "Values": ["available"]},
        ]
        found = _all(self._session.client("ec2"), "describe_volumes", "Volumes", Filters=filters)
        return [Orphan("volume", v["VolumeId"], f"tag kubernetes.io/cluster/{self.name}=owned, free") for v in found]

    def _log_groups(self) -> list[Orphan]:
        name = f"/aws/eks/{self.name}/cluster"
        groups = self._session.client("logs").describe_log_groups(logGroupNamePrefix=name)["logGroups"]
        return [Orphan("log group", name, "EKS's logs of this cluster") for g in groups if g["logGroupName"] == name]


def _all(client: Any, call: str, key: str, **arguments: Any) -> list[dict[str, Any]]:
    return [item for page in client.get_paginator(call).paginate(**arguments) for item in page[key]]
