"""What only the account knows, asked before anything is made: versions, offerings, quotas, names, network.

A check that may not be asked (no permission, an API that is not there) is a warning and never an error: the account
may still allow the thing itself. What is certain to fail is an error, and all errors are told at once.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from onecopy.config.aws import NodeGroup
from onecopy.core.errors import CloudError
from onecopy.targets.aws.addons import wanted_addons
from onecopy.targets.aws.inputs import ZONES, Choices, Inputs
from onecopy.targets.aws.session import DENIED, Session, code, message, translated

T = TypeVar("T")
ADDRESS_SERVICE = "https://checkip.amazonaws.com"
# A node of the VPC CNI takes an address a pod; below this a rolling update already runs dry
FREE_ADDRESSES = 64
# Service Quotas' codes: (on-demand, spot) vCPUs by family, read from its console in 2025
_VCPU_QUOTAS = {"g": ("L-DB2E81BA", "L-3819A6DF"), "p": ("L-417A185B", "L-7212CCBC"), "": ("L-1216C47A", "L-34B43A08")}
_EIP_QUOTA, _VPC_QUOTA = "L-0263D0A3", "L-F678F1CE"


@dataclass
class Report:
    errors: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])
    extended: bool = False
    """The Kubernetes version is in extended support."""

    def raise_errors(self) -> None:
        """Raises CloudError with every error found."""
        if self.errors:
            more = "".join(f"\n  - {error}" for error in self.errors)
            raise CloudError(
                f"the account cannot take this stack:{more}", hint="nothing was made; correct and plan again"
            )


class Preflight:
    def __init__(self, session: Session, inputs: Inputs) -> None:
        self._session, self._inputs = session, inputs
        self.report = Report()

    def new_stack(self) -> Choices:
        """Checks everything and makes the choices of a stack that is not there yet."""
        offered = self._ask("ec2:DescribeInstanceTypeOfferings", self._offerings)
        choices = Choices(api_cidrs=self._api_cidrs())
        if self._inputs.aws.network.vpc_id is None:
            choices = self._with_zones(choices, offered)
            self._ask("servicequotas:GetServiceQuota (VPCs, addresses)", self._network_quotas)
        else:
            self._ask("ec2:DescribeSubnets", lambda: self._existing_network(offered))
        choices = self._with_bucket(choices)
        choices = self.versions(choices)
        for nodes in self._groups():
            self._ask(
                f"servicequotas:GetServiceQuota (vCPUs of {nodes.instance_types[0]})", lambda n=nodes: self._vcpus(n)
            )
        self._ask("logs:DescribeLogGroups", self._log_group)
        self._admins()
        return choices

    def existing_stack(self, choices: Choices) -> Choices:
        """Keeps the choices; versions of add-ons that are new are chosen."""
        wanted = self._inputs.aws.cluster.public_cidrs
        if wanted:
            choices = replace(choices, api_cidrs=wanted)
        self._admins()
        return self.versions(choices)

    def _ask(self, what: str, check: Callable[[], T]) -> T | None:
        try:
            return check()
        except ClientError as error:
            kind = code(error)
            if "NotFound" in kind or "Malformed" in kind:
                self.report.errors.append(f"{what}: {message(error)}")
                return None
            why = "not permitted" if kind in DENIED else kind or "no answer"
            self.report.warnings.append(f"not checked: {what}: {why}")
        except CloudError as error:
            self.report.warnings.append(f"not checked: {what}: {error.message}")
        return None

    def _groups(self) -> Iterator[NodeGroup]:
        yield self._inputs.aws.cpu_nodes
        if self._inputs.aws.gpu_nodes.enabled:
            yield self._inputs.aws.gpu_nodes

    def _api_cidrs(self) -> tuple[str, ...]:
        if self._inputs.aws.cluster.public_cidrs:
            return self._inputs.aws.cluster.public_cidrs
        try:
            with urllib.request.urlopen(ADDRESS_SERVICE, timeout=5) as answer:
                return (f"{answer.read(64).decode('ascii').strip()}/32",)
        except (urllib.error.URLError, OSError, ValueError) as error:
            self.report.errors.append(
                f"this machine's public address is not known ({ADDRESS_SERVICE}: {error}), and the API server is open"
                " to named addresses only: set aws.cluster.public_cidrs"
            )
            return ()

    def _admins(self) -> None:
        if self._session.identity.arn in self._inputs.aws.cluster.admins:
            self.report.errors.append(
                f"aws.cluster.admins names {self._session.identity.arn}, which makes the cluster and so administers it already"
            )

    def versions(self, choices: Choices) -> Choices:
        """The Kubernetes version is on offer, and each add-on has a version for it."""
        version = self._inputs.aws.cluster.version
        self._ask("eks:DescribeClusterVersions", lambda: self._cluster_version(version))
        pinned: Mapping[str, str] = {**self._inputs.aws.addons.versions}
        chosen = dict(choices.addon_versions)
        for name in wanted_addons(self._inputs):
            found = self._ask(f"eks:DescribeAddonVersions ({name})", lambda n=name: self._addon_versions(n, version))
            if found is None:
                continue
            offered, recommended = found
            if not offered:
                self.report.errors.append(f"EKS has no add-on {name} for Kubernetes {version}")
            elif name in pinned and pinned[name] not in offered:
                self.report.errors.append(
                    f"aws.addons.versions: {name} {pinned[name]} is not for Kubernetes {version}; EKS recommends {recommended}"
                )
            elif chosen.get(name) not in offered:
                chosen[name] = recommended
        kept = {name: chosen[name] for name in wanted_addons(self._inputs) if name in chosen and name not in pinned}
        return replace(choices, addon_versions=kept)

    def _cluster_version(self, version: str) -> None:
        found = self._session.client("eks").describe_cluster_versions(includeAll=True)["clusterVersions"]
        by_name = {entry["clusterVersion"]: entry for entry in found}
        if version not in by_name:
            standard = sorted(v for v, e in by_name.items() if "STANDARD" in str(e.get("versionStatus", "")).upper())
            self.report.errors.append(
                f"aws.cluster.version: EKS does not offer {version}; in standard support: {', '.join(standard)}"
            )
            return
        status = str(by_name[version].get("versionStatus") or by_name[version].get("status") or "")
        self.report.extended = "EXTENDED" in status.upper()
        if self.report.extended:
            self.report.warnings.append(
                f"Kubernetes {version} is in extended support: its control plane costs six times as much"
            )

    def _addon_versions(self, name: str, version: str) -> tuple[list[str], str]:
        answer = self._session.client("eks").describe_addon_versions(addonName=name, kubernetesVersion=version)
        entries = [entry for addon in answer["addons"] for entry in addon["addonVersions"]]
        offered = [entry["addonVersion"] for entry in entries]
        best = [
            e["addonVersion"] for e in entries if any(c.get("defaultVersion") for c in e.get("compatibilities", []))
        ]
        return offered, (best or offered or [""])[0]

    def _offerings(self) -> dict[str, set[str]]:
        """Instance type → zones that offer it."""
        kinds = sorted({kind for nodes in self._groups() for kind in nodes.instance_types})
        offered: dict[str, set[str]] = {kind: set() for kind in kinds}
        pages = (
            self._session.client("ec2")
            .get_paginator("describe_instance_type_offerings")
            .paginate(LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": kinds}])
        )
        for page in pages:
            for offer in page["InstanceTypeOfferings"]:
                offered[offer["InstanceType"]].add(offer["Location"])
        for kind, zones in offered.items():
            if not zones:
                self.report.errors.append(f"{kind} is not offered in {self._session.region}")
        return offered

    def _with_zones(self, choices: Choices, offered: Mapping[str, set[str]] | None) -> Choices:
        gpu = self._inputs.aws.gpu_nodes
        able: set[str] = set()
        if offered is not None and gpu.enabled:
            able = {zone for kind in gpu.instance_types for zone in offered[kind]}
        named = self._inputs.aws.network.zones
        zones = named or self._ask("ec2:DescribeAvailabilityZones", self._all_zones)
        if zones is None:
            return choices
        # The zones with the GPU first: the template takes the first `gpu_zones` of them
        chosen = tuple(sorted(zones, key=lambda zone: (zone not in able, zone)))[:ZONES]
        if len(chosen) < ZONES:
            self.report.errors.append(f"{self._session.region} has {len(chosen)} zones, and three are needed")
            return choices
        with_gpu = sum(zone in able for zone in chosen) if able else ZONES
        if able and with_gpu == 0:
            self.report.errors.append(
                f"none of {', '.join(chosen)} offers {', '.join(gpu.instance_types)}: only {', '.join(sorted(able))}"
            )
        elif able and with_gpu < ZONES:
            self.report.warnings.append(f"{', '.join(gpu.instance_types)}: offered in {with_gpu} of the three zones")
        return replace(choices, zones=chosen, gpu_zones=max(with_gpu, 1))

    def _all_zones(self) -> tuple[str, ...]:
        found = self._session.client("ec2").describe_availability_zones(
            Filters=[{"Name": "zone-type", "Values": ["availability-zone"]}, {"Name": "state", "Values": ["available"]}]
        )["AvailabilityZones"]
        return tuple(zone["ZoneName"] for zone in found)

    def _existing_network(self, offered: Mapping[str, set[str]] | None) -> None:
        network, gpu = self._inputs.aws.network, self._inputs.aws.gpu_nodes
        ec2 = self._session.client("ec2")
        wanted = sorted({*network.private_subnets, *gpu.subnets})
        subnets = {s["SubnetId"]: s for s in ec2.describe_subnets(SubnetIds=wanted)["Subnets"]}
        errors, warnings = self.report.errors, self.report.warnings
        for name, subnet in subnets.items():
            if subnet["VpcId"] != network.vpc_id:
                errors.append(f"{name} is in {subnet['VpcId']}, not in {network.vpc_id}")
            if subnet["AvailableIpAddressCount"] < FREE_ADDRESSES:
                errors.append(
                    f"{name} has {subnet['AvailableIpAddressCount']} free addresses: {FREE_ADDRESSES} are the least"
                )
        zones = {subnets[name]["AvailabilityZone"] for name in network.private_subnets if name in subnets}
        if len(zones) < 2:
            errors.append(f"the private subnets are in one zone ({', '.join(zones)}): EKS needs two")
        if offered is not None and gpu.enabled:
            able = {zone for kind in gpu.instance_types for zone in offered[kind]}
            lacking = [
                n
                for n in gpu.subnets or network.private_subnets
                if n in subnets and subnets[n]["AvailabilityZone"] not in able
            ]
            if lacking:
                errors.append(
                    f"no {', '.join(gpu.instance_types)} in the zones of {', '.join(lacking)}: name others in aws.gpu_nodes.subnets"
                )
        tables = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [network.vpc_id]}])["RouteTables"]
        _check_routes(wanted, tables, bool(network.s3_route_tables), errors, warnings)

    def _with_bucket(self, choices: Choices) -> Choices:
        name = self.bucket_name()
        s3 = self._session.client("s3")
        try:
            with translated(f"s3:HeadBucket {name}"):
                try:
                    s3.head_bucket(Bucket=name, ExpectedBucketOwner=self._session.identity.account)
                except ClientError as error:
                    if code(error) in ("404", "NoSuchBucket", "NotFound"):
                        return choices
                    if code(error) in DENIED:
                        self.report.errors.append(
                            f"the bucket {name} belongs to another account, or may not be read: name another (store.uri)"
                        )
                        return choices
                    raise
        except CloudError as error:
            self.report.warnings.append(f"not checked: the bucket {name}: {error.message}")
            return choices
        self.report.warnings.append(f"the bucket {name} is there already: it is used as it is")
        key = self._ask("s3:GetEncryptionConfiguration", lambda: _bucket_key(s3, name))
        self._ask("s3:GetBucketPublicAccessBlock", lambda: self._public_access(s3, name))
        return replace(choices, create_bucket=False, bucket_key=key)

    def bucket_name(self) -> str:
        if self._inputs.store is not None:
            return self._inputs.store.bucket
        return f"{self._inputs.name}-models-{self._session.identity.account}-{self._session.region}"

    def _public_access(self, s3: Any, name: str) -> None:
        blocked: dict[str, bool] = {}
        try:
            blocked = s3.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"]
        except ClientError as error:
            if code(error) != "NoSuchPublicAccessBlockConfiguration":
                raise
        if not (blocked and all(blocked.values())):
            self.report.warnings.append(f"the bucket {name} does not block public access: block it")

    def _quota(self, service: str, quota: str) -> float:
        return float(
            self._session.client("service-quotas").get_service_quota(ServiceCode=service, QuotaCode=quota)["Quota"][
                "Value"
            ]
        )

    def _network_quotas(self) -> None:
        ec2 = self._session.client("ec2")
        addresses = ZONES if self._inputs.aws.network.nat == "per-zone" else 1
        used = len(ec2.describe_addresses(Filters=[{"Name": "domain", "Values": ["vpc"]}])["Addresses"])
        if used + addresses > (limit := self._quota("ec2", _EIP_QUOTA)):
            self.report.errors.append(f"{addresses} Elastic IPs are needed, and {used} of {limit:.0f} are in use")
        vpcs = len(ec2.describe_vpcs()["Vpcs"])
        if vpcs + 1 > (limit := self._quota("vpc", _VPC_QUOTA)):
            self.report.errors.append(f"one more VPC is needed, and {vpcs} of {limit:.0f} are in use")

    def _vcpus(self, nodes: NodeGroup) -> None:
        """Against the quota itself: what else runs in the account is not counted, so passing here is no promise."""
        if nodes.capacity == "capacity-block":
            return
        kind = nodes.instance_types[0]
        found = self._session.client("ec2").describe_instance_types(InstanceTypes=[kind])["InstanceTypes"]
        needed = found[0]["VCpuInfo"]["DefaultVCpus"] * nodes.desired
        family = kind[0] if kind[0] in _VCPU_QUOTAS else ""
        limit = self._quota("ec2", _VCPU_QUOTAS[family][nodes.capacity == "spot"])
        if needed > limit:
            self.report.errors.append(
                f"{nodes.desired} × {kind} need {needed} vCPUs ({nodes.capacity}), and the quota is {limit:.0f}: ask for more in Service Quotas"
            )

    def _log_group(self) -> None:
        name = f"/aws/eks/{self._inputs.name}/cluster"
        found = self._session.client("logs").describe_log_groups(logGroupNamePrefix=name)["logGroups"]
        if any(group["logGroupName"] == name for group in found):
            self.report.errors.append(
                f"the log group {name} is left from a cluster before: `onecopy aws orphans --delete` removes it"
            )


def _bucket_key(s3: Any, name: str) -> str | None:
    rules = s3.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"]
    return rules[0].get("ApplyServerSideEncryptionByDefault", {}).get("KMSMasterKeyID")


def _check_routes(
    subnets: Sequence[str],
    tables: Sequence[Mapping[str, Any]],
    makes_endpoint: bool,
    errors: list[str],
    warnings: list[str],
) -> None:
    main = next((t for t in tables if any(a.get("Main") for a in t.get("Associations", []))), None)
    for name in subnets:
        own = next((t for t in tables if any(a.get("SubnetId") == name for a in t.get("Associations", []))), main)
        routes: list[Mapping[str, Any]] = own["Routes"] if own else []
        out = [route for route in routes if route.get("DestinationCidrBlock") == "0.0.0.0/0"]
        if not out:
            errors.append(f"{name} has no way out (no default route): nodes could not pull an image")
        elif str(out[0].get("GatewayId", "")).startswith("igw-"):
            warnings.append(f"{name} is a public subnet: nodes in it need public addresses")
        if not makes_endpoint and not any(str(route.get("GatewayId", "")).startswith("vpce-") for route in routes):
            warnings.append(
                f"{name} has no S3 gateway endpoint: weights are billed through NAT; set aws.network.s3_route_tables"
            )
