"""What is there already and is to be used: somebody's VPC, a bucket. Looked at before anything is built on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from botocore.exceptions import ClientError

from onecopy.core.errors import CloudError
from onecopy.targets.aws.inputs import Choices, Inputs
from onecopy.targets.aws.report import Report
from onecopy.targets.aws.session import DENIED, Session, code, translated

# Zones, by their ids, in which EKS makes no control plane (EKS user guide, "network requirements")
NO_EKS = frozenset({"use1-az3", "usw1-az2", "cac1-az3"})
# A node of the VPC CNI takes an address a pod; below this a rolling update already runs dry
FREE_ADDRESSES = 64
_CHECK = "network"


def check_network(session: Session, inputs: Inputs, offered: Mapping[str, set[str]] | None, report: Report) -> None:
    """Raises ClientError when it may not be looked at, or there is no such VPC or subnet."""
    network, gpu = inputs.aws.network, inputs.aws.gpu_nodes
    ec2 = session.client("ec2")
    wanted = sorted({*network.private_subnets, *gpu.subnets})
    subnets = {s["SubnetId"]: s for s in ec2.describe_subnets(SubnetIds=wanted)["Subnets"]}
    for name, subnet in subnets.items():
        if subnet["VpcId"] != network.vpc_id:
            report.problem(
                _CHECK, f"{name} is in {subnet['VpcId']}, not in {network.vpc_id}", "name subnets of one VPC"
            )
        free = subnet["AvailableIpAddressCount"]
        if free < FREE_ADDRESSES:
            report.problem(
                _CHECK, f"{name} has {free} free addresses: {FREE_ADDRESSES} are the least", "name a larger subnet"
            )
    for name in network.private_subnets:
        if name in subnets and subnets[name].get("AvailabilityZoneId") in NO_EKS:
            where = f"{subnets[name]['AvailabilityZone']} ({subnets[name]['AvailabilityZoneId']})"
            report.problem(_CHECK, f"{name} is in {where}, where EKS has no control plane", "name another subnet")
    zones = {subnets[name]["AvailabilityZone"] for name in network.private_subnets if name in subnets}
    if len(zones) < 2:
        report.problem(
            _CHECK,
            f"the private subnets are in one zone ({', '.join(zones)}): EKS needs two",
            "name subnets of two zones or more in aws.network.private_subnets",
        )
    if offered is not None and gpu.enabled:
        able = {zone for kind in gpu.instance_types for zone in offered[kind]}
        asked = gpu.subnets or network.private_subnets
        lacking = [n for n in asked if n in subnets and subnets[n]["AvailabilityZone"] not in able]
        if able and lacking:
            report.problem(
                _CHECK,
                f"no {', '.join(gpu.instance_types)} in the zones of {', '.join(lacking)}",
                f"name subnets in {', '.join(sorted(able))} in aws.gpu_nodes.subnets",
            )
    _check_dns(ec2, network.vpc_id or "", report)
    tables = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [network.vpc_id]}])["RouteTables"]
    endpoints = ec2.describe_vpc_endpoints(Filters=[{"Name": "vpc-id", "Values": [network.vpc_id]}])["VpcEndpoints"]
    served = {
        table
        for endpoint in endpoints
        if endpoint["VpcEndpointType"] == "Gateway" and endpoint["ServiceName"].endswith(".s3")
        for table in endpoint["RouteTableIds"]
    }
    _check_routes(wanted, tables, served, network.s3_route_tables, report)
    if inputs.config.kubernetes.ingress.host and inputs.aws.addons.load_balancer_controller:
        _check_balancer_subnets(ec2, network.vpc_id or "", report)


def _check_dns(ec2: Any, vpc: str, report: Report) -> None:
    """Nodes find a private API endpoint by the VPC's own names."""
    for key, attribute in (("EnableDnsSupport", "enableDnsSupport"), ("EnableDnsHostnames", "enableDnsHostnames")):
        if not ec2.describe_vpc_attribute(VpcId=vpc, Attribute=attribute)[key]["Value"]:
            report.problem(
                _CHECK, f"{vpc} has {attribute} off: nodes would not find the API server", f"turn {attribute} on"
            )


def _check_routes(
    subnets: Sequence[str],
    tables: Sequence[Mapping[str, Any]],
    served: Set[str],
    endpoint_on: Sequence[str],
    report: Report,
) -> None:
    """served: route tables that have an S3 endpoint. endpoint_on: those that get one of the stack's own."""
    main = next((t for t in tables if any(a.get("Main") for a in t.get("Associations", []))), None)
    there = {table["RouteTableId"] for table in tables}
    for name in endpoint_on:
        if name not in there:
            report.problem(_CHECK, f"{name} is no route table of this VPC", "correct aws.network.s3_route_tables")
    for name in subnets:
        own = next((t for t in tables if any(a.get("SubnetId") == name for a in t.get("Associations", []))), main)
        routes: list[Mapping[str, Any]] = own["Routes"] if own else []
        out = [route for route in routes if route.get("DestinationCidrBlock") == "0.0.0.0/0"]
        if not out:
            report.problem(
                _CHECK,
                f"{name} has no way out (no default route): nodes could not pull an image",
                "route 0.0.0.0/0 to a NAT gateway",
            )
        elif out[0].get("State") == "blackhole":
            report.problem(_CHECK, f"the default route of {name} leads nowhere (blackhole)", "mend that route")
        elif str(out[0].get("GatewayId", "")).startswith("igw-"):
            report.warn(_CHECK, f"{name} is a public subnet: nodes in it need public addresses", "name a private one")
        table = own["RouteTableId"] if own else "its route table"
        has, gets = table in served, table in endpoint_on
        if has and gets:
            report.problem(
                _CHECK,
                f"the route table of {name} has an S3 gateway endpoint already",
                "take it out of aws.network.s3_route_tables",
            )
        elif not has and not gets:
            report.warn(
                _CHECK,
                f"{name} has no S3 gateway endpoint: weights are billed through NAT",
                f"add {table} to aws.network.s3_route_tables",
            )
        else:
            report.ok(_CHECK, f"{name}: a way out, and S3 beside it")


def _check_balancer_subnets(ec2: Any, vpc: str, report: Report) -> None:
    """The load balancer controller finds the subnets for a public balancer by their tag alone."""
    filters = [
        {"Name": "vpc-id", "Values": [vpc]},
        {"Name": "tag:kubernetes.io/role/elb", "Values": ["1", ""]},
    ]
    found = ec2.describe_subnets(Filters=filters)["Subnets"]
    if len({subnet["AvailabilityZone"] for subnet in found}) < 2:
        report.warn(
            _CHECK,
            f"{vpc} has no public subnets in two zones with the tag kubernetes.io/role/elb=1: an ingress gets no balancer",
            "tag two public subnets so, or set alb.ingress.kubernetes.io/subnets in kubernetes.ingress.annotations",
        )


def bucket_name(session: Session, inputs: Inputs) -> str:
    if inputs.store is not None:
        return inputs.store.bucket
    return f"{inputs.name}-models-{session.identity.account}-{session.region}"


def check_bucket(session: Session, inputs: Inputs, choices: Choices, report: Report) -> Choices:
    """A bucket that is there and ours is adopted as it is; one of somebody else is a problem."""
    name = bucket_name(session, inputs)
    s3 = session.client("s3")
    try:
        with translated(f"s3:HeadBucket {name}"):
            try:
                found = s3.head_bucket(Bucket=name, ExpectedBucketOwner=session.identity.account)
            except ClientError as error:
                if code(error) in ("404", "NoSuchBucket", "NotFound"):
                    report.ok("bucket", f"{name} is free or not there yet: it will be made")
                    return choices
                if code(error) in DENIED:
                    report.problem(
                        "bucket", f"the bucket {name} belongs to another account, or may not be read",
                        "name another (store.uri)",
                    )  # fmt: skip
                    return choices
                raise
            where = found.get("BucketRegion") or session.region
            if where != session.region:
                report.problem(
                    "bucket",
                    f"the bucket {name} is in {where}, and the stack in {session.region}: every fetch would be billed",
                    f"set aws.region = {where}, or name another bucket (store.uri)",
                )
                return choices
    except CloudError as error:
        report.warn("bucket", f"the bucket {name} not checked: {error.message}", error.hint)
        return choices
    report.warn("bucket", f"the bucket {name} is there already: it is used as it is")
    try:
        if not _public_access_blocked(s3, name):
            report.warn("bucket", f"the bucket {name} does not block public access", "block it")
        # Its key goes into the roles: without it no replica could read a byte
        return replace(choices, create_bucket=False, bucket_key=_bucket_key(s3, name))
    except ClientError as error:
        fix = "if it is a KMS key, name it in aws.bucket.kms_key"
        report.warn("bucket", f"how the bucket {name} is kept may not be read ({code(error)})", fix)
        return replace(choices, create_bucket=False)


def _public_access_blocked(s3: Any, name: str) -> bool:
    try:
        found: Iterable[bool] = s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"].values()
    except ClientError as error:
        if code(error) != "NoSuchPublicAccessBlockConfiguration":
            raise
        return False
    return all(found)


def _bucket_key(s3: Any, name: str) -> str | None:
    rules = s3.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"]
    return rules[0].get("ApplyServerSideEncryptionByDefault", {}).get("KMSMasterKeyID")
