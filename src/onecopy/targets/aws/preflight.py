"""What only the account knows, asked before anything is made: who calls and what they may, versions, offerings, quotas,
names, network. Every finding has its fix.

A check that may not be asked (no permission, an API that is not there) is a warning and never a problem: the account
may still allow the thing itself. What is certain to fail is a problem, and all problems are told at once.
"""

from __future__ import annotations

import functools
import ipaddress
import json
import math
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from botocore.exceptions import ClientError

from onecopy.config.aws import GpuNodesConfig, NodeGroup
from onecopy.core.errors import CloudError
from onecopy.targets.aws.addons import configuration, unknown_keys, wanted_addons
from onecopy.targets.aws.existing import NO_EKS, bucket_name, check_bucket, check_network
from onecopy.targets.aws.inputs import TAG_STACK, ZONES, Choices, Inputs, cards_wanted, gpu_instance
from onecopy.targets.aws.permissions import Refused, operator_policy, simulate
from onecopy.targets.aws.report import Report
from onecopy.targets.aws.session import DENIED, Session, code, message
from onecopy.targets.kubernetes.helm import find_helm

T = TypeVar("T")
ADDRESS_SERVICE = "https://checkip.amazonaws.com"
# Service Quotas' codes: (on-demand, spot) vCPUs by family, read from its console in 2025
_VCPU_QUOTAS = {"g": ("L-DB2E81BA", "L-3819A6DF"), "p": ("L-417A185B", "L-7212CCBC"), "": ("L-1216C47A", "L-34B43A08")}
_EIP_QUOTA, _VPC_QUOTA = "L-0263D0A3", "L-F678F1CE"
_ASK_FOR_MORE = "ask for more in Service Quotas, in this region"
_SHOWN = 8
"""Refused actions that are named one by one."""


class Preflight:
    def __init__(self, session: Session, inputs: Inputs) -> None:
        self._session, self._inputs = session, inputs
        self.report = Report()

    def new_stack(self) -> Choices:
        """Checks everything and makes the choices of a stack that is not there yet."""
        self._caller()
        self._ask("permissions", "iam:SimulatePrincipalPolicy", self._permissions)
        offered = self._ask("instance types", "ec2:DescribeInstanceTypeOfferings", self._offerings)
        choices = Choices(api_cidrs=self._api_cidrs())
        if self._inputs.aws.network.vpc_id is None:
            choices = self._with_zones(choices, offered)
            self._ask("addresses", "servicequotas:GetServiceQuota", self._address_quota)
            self._ask("VPCs", "servicequotas:GetServiceQuota", self._vpc_quota)
        else:
            check = functools.partial(check_network, self._session, self._inputs, offered, self.report)
            self._ask("network", "ec2:DescribeSubnets", check)
        choices = check_bucket(self._session, self._inputs, choices, self.report)
        choices = self.versions(choices)
        self._sizes()
        self._ask("log group", "logs:DescribeLogGroups", self._log_group)
        return choices

    def existing_stack(self, choices: Choices) -> Choices:
        """Keeps the choices; versions of add-ons that are new are chosen, and what nodes need is looked at again."""
        self._caller()
        wanted = self._inputs.aws.cluster.public_cidrs
        if wanted:
            choices = replace(choices, api_cidrs=wanted)
        else:
            self._still_let_in(choices)
        self._ask("instance types", "ec2:DescribeInstanceTypeOfferings", lambda: self._still_offered(choices))
        self._sizes()
        return self.versions(choices)

    def _ask(self, check: str, action: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except ClientError as error:
            kind = code(error)
            if "NotFound" in kind or "Malformed" in kind:
                self.report.problem(check, message(error), "correct the name in the configuration")
                return None
            why = f"{action} is not permitted" if kind in DENIED else f"{action}: {kind or 'no answer'}"
        except CloudError as error:
            why = error.message
        self.report.warn(check, f"{check} not checked: {why}")
        return None

    def _groups(self) -> Iterator[NodeGroup]:
        yield self._inputs.aws.cpu_nodes
        if self._inputs.aws.gpu_nodes.enabled:
            yield self._inputs.aws.gpu_nodes

    def _caller(self) -> None:
        if self._inputs.aws.workloads:
            # asked for first when the control plane stands, a quarter of an hour later
            try:
                self.report.ok("helm", str(find_helm()))
            except CloudError as error:
                self.report.problem("helm", error.message, error.hint or "install helm")
        who = self._session.identity
        self.report.ok("identity", f"{who.arn} in {self._session.region}")
        if who.arn in self._inputs.aws.cluster.admins:
            self.report.problem(
                "administrators",
                f"aws.cluster.admins names {who.arn}, which makes the cluster and so administers it already",
                "take it out of aws.cluster.admins",
            )

    def _permissions(self) -> None:
        who = self._session.identity
        if who.arn.endswith(":root"):
            self.report.ok("permissions", "the account's root may do everything (a role is safer)")
            return
        irsa = self._inputs.identity == "irsa"
        policy = operator_policy(
            self._inputs.name, self.bucket_name(), partition=who.partition, account=who.account, irsa=irsa
        )
        refused = simulate(self._session, policy, who=who)
        fix = "`onecopy aws policy` prints what is needed"
        never = [found for found in refused if found.explicit]
        if never:
            self.report.problem("permissions", f"a policy denies {_names(never)}", fix)
        if maybe := [found for found in refused if not found.explicit]:
            text = f"IAM's simulation finds no permission for {_names(maybe)}"
            self.report.warn("permissions", text, f"{fix}; those that are bound to single resources do not show there")
        if not refused:
            self.report.ok("permissions", "IAM's simulation permits every action")

    def _api_cidrs(self) -> tuple[str, ...]:
        if self._inputs.aws.cluster.public_cidrs:
            return self._inputs.aws.cluster.public_cidrs
        try:
            address = _own_address()
        except (urllib.error.URLError, OSError, ValueError) as error:
            self.report.problem(
                "API access",
                f"this machine's public address is not known ({ADDRESS_SERVICE}: {error}), and the API server is open"
                " to named addresses only",
                "set aws.cluster.public_cidrs",
            )
            return ()
        self.report.ok("API access", f"the API server will be open to this machine alone: {address}/32")
        return (f"{address}/32",)

    def _still_let_in(self, choices: Choices) -> None:
        """The address of whoever made the stack stays in it: somebody else, or the same at home, is shut out."""
        if not choices.api_cidrs:
            return
        try:
            address = _own_address()
        except (urllib.error.URLError, OSError, ValueError):
            return
        if not any(ipaddress.ip_address(address) in ipaddress.ip_network(cidr) for cidr in choices.api_cidrs):
            both = ", ".join(f'"{cidr}"' for cidr in (*choices.api_cidrs, f"{address}/32"))
            self.report.warn(
                "API access",
                f"the API server is open to {', '.join(choices.api_cidrs)}, and this machine is {address} now",
                f"set aws.cluster.public_cidrs = [{both}] and apply",
            )

    def versions(self, choices: Choices) -> Choices:
        """The Kubernetes version is on offer, and each add-on has a version for it and takes our settings."""
        version = self._inputs.aws.cluster.version
        self._ask("Kubernetes version", "eks:DescribeClusterVersions", lambda: self._cluster_version(version))
        pinned: Mapping[str, str] = {**self._inputs.aws.addons.versions}
        chosen = dict(choices.addon_versions)
        for name in wanted_addons(self._inputs):
            check = f"add-on {name}"
            found = self._ask(check, "eks:DescribeAddonVersions", lambda n=name: self._addon_versions(n, version))
            if found is None:
                continue
            offered, recommended = found
            if not offered:
                self.report.problem(
                    check, f"EKS has no add-on {name} for Kubernetes {version}", "set another aws.cluster.version"
                )
                continue
            if name in pinned and pinned[name] not in offered:
                self.report.problem(
                    check,
                    f"aws.addons.versions: {name} {pinned[name]} is not for Kubernetes {version}",
                    f"EKS recommends {recommended}",
                )
                continue
            if chosen.get(name) not in offered:
                chosen[name] = recommended
            taken = pinned.get(name) or chosen[name]
            self.report.ok(check, taken)
            if configuration(self._inputs, name):
                self._ask(check, "eks:DescribeAddonConfiguration", lambda n=name, v=taken: self._addon_settings(n, v))
        kept = {name: chosen[name] for name in wanted_addons(self._inputs) if name in chosen and name not in pinned}
        return replace(choices, addon_versions=kept)

    def _cluster_version(self, version: str) -> None:
        found = self._session.client("eks").describe_cluster_versions(includeAll=True)["clusterVersions"]
        by_name = {entry["clusterVersion"]: entry for entry in found}
        if version not in by_name:
            standard = sorted(v for v, e in by_name.items() if "STANDARD" in str(e.get("versionStatus", "")).upper())
            self.report.problem(
                "Kubernetes version",
                f"aws.cluster.version: EKS does not offer {version}",
                f"in standard support: {', '.join(standard)}",
            )
            return
        entry = by_name[version]
        status = str(entry.get("versionStatus") or entry.get("status") or "").upper()
        self.report.extended = "EXTENDED" in status
        ends = entry.get("endOfStandardSupportDate")
        if self.report.extended:
            self.report.warn(
                "Kubernetes version",
                f"Kubernetes {version} is in extended support: its control plane costs six times as much",
                "set a newer aws.cluster.version",
            )
        else:
            self.report.ok(
                "Kubernetes version", f"{version}, in standard support" + (f" until {ends:%Y-%m-%d}" if ends else "")
            )

    def _addon_versions(self, name: str, version: str) -> tuple[list[str], str]:
        answer = self._session.client("eks").describe_addon_versions(addonName=name, kubernetesVersion=version)
        entries = [entry for addon in answer["addons"] for entry in addon["addonVersions"]]
        offered = [entry["addonVersion"] for entry in entries]
        best = [
            e["addonVersion"] for e in entries if any(c.get("defaultVersion") for c in e.get("compatibilities", []))
        ]
        return offered, (best or offered or [""])[0]

    def _addon_settings(self, name: str, version: str) -> None:
        """EKS refuses an add-on whose settings its schema does not know, ten minutes after the start."""
        answer = self._session.client("eks").describe_addon_configuration(addonName=name, addonVersion=version)
        schema = json.loads(answer.get("configurationSchema") or "{}")
        if unknown := list(unknown_keys(configuration(self._inputs, name), schema)):
            self.report.problem(
                f"add-on {name}",
                f"{name} {version} does not take {', '.join(unknown)}",
                f"set another version in aws.addons.versions.{name}",
            )

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
            if zones:
                self.report.ok("instance types", f"{kind} is offered in {', '.join(sorted(zones))}")
            else:
                fix = "name another instance type, or another region"
                self.report.problem("instance types", f"{kind} is not offered in {self._session.region}", fix)
        return self._bound_to_block(offered)

    def _still_offered(self, choices: Choices) -> None:
        """The zones of a stack that stands are given: a type that is changed to must be offered there."""
        offered, gpu = self._offerings(), self._inputs.aws.gpu_nodes
        zones = choices.zones[: choices.gpu_zones]
        if gpu.enabled and zones:
            able = {zone for kind in gpu.instance_types for zone in offered[kind]}
            if able and able.isdisjoint(zones):
                self.report.problem(
                    "instance types",
                    f"none of the stack's zones ({', '.join(zones)}) offers {', '.join(gpu.instance_types)}:"
                    f" only {', '.join(sorted(able))}",
                    "name another instance type; the zones of a stack stay as they are",
                )

    def _with_zones(self, choices: Choices, offered: Mapping[str, set[str]] | None) -> Choices:
        gpu = self._inputs.aws.gpu_nodes
        able: set[str] = set()
        if offered is not None and gpu.enabled:
            able = {zone for kind in gpu.instance_types for zone in offered[kind]}
        there = self._ask("zones", "ec2:DescribeAvailabilityZones", self._all_zones)
        named = self._inputs.aws.network.zones
        for zone in named if there is not None else ():
            if zone not in (there or ()):
                self.report.problem("zones", f"{zone} has no EKS control plane, or is not there", "name other zones")
        zones = named or there
        if zones is None:
            return choices
        # The zones with the GPU first: the template takes the first `gpu_zones` of them
        chosen = tuple(sorted(zones, key=lambda zone: (zone not in able, zone)))[:ZONES]
        if len(chosen) < ZONES:
            self.report.problem(
                "zones", f"{self._session.region} has {len(chosen)} zones, and three are needed", "use another region"
            )
            return choices
        with_gpu = sum(zone in able for zone in chosen) if able else ZONES
        if able and with_gpu == 0:
            self.report.problem(
                "zones",
                f"none of {', '.join(chosen)} offers {', '.join(gpu.instance_types)}: only {', '.join(sorted(able))}",
                "name one of those in aws.network.zones",
            )
        elif able and with_gpu < ZONES:
            self.report.warn("zones", f"{', '.join(gpu.instance_types)}: offered in {with_gpu} of the three zones")
        return replace(choices, zones=chosen, gpu_zones=max(with_gpu, 1))

    def _bound_to_block(self, offered: dict[str, set[str]]) -> dict[str, set[str]]:
        """A capacity block is in one zone, and its nodes can start in no other."""
        gpu = self._inputs.aws.gpu_nodes
        if not gpu.enabled or gpu.capacity_reservation is None:
            return offered
        zone = self._ask("capacity block", "ec2:DescribeCapacityReservations", lambda: self._block_zone(gpu))
        return {**offered, gpu.instance_types[0]: {zone}} if zone else offered

    def _block_zone(self, gpu: GpuNodesConfig) -> str | None:
        named, kind = gpu.capacity_reservation, gpu.instance_types[0]
        answer = self._session.client("ec2").describe_capacity_reservations(CapacityReservationIds=[named])
        if not answer["CapacityReservations"]:
            self.report.problem(
                "capacity block", f"there is no {named} here", "correct aws.gpu_nodes.capacity_reservation"
            )
            return None
        found = answer["CapacityReservations"][0]
        text = f"{named}: {found['TotalInstanceCount']} × {found['InstanceType']} in {found['AvailabilityZone']}"
        if found["InstanceType"] != kind:
            fix = f"set aws.gpu_nodes.instance_types to {found['InstanceType']}"
            self.report.problem("capacity block", f"{text}, and the nodes are {kind}", fix)
        if found["TotalInstanceCount"] < gpu.desired:
            fix = "lower aws.gpu_nodes.desired"
            self.report.problem("capacity block", f"{text}, and {gpu.desired} nodes are wanted", fix)
        if found["State"] == "scheduled":
            fix = "apply when it starts, or with aws.gpu_nodes.desired = 0"
            self.report.warn("capacity block", f"{text} starts at {found.get('StartDate')}", fix)
        elif found["State"] == "active":
            self.report.ok("capacity block", f"{text}, until {found.get('EndDate')}")
        else:
            self.report.problem("capacity block", f"{text} is {found['State']}", "name one that is active")
        return str(found["AvailabilityZone"])

    def _all_zones(self) -> tuple[str, ...]:
        found = self._session.client("ec2").describe_availability_zones(
            Filters=[{"Name": "zone-type", "Values": ["availability-zone"]}, {"Name": "state", "Values": ["available"]}]
        )["AvailabilityZones"]
        return tuple(zone["ZoneName"] for zone in found if zone.get("ZoneId") not in NO_EKS)

    def bucket_name(self) -> str:
        return bucket_name(self._session, self._inputs)

    def _quota(self, service: str, quota: str) -> float:
        return float(
            self._session.client("service-quotas").get_service_quota(ServiceCode=service, QuotaCode=quota)["Quota"][
                "Value"
            ]
        )

    def _address_quota(self) -> None:
        ec2 = self._session.client("ec2")
        needed = ZONES if self._inputs.aws.network.nat == "per-zone" else 1
        used = len(ec2.describe_addresses(Filters=[{"Name": "domain", "Values": ["vpc"]}])["Addresses"])
        self._fits("addresses", f"{needed} Elastic IPs", needed, used, self._quota("ec2", _EIP_QUOTA))

    def _vpc_quota(self) -> None:
        used = len(self._session.client("ec2").describe_vpcs()["Vpcs"])
        self._fits("VPCs", "one more VPC", 1, used, self._quota("vpc", _VPC_QUOTA))

    def _fits(self, check: str, what: str, needed: float, used: float, limit: float) -> None:
        text = f"{what} beside {used:.0f} of {limit:.0f} in use"
        if used + needed > limit:
            self.report.problem(check, f"no room for {text}", f"release some, or {_ASK_FOR_MORE}")
        else:
            self.report.ok(check, text)

    def _sizes(self) -> None:
        self._room()
        for nodes in self._groups():
            check = f"vCPUs of {nodes.instance_types[0]}"
            if nodes.capacity != "capacity-block":  # bought beforehand, outside of any quota
                self._ask(check, "servicequotas:GetServiceQuota", lambda n=nodes, c=check: self._vcpus(c, n))

    def _vcpus(self, check: str, nodes: NodeGroup) -> None:
        """Beside what other instances of the family take now; AWS has no promise of capacity for anybody."""
        kind = nodes.instance_types[0]
        each = self._default_vcpus([kind])[kind]
        family = _family(kind)
        limit = self._quota("ec2", _VCPU_QUOTAS[family][nodes.capacity == "spot"])
        used = self._running(family, spot=nodes.capacity == "spot")
        self._fits(
            check, f"{nodes.desired} × {kind} ({each * nodes.desired} vCPUs, {nodes.capacity})",
            each * nodes.desired, used, limit,
        )  # fmt: skip
        if nodes.max > nodes.desired and used + each * nodes.max > limit >= used + each * nodes.desired:
            self.report.warn(
                check, f"the quota of {limit:.0f} vCPUs does not reach to max = {nodes.max}", _ASK_FOR_MORE
            )

    def _room(self) -> None:
        """Cards for every replica: nothing here adds nodes by itself, so replicas beyond them wait for ever."""
        config, nodes = self._inputs.config, self._inputs.aws.gpu_nodes
        kind = gpu_instance(config)
        if kind is None or not config.aws.workloads:
            return
        wanted, share = cards_wanted(config), config.kubernetes.gpu.replicas_per_card
        there = kind.cards * share * nodes.desired
        text = f"{sum(model.replicas for model in config.models)} replicas want {wanted} cards"
        have = f"{nodes.desired} × {kind.name} offer {there}" + (f", each shared by {share}" if share > 1 else "")
        if wanted <= there:
            self.report.ok("cards", f"{text}, {have}")
            return
        more = math.ceil(wanted / (kind.cards * share))
        fix = f"set aws.gpu_nodes.desired = {more}, or kubernetes.gpu.replicas_per_card"
        if more <= nodes.max:
            self.report.warn("cards", f"{text}, {have} until an autoscaler of yours adds nodes", fix)
        else:
            self.report.problem("cards", f"{text}, and {have}", fix)

    def _running(self, family: str, *, spot: bool) -> int:
        """vCPUs of the family that run now and are not this stack's own."""
        live = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        pages = self._session.client("ec2").get_paginator("describe_instances").paginate(Filters=live)
        kinds: list[str] = [
            i["InstanceType"]
            for page in pages
            for reservation in page["Reservations"]
            for i in reservation["Instances"]
            if _family(i["InstanceType"]) == family
            and (i.get("InstanceLifecycle") == "spot") == spot
            and {"Key": TAG_STACK, "Value": self._inputs.name} not in i.get("Tags", [])
        ]
        vcpus = self._default_vcpus(sorted(set(kinds)))
        return sum(vcpus[kind] for kind in kinds)

    def _default_vcpus(self, kinds: list[str]) -> dict[str, int]:
        """By instance type; quotas count these, whatever an instance was started with."""
        if not kinds:
            return {}
        found = self._session.client("ec2").describe_instance_types(InstanceTypes=kinds)["InstanceTypes"]
        return {entry["InstanceType"]: entry["VCpuInfo"]["DefaultVCpus"] for entry in found}

    def _log_group(self) -> None:
        name = f"/aws/eks/{self._inputs.name}/cluster"
        found = self._session.client("logs").describe_log_groups(logGroupNamePrefix=name)["logGroups"]
        if any(group["logGroupName"] == name for group in found):
            self.report.problem(
                "log group",
                f"the log group {name} is left from a cluster before",
                "`onecopy aws orphans --delete` removes it",
            )


def _own_address() -> str:
    """Raises URLError, OSError or ValueError."""
    with urllib.request.urlopen(ADDRESS_SERVICE, timeout=5) as answer:
        return str(ipaddress.IPv4Address(answer.read(64).decode("ascii").strip()))


def _family(kind: str) -> str:
    """Of the vCPU quotas: G (with VT), P, or all the standard ones."""
    return kind[0] if kind[0] in _VCPU_QUOTAS else ""


def _names(refused: list[Refused]) -> str:
    names = [found.action for found in refused]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
