"""The policy that whoever runs plan, apply and destroy needs. Printed, never attached.

CloudFormation acts with the caller's own permissions, so this is what the resources of the template ask for.
"""

from __future__ import annotations

from typing import Any

_READ = [
    "cloudformation:DescribeStacks", "cloudformation:DescribeStackEvents", "cloudformation:DescribeChangeSet",
    "cloudformation:DescribeStackDriftDetectionStatus", "cloudformation:DescribeStackResourceDrifts",
    "cloudformation:GetTemplate", "cloudformation:ListStackResources", "cloudformation:ListChangeSets",
    "ec2:Describe*", "ec2:GetLaunchTemplateData", "eks:Describe*", "eks:List*", "elasticloadbalancing:Describe*",
    "iam:GetRole", "iam:GetRolePolicy", "iam:ListRolePolicies", "iam:ListAttachedRolePolicies",
    "iam:GetOpenIDConnectProvider", "kms:DescribeKey", "kms:GetKeyPolicy", "kms:GetKeyRotationStatus",
    "kms:ListResourceTags", "logs:DescribeLogGroups", "logs:ListTagsForResource", "servicequotas:GetServiceQuota",
    "sts:GetCallerIdentity", "tag:GetResources",
]  # fmt: skip
_CHANGE = {
    "cloudformation": [
        "CreateChangeSet", "ExecuteChangeSet", "DeleteChangeSet", "DeleteStack", "ContinueUpdateRollback",
        "DetectStackDrift", "DetectStackResourceDrift",
    ],
    "ec2": [
        "CreateVpc", "DeleteVpc", "ModifyVpcAttribute", "CreateSubnet", "DeleteSubnet", "CreateInternetGateway",
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
        "DeleteAddon", "UpdateAddon", "CreateAccessEntry", "DeleteAccessEntry", "AssociateAccessPolicy",
        "DisassociateAccessPolicy", "CreatePodIdentityAssociation", "DeletePodIdentityAssociation",
        "UpdatePodIdentityAssociation", "TagResource", "UntagResource",
    ],
    "kms": ["CreateKey", "ScheduleKeyDeletion", "EnableKeyRotation", "PutKeyPolicy", "TagResource", "CreateGrant"],
    "logs": ["CreateLogGroup", "DeleteLogGroup", "PutRetentionPolicy", "TagResource", "UntagResource"],
    "elasticloadbalancing": ["DeleteLoadBalancer", "DeleteTargetGroup"],
}  # fmt: skip
_ROLE = [
    "CreateRole", "DeleteRole", "TagRole", "UntagRole", "PutRolePolicy", "DeleteRolePolicy", "AttachRolePolicy",
    "DetachRolePolicy", "UpdateAssumeRolePolicy", "PassRole",
]  # fmt: skip
_OIDC = ["CreateOpenIDConnectProvider", "DeleteOpenIDConnectProvider", "TagOpenIDConnectProvider"]
_BUCKET = [
    "CreateBucket", "ListBucket", "GetBucket*", "PutBucketPolicy", "PutBucketVersioning", "PutBucketPublicAccessBlock",
    "PutBucketOwnershipControls", "PutBucketTagging", "GetEncryptionConfiguration", "PutEncryptionConfiguration",
    "GetLifecycleConfiguration", "PutLifecycleConfiguration",
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
    ]
    if irsa:
        provider = f"arn:{partition}:iam::{account}:oidc-provider/*"
        statements.append(
            {"Sid": "Issuer", "Effect": "Allow", "Action": [f"iam:{name}" for name in _OIDC], "Resource": provider}
        )
    return {"Version": "2012-10-17", "Statement": statements}
