"""From a template to what it costs: each billed resource as a part, what stands now against what would stand.

Counted is what the template makes, node groups at their desired size; a load balancer when there is an ingress, which
the cluster makes and not the template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from onecopy.core.units import GiB, parse_bytes
from onecopy.cost.stack import HOURS, MonthlyCost, Part, monthly_cost, stack_prices
from onecopy.targets.aws.inputs import ZONES, Inputs

# What nobody knows the amount of: by the type of resource that it is billed for
_BY_USE = {
    "AWS::EC2::NatGateway": {"traffic through NAT": "nat_gb"},
    "AWS::Logs::LogGroup": {"logs taken in": "logs_gb", "logs kept": "logs_gb_month"},
}
_BUCKET_BY_USE = {"S3": "s3_gb_month", "S3 GETs": "s3_get"}
_HOURLY = Decimal(HOURS)


def plan_cost(
    inputs: Inputs,
    template: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    *,
    region: str,
    ingress: tuple[bool, bool],
    extended: bool,
) -> MonthlyCost:
    """ingress: whether one stands now, and whether one would. Raises ConfigError for a price file that is wrong."""
    prices = stack_prices(inputs.aws.prices)
    now, then = ingress
    annotations: Mapping[str, str] = inputs.config.kubernetes.ingress.annotations
    public = annotations.get("alb.ingress.kubernetes.io/scheme") == "internet-facing"
    after = [*_parts(template, balancer=then, public=public, extended=extended), *_models(inputs)]
    stands = list(_parts(before, balancer=now, public=public, extended=extended)) if before else []
    # the bucket outlives every stack: what lies in it is billed before and after
    types = {body["Type"] for body in template["Resources"].values()}
    by_use = {what: price for kind, uses in _BY_USE.items() if kind in types for what, price in uses.items()}
    return monthly_cost(
        after,
        [*stands, *(_models(inputs) if before else [])],
        prices,
        region=region,
        by_use={**by_use, **_BUCKET_BY_USE},
    )


def _parts(template: Mapping[str, Any], *, balancer: bool, public: bool, extended: bool) -> Iterator[Part]:
    resources: Mapping[str, Any] = template.get("Resources", {})
    counts: dict[str, int] = {}
    for body in resources.values():
        counts[body["Type"]] = counts.get(body["Type"], 0) + 1
    if counts.get("AWS::EKS::Cluster"):
        kind = "eks_extended_hour" if extended else "eks_hour"
        yield Part(what="EKS control plane", price=kind, each=_HOURLY, note="extended support" if extended else None)
    for title, body in resources.items():
        if body["Type"] == "AWS::EKS::Nodegroup":
            yield from _nodes(title, body["Properties"], resources)
    for kind, what, price, hours in (
        ("AWS::EC2::NatGateway", "NAT gateways", "nat_hour", _HOURLY),
        ("AWS::EC2::EIP", "public addresses of NAT", "public_ipv4_hour", _HOURLY),
        ("AWS::KMS::Key", "KMS keys", "kms_key_month", Decimal(1)),
    ):
        if number := counts.get(kind):
            yield Part(what=what, price=price, count=Decimal(number), each=hours)
    if balancer:
        yield Part(what="load balancer", price="alb_hour", each=_HOURLY, note="and its capacity units by use")
        if public:
            yield Part(what="public addresses of it", price="public_ipv4_hour", count=Decimal(ZONES), each=_HOURLY)


def _nodes(title: str, group: Mapping[str, Any], resources: Mapping[str, Any]) -> Iterator[Part]:
    launch = resources[group["LaunchTemplate"]["Id"]["Ref"]]["Properties"]["LaunchTemplateData"]
    kind: str = (group.get("InstanceTypes") or [launch.get("InstanceType")])[0]
    what = f"{title.removesuffix('Nodes').upper()} nodes"
    sizes = group["ScalingConfig"]
    count = Decimal(sizes["DesiredSize"])
    notes = [f"up to {sizes['MaxSize']}"] if sizes["MaxSize"] > sizes["DesiredSize"] else []
    if group["CapacityType"] == "CAPACITY_BLOCK":
        notes.append("paid when the block was reserved")
        yield Part(what=f"{what}, {kind}", price=f"capacity block of {kind}", count=count, each=_HOURLY, note=notes[-1])
    else:
        if group["CapacityType"] == "SPOT":
            notes.append("spot: at most this, its price moves")
        yield Part(what=f"{what}, {kind}", price=kind, count=count, each=_HOURLY, note="; ".join(notes) or None)
    disk = Decimal(launch["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"])
    yield Part(what=f"their disks, gp3 {disk} GiB", price="ebs_gp3_gb_month", count=count, each=disk)


def _models(inputs: Inputs) -> Iterator[Part]:
    """What lies in the bucket, where its size is told."""
    if size := inputs.config.kubernetes.model_bytes:
        each = (Decimal(parse_bytes(size)) / GiB).quantize(Decimal("0.1"))
        yield Part(what="models in S3, one revision", price="s3_gb_month", count=Decimal(len(inputs.models)), each=each)
