"""The policy that whoever runs plan, apply and destroy needs. Printed, never attached; and asked of IAM's simulator.

CloudFormation acts with the caller's own permissions, so this is what the resources of the template ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onecopy.targets.aws.session import Identity, Session

_READ = [
    "cloudformation:DescribeStacks", "cloudformation:DescribeStackEvents", "cloudformation:DescribeChangeSet",
    "cloudformation:DescribeStackDriftDetectionStatus", "cloudformation:DescribeStackResourceDrifts",
    "cloudformation:GetTemplate", "cloudformation:ListStackResources", "cloudformation:ListChangeSets",
    "ec2:Describe*", "ec2:GetLaunchTemplateData", "eks:Describe*", "eks:List*", "elasticloadbalancing:Describe*",
    "iam:GetRole", "iam:GetRolePolicy", "iam:ListRolePolicies", "iam:ListAttachedRolePolicies",
    "iam:GetOpenIDConnectProvider", "iam:SimulatePrincipalPolicy", "kms:DescribeKey", "kms:GetKeyPolicy",
    "kms:GetKeyRotationStatus", "kms:ListResourceTags", "logs:Describe*", "logs:GetDataProtectionPolicy",
    "logs:ListTagsForResource", "servicequotas:GetServiceQuota", "sts:GetCallerIdentity",
]  # fmt: skip
_CHANGE = {
    "cloudformation": [
        "CreateChangeSet", "ExecuteChangeSet", "DeleteChangeSet", "DeleteStack", "ContinueUpdateRollback",
        "DetectStackDrift", "DetectStackResourceDrift",
    ],
    "ec2": [
        "CreateVpc", "DeleteVpc", "ModifyVpcAttribute", "CreateSubnet", "DeleteSubnet", "ModifySubnetAttribute",
        "AssociateAddress", "DisassociateAddress", "ReplaceRoute", "ReplaceRouteTableAssociation", "CreateInternetGateway",
        "DeleteInternetGateway", "AttachInternetGateway", "DetachInternetGateway", "AllocateAddress", "ReleaseAddress",
        "CreateNatGateway", "DeleteNatGateway", "CreateRouteTable", "DeleteRouteTable", "AssociateRouteTable",
        "DisassociateRouteTable", "CreateRoute", "DeleteRoute", "CreateVpcEndpoint", "ModifyVpcEndpoint",
        "DeleteVpcEndpoints", "CreateLaunchTemplate", "CreateLaunchTemplateVersion", "ModifyLaunchTemplate",
        "DeleteLaunchTemplate", "RunInstances", "CreateTags", "DeleteTags", "DeleteSecurityGroup",
        "DeleteNetworkInterface", "DeleteVolume",
    ],
    "eks": [
        "CreateCluster", "DeleteCluster", "UpdateClusterConfig", "UpdateClusterVersion", "AssociateEncryptionConfig",
        "CreateNodegroup", "DeleteNodegroup", "UpdateNodegroupConfig", "UpdateNodegroupVersion", "CreateAddon",
        "DeleteAddon", "UpdateAddon", "CreateAccessEntry", "UpdateAccessEntry", "DeleteAccessEntry", "AssociateAccessPolicy",
        "DisassociateAccessPolicy", "CreatePodIdentityAssociation", "DeletePodIdentityAssociation",
        "UpdatePodIdentityAssociation", "TagResource", "UntagResource",
    ],
    "kms": [
        "CreateKey", "ScheduleKeyDeletion", "EnableKeyRotation", "PutKeyPolicy", "UpdateKeyDescription", "TagResource",
        "UntagResource", "CreateGrant",
    ],
    "logs": [
        "CreateLogGroup", "DeleteLogGroup", "PutRetentionPolicy", "DeleteRetentionPolicy", "TagResource", "UntagResource",
    ],
    "elasticloadbalancing": ["DeleteLoadBalancer", "DeleteTargetGroup"],
}  # fmt: skip
_ROLE = [
    "CreateRole", "DeleteRole", "TagRole", "UntagRole", "PutRolePolicy", "DeleteRolePolicy", "AttachRolePolicy",
    "DetachRolePolicy", "UpdateRole", "UpdateRoleDescription", "UpdateAssumeRolePolicy", "PassRole",
]  # fmt: skip
_OIDC = [
    "CreateOpenIDConnectProvider", "DeleteOpenIDConnectProvider", "TagOpenIDConnectProvider",
    "UntagOpenIDConnectProvider", "ListOpenIDConnectProviderTags", "AddClientIDToOpenIDConnectProvider",
    "RemoveClientIDFromOpenIDConnectProvider", "UpdateOpenIDConnectProviderThumbprint",
]  # fmt: skip
_BUCKET = [
    "CreateBucket", "ListBucket", "GetBucket*", "PutBucketPolicy", "PutBucketVersioning", "PutBucketPublicAccessBlock",
    "PutBucketOwnershipControls", "PutBucketTagging", "PutEncryptionConfiguration", "PutLifecycleConfiguration",
    "Get*Configuration", "ListTagsForResource", "TagResource", "UntagResource",
]  # fmt: skip


def operator_policy(
    stack: str, bucket: str, *, partition: str = "aws", account: str = "*", irsa: bool = False
) -> dict[str, Any]:
    """An IAM policy document. account: `*` while it is not known."""
    roles = f"arn:{partition}:iam::{account}:role/{stack}-*"
    statements: list[dict[str, Any]] = [
        {"Sid": "Read", "Effect": "Allow", "Action": _READ, "Resource": "*"},
        *(
            {"Sid": f"Change{i}", "Effect": "Allow", "Action": [f"{service}:{name}" for name in names], "Resource": "*"}
            for i, (service, names) in enumerate(_CHANGE.items())
        ),
        {"Sid": "Roles", "Effect": "Allow", "Action": [f"iam:{name}" for name in _ROLE], "Resource": roles},
        {
            "Sid": "ServiceLinkedRoles",
            "Effect": "Allow",
            "Action": "iam:CreateServiceLinkedRole",
            "Resource": "*",
            "Condition": {
                "StringLike": {
                    "iam:AWSServiceName": ["eks*.amazonaws.com", "autoscaling.amazonaws.com", "spot.amazonaws.com"]
                }
            },
        },
        {
            "Sid": "Bucket",
            "Effect": "Allow",
            "Action": [f"s3:{name}" for name in _BUCKET],
            "Resource": f"arn:{partition}:s3:::{bucket}",
        },
        # a model's config.json and manifest: replicas that share a card are planned from them
        {
            "Sid": "Models",
            "Effect": "Allow",
            "Action": ["s3:GetObject"],
            "Resource": f"arn:{partition}:s3:::{bucket}/*",
        },
    ]
    if irsa:
        provider = f"arn:{partition}:iam::{account}:oidc-provider/*"
        statements.append(
            {"Sid": "Issuer", "Effect": "Allow", "Action": [f"iam:{name}" for name in _OIDC], "Resource": provider}
        )
    return {"Version": "2012-10-17", "Statement": statements}


@dataclass(frozen=True, slots=True)
class Refused:
    """An action that IAM's simulator refuses. explicit: a statement says no, which nothing else can permit."""

    action: str
    explicit: bool


def simulate(session: Session, policy: dict[str, Any], *, who: Identity) -> list[Refused]:
    """What the caller lacks of a policy. The simulator knows no wildcards, so those actions are left out.

    A caller whose permissions are bound to single resources is refused here what it may do on them: only an explicit
    refusal is certain. Raises ClientError when the caller may not ask.
    """
    iam = session.client("iam")
    source = who.arn
    if ":role/" in source:
        # a session's ARN leaves out the role's path, and the simulator takes the whole
        source = iam.get_role(RoleName=source.rsplit("/", 1)[1])["Role"]["Arn"]
    refused: list[Refused] = []
    for actions, asked in _questions(policy):
        for page in iam.get_paginator("simulate_principal_policy").paginate(
            PolicySourceArn=source, ActionNames=actions, **asked
        ):
            refused += [
                Refused(result["EvalActionName"], result["EvalDecision"] == "explicitDeny")
                for result in page["EvaluationResults"]
                if result["EvalDecision"] != "allowed"
            ]
    return refused


def _questions(policy: dict[str, Any]) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Conditional statements are left out: service-linked roles, which most accounts have had for years."""
    for statement in policy["Statement"]:
        actions: list[str] = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        known = [action for action in actions if "*" not in action]
        if known and "Condition" not in statement:
            resource: str = statement["Resource"]
            yield known, {} if resource == "*" else {"ResourceArns": [resource.replace("*", "any")]}
