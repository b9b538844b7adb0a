"""MiniStack with what this stack needs and it lacks. It tests OUR FLOW, not AWS's rules: whether AWS itself would accept,
replace or refuse a thing is not shown by any test that runs on it.

Added: five CloudFormation types, four describe calls of the preflight, Service Quotas, an EKS endpoint that leads to a real API server,
and failures on demand. They plug into private tables of MiniStack: the version is pinned in pyproject.toml.

Run by the fixture as a process of its own: `python emulator.py CONTROL_FILE`; the JSON of CONTROL_FILE is read anew at
each use: `{"fail": {"AWS::EKS::Nodegroup": "why"}, "endpoint": "https://…", "ca": "base64", "webhook_token": "…",
"quotas": {"L-DB2E81BA": 0}, "free": {"10.60.0.0/27": 27}}`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ministack.services.cloudformation.provisioners as provisioners
import ministack.services.ec2 as ec2
import ministack.services.eks as eks

CONTROL = Path(sys.argv[1])
HANDLERS: dict[str, dict[str, Any]] = provisioners._RESOURCE_HANDLERS


def control() -> dict[str, Any]:
    return json.loads(CONTROL.read_text())


def api_case(value: Any) -> Any:
    """CloudFormation's property names as EKS's API spells them."""
    if isinstance(value, dict):
        return {key[0].lower() + key[1:]: api_case(item) for key, item in value.items()}
    return [api_case(item) for item in value] if isinstance(value, list) else value


def accepted(response: tuple[int, Any, bytes]) -> dict[str, Any]:
    status, _, body = response
    if status >= 400:
        raise ValueError(body.decode() if isinstance(body, bytes) else str(body))
    return json.loads(body) if body and body.lstrip()[:1] == b"{" else {}


def made_in(table: Any, call: Any, parameters: dict[str, Any]) -> str:
    """The id of the record that a call adds to one of EC2's tables."""
    before = set(table)
    accepted(call(parameters))
    return (set(table) - before).pop()


def eip_create(logical: str, props: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
    allocation = made_in(ec2._addresses, ec2._allocate_address, {"Domain": ["vpc"]})
    address = ec2._addresses[allocation]["PublicIp"]
    return address, {"AllocationId": allocation, "PublicIp": address}


def eip_delete(physical: str, props: dict[str, Any]) -> None:
    for allocation, record in list(ec2._addresses.items()):
        if record["PublicIp"] == physical:
            ec2._release_address({"AllocationId": [allocation]})


def nat_create(logical: str, props: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
    asked = {"SubnetId": [props["SubnetId"]], "AllocationId": [props["AllocationId"]]}
    gateway = made_in(ec2._nat_gateways, ec2._create_nat_gateway, asked)
    return gateway, {"NatGatewayId": gateway}


def nat_delete(physical: str, props: dict[str, Any]) -> None:
    ec2._delete_nat_gateway({"NatGatewayId": [physical]})


def addon_body(props: dict[str, Any]) -> dict[str, Any]:
    return api_case({key: value for key, value in props.items() if key not in ("ClusterName", "Tags")})


def addon_create(logical: str, props: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
    made = accepted(eks._create_addon(props["ClusterName"], addon_body(props)))
    return f"{props['ClusterName']}|{props['AddonName']}", {"Arn": made["addon"]["addonArn"]}


def addon_update(
    physical: str, old: dict[str, Any], new: dict[str, Any], stack: str, **_: Any
) -> tuple[str, dict[str, Any]]:
    made = accepted(eks._update_addon(*physical.split("|"), addon_body(new)))
    return physical, {"Arn": made.get("addon", {}).get("addonArn", "")}


def addon_delete(physical: str, props: dict[str, Any]) -> None:
    eks._delete_addon(*physical.split("|"))


def access_create(logical: str, props: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
    cluster, principal = props["ClusterName"], props["PrincipalArn"]
    made = accepted(
        eks._create_access_entry(cluster, {"principalArn": principal, "type": props.get("Type", "STANDARD")})
    )
    for policy in props.get("AccessPolicies", []):
        accepted(eks._associate_access_policy(cluster, principal, api_case(policy)))
    return f"{principal}|{cluster}", {"AccessEntryArn": made["accessEntry"]["accessEntryArn"]}


def access_delete(physical: str, props: dict[str, Any]) -> None:
    principal, cluster = physical.split("|")
    eks._delete_access_entry(cluster, principal)


def identity_create(logical: str, props: dict[str, Any], stack: str) -> tuple[str, dict[str, Any]]:
    asked = api_case({key: value for key, value in props.items() if key not in ("ClusterName", "Tags")})
    made = accepted(eks._create_pod_identity_association(props["ClusterName"], asked))["association"]
    return made["associationId"], {"AssociationArn": made["associationArn"], "AssociationId": made["associationId"]}


def identity_delete(physical: str, props: dict[str, Any]) -> None:
    eks._delete_pod_identity_association(props["ClusterName"], physical)


def unchanged(
    physical: str, old: dict[str, Any], new: dict[str, Any], stack: str, **_: Any
) -> tuple[str, dict[str, Any]]:
    return physical, {}


ADDED = {
    "AWS::EC2::EIP": (eip_create, unchanged, eip_delete),
    "AWS::EC2::NatGateway": (nat_create, unchanged, nat_delete),
    "AWS::EKS::Addon": (addon_create, addon_update, addon_delete),
    "AWS::EKS::AccessEntry": (access_create, unchanged, access_delete),
    "AWS::EKS::PodIdentityAssociation": (identity_create, unchanged, identity_delete),
}


def failing(kind: str, create: Any) -> Any:
    """Fails while the control file says so, with AWS's own words for it."""

    def made(logical: str, props: dict[str, Any], stack: str) -> Any:
        if reason := control().get("fail", {}).get(kind):
            raise ValueError(reason)
        result = create(logical, props, stack)
        if kind == "AWS::EKS::Cluster":
            _give_endpoint(result)
        return result

    return made


def _give_endpoint(result: tuple[str, dict[str, Any]]) -> None:
    """The cluster's endpoint becomes a real API server's, which was started with this secret of the webhook."""
    name, attributes = result
    wanted = control()
    cluster = eks._clusters[name]
    if "webhook_token" in wanted:
        cluster["_auth_token"] = wanted["webhook_token"]
    if "endpoint" in wanted:
        cluster["endpoint"] = attributes["Endpoint"] = wanted["endpoint"]
        cluster["certificateAuthority"] = {"data": wanted["ca"]}
        attributes["CertificateAuthorityData"] = wanted["ca"]
    if "creator" in wanted:  # EKS makes whoever creates a cluster its administrator
        accepted(eks._create_access_entry(name, wanted["creator"]))


# In the form of AWS's own; of the settings only those that the template has, and one add-on that forgot one
SCHEMAS: dict[str, Any] = {
    "metrics-server": {"$ref": "#/definitions/A", "definitions": {"A": {"properties": {"hostNetwork": {
        "properties": {"enabled": {"type": "boolean"}}, "additionalProperties": False}},
        "additionalProperties": False}}},
    "cert-manager": {"properties": {"webhook": {"properties": {"hostNetwork": {}}, "additionalProperties": False}},
        "additionalProperties": False},
}  # fmt: skip


async def quotas(method: str, path: str, headers: Any, body: bytes, query: dict[str, Any]) -> Any:
    """Service Quotas as the control file has them, by code; plenty of anything else."""
    asked = json.loads(body)
    value = control().get("quotas", {}).get(asked["QuotaCode"], 500)
    quota = {"ServiceCode": asked["ServiceCode"], "QuotaCode": asked["QuotaCode"], "Value": float(value)}
    return 200, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps({"Quota": quota}).encode()


def extra_eks(method: str, path: str, headers: Any, body: bytes, query: dict[str, Any]) -> Any:
    first = {key: value[0] if isinstance(value, list) else value for key, value in query.items()}
    if path == "/addons/supported-versions":
        version = [
            {
                "addonVersion": "v1.9.0-eksbuild.2",
                "compatibilities": [{"clusterVersion": "1.35", "defaultVersion": True}],
            },
            {
                "addonVersion": "v1.8.0-eksbuild.1",
                "compatibilities": [{"clusterVersion": "1.35", "defaultVersion": False}],
            },
        ]
        known = first.get("kubernetesVersion") in ("1.34", "1.35")
        return eks._json_resp(
            200, {"addons": [{"addonName": first["addonName"], "addonVersions": version}] if known else []}
        )
    if path == "/addons/configuration-schemas":
        return eks._json_resp(200, {**first, "configurationSchema": json.dumps(SCHEMAS.get(first["addonName"], {}))})
    if path == "/cluster-versions":
        versions = [("1.35", "STANDARD_SUPPORT"), ("1.34", "STANDARD_SUPPORT"), ("1.32", "EXTENDED_SUPPORT")]
        return eks._json_resp(
            200, {"clusterVersions": [{"clusterVersion": v, "versionStatus": s} for v, s in versions]}
        )
    return original_eks(method, path, headers, body, query)


def offerings(parameters: dict[str, Any]) -> Any:
    """Every type that is asked for is offered in the region's zones b and c; g6e nowhere."""
    kinds = [value[0] for key, value in sorted(parameters.items()) if key.startswith("Filter.1.Value")]
    region = eks.get_region()
    items = "".join(
        f"<item><instanceType>{kind}</instanceType><locationType>availability-zone</locationType>"
        f"<location>{region}{zone}</location></item>"
        for kind in kinds
        if not kind.startswith("g6e.")
        for zone in ("bc" if kind.startswith("g") else "abc")
    )
    return ec2._xml(
        200, "DescribeInstanceTypeOfferingsResponse", f"<instanceTypeOfferingSet>{items}</instanceTypeOfferingSet>"
    )


def reservations(parameters: dict[str, Any]) -> Any:
    """Those of the control file: it has no capacity blocks of its own."""
    asked = [value[0] for key, value in parameters.items() if key.startswith("CapacityReservationId")]
    items = "".join(
        "<item>" + "".join(f"<{key}>{value}</{key}>" for key, value in {"capacityReservationId": name, **found}.items())
        + "</item>"
        for name, found in control().get("reservations", {}).items()
        if name in asked
    )  # fmt: skip
    return ec2._xml(
        200, "DescribeCapacityReservationsResponse", f"<capacityReservationSet>{items}</capacityReservationSet>"
    )


def subnets(parameters: dict[str, Any]) -> Any:
    """MiniStack says 251 free addresses of every subnet; the control file knows better, by range."""
    free = control().get("free", {})
    for subnet in ec2._subnets.values():
        subnet["AvailableIpAddressCount"] = free.get(subnet["CidrBlock"], subnet["AvailableIpAddressCount"])
    return original_subnets(parameters)


if __name__ == "__main__":
    for kind, (create, update, delete) in ADDED.items():
        if kind in HANDLERS:
            raise SystemExit(f"MiniStack has {kind} itself now: remove it here")
        HANDLERS[kind] = {"create": create, "update": update, "delete": delete, "update_with_logical_id": True}
    for kind, handler in HANDLERS.items():
        if kind.startswith("AWS::EKS::") or kind in ("AWS::EC2::NatGateway", "AWS::S3::Bucket"):
            handler["create"] = failing(kind, handler["create"])
    # its update makes the replacement by the function itself
    provisioners._eks_nodegroup_create = HANDLERS["AWS::EKS::Nodegroup"]["create"]
    original_eks = eks._handle_request_sync
    eks._handle_request_sync = extra_eks
    actions = next(t for t in vars(ec2).values() if isinstance(t, dict) and "DescribeInstanceTypes" in t)
    actions["DescribeInstanceTypeOfferings"] = offerings
    actions["DescribeCapacityReservations"] = reservations
    original_subnets, actions["DescribeSubnets"] = actions["DescribeSubnets"], subnets
    from ministack import app
    from ministack.core import router

    router.SERVICE_PATTERNS["servicequotas"] = {"target_prefixes": ["ServiceQuotasV20190624"]}
    app.SERVICE_HANDLERS["servicequotas"] = quotas

    sys.argv = ["ministack"]
    app.main()
