"""EKS add-ons. Some must be there before a node can get Ready, the others can only run on one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from troposphere import GetAtt, Ref, Template, eks

from onecopy.targets.aws.cluster import CLUSTER
from onecopy.targets.aws.inputs import Inputs

# What a node needs to get Ready or a pod to get its role; they run on the host's network
FIRST = ("vpc-cni", "kube-proxy", "eks-pod-identity-agent")
# On an overlay the API server cannot reach a pod's address: what it calls must listen on the node's
_HOST_NETWORK: dict[str, Any] = {
    "metrics-server": {"hostNetwork": {"enabled": True}},
    "cert-manager": {"webhook": {"hostNetwork": True, "securePort": 10260}},
}


def wanted_addons(inputs: Inputs) -> tuple[str, ...]:
    settings = inputs.aws.addons
    names = {
        "vpc-cni": not inputs.is_calico,
        "kube-proxy": True,
        "eks-pod-identity-agent": inputs.identity == "pod-identity",
        "coredns": True,
        "metrics-server": settings.metrics_server,
        "cert-manager": settings.cert_manager,
        "aws-mountpoint-s3-csi-driver": inputs.config.kubernetes.delivery == "mount",
        "aws-ebs-csi-driver": settings.ebs_csi,
    }
    return tuple(name for name, wanted in names.items() if wanted)


def title(addon: str) -> str:
    return "".join(part.capitalize() for part in addon.split("-")) + "Addon"


def configuration(inputs: Inputs, name: str) -> dict[str, Any]:
    """Settings of an add-on; EKS holds them against the schema of its version."""
    if inputs.is_calico and name in _HOST_NETWORK:
        return _HOST_NETWORK[name]
    if name == "aws-mountpoint-s3-csi-driver":
        return {"node": {"tolerateAllTaints": True}}
    return {}


def unknown_keys(settings: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    """Dotted paths of settings that an add-on's JSON schema, as DescribeAddonConfiguration tells it, does not have."""
    yield from _unknown(settings, schema, schema, "")


def _unknown(settings: Any, part: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    while "$ref" in part:
        found: Any = schema
        for step in str(part["$ref"]).removeprefix("#/").split("/"):
            found = found[step]
        part = found
    if not isinstance(settings, dict) or "properties" not in part:
        return
    for key, value in cast("dict[str, Any]", settings).items():
        where = f"{path}.{key}" if path else key
        if key in part["properties"]:
            yield from _unknown(value, part["properties"][key], schema, where)
        elif part.get("additionalProperties") in (False, None):
            yield where


def add_first_addons(template: Template, inputs: Inputs) -> list[str]:
    """Returns their logical ids."""
    return [_add(template, inputs, name, []) for name in wanted_addons(inputs) if name in FIRST]


def add_later_addons(template: Template, inputs: Inputs) -> None:
    for name in wanted_addons(inputs):
        if name not in FIRST:
            _add(template, inputs, name, ["CpuNodes"])


def _add(template: Template, inputs: Inputs, name: str, waits: list[str]) -> str:
    optional: dict[str, Any] = {}
    pinned: dict[str, str] = {**inputs.choices.addon_versions, **inputs.aws.addons.versions}
    if version := pinned.get(name):
        optional["AddonVersion"] = version
    if settings := configuration(inputs, name):
        optional["ConfigurationValues"] = json.dumps(settings, separators=(",", ":"))
    if inputs.identity == "irsa":
        role = {"aws-mountpoint-s3-csi-driver": "ReaderRole", "aws-ebs-csi-driver": "EbsCsiRole"}.get(name)
        if role:
            optional["ServiceAccountRoleArn"] = GetAtt(role, "Arn")
    if waits:
        optional["DependsOn"] = waits
    addon = template.add_resource(
        eks.Addon(
            title(name),
            ClusterName=Ref(CLUSTER),
            AddonName=name,
            ResolveConflicts="OVERWRITE",
            **optional,
        )
    )
    return str(addon.title)
