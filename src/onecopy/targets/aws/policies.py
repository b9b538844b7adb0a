"""IAM documents: who may take a role, and what the role may do. Pure functions, so that tests read what AWS reads.

Amazon Resource Names are written with `${AWS::Partition}`: the same template serves aws, aws-us-gov and aws-cn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from troposphere import AWSHelperFn, GetAtt, Join, Select, Split, Sub

from onecopy.targets.aws.accounts import Account

Document = dict[str, Any]
_VERSION = "2012-10-17"
# A token's audience is a word and no endpoint: the same in aws-cn (eksctl #1910, terraform-aws-eks #2700)
TOKEN_AUDIENCE = "sts.amazonaws.com"  # noqa: S105


def document(*statements: Document) -> Document:
    return {"Version": _VERSION, "Statement": list(statements)}


def allow(actions: Iterable[str], resources: Any, condition: Document | None = None) -> Document:
    statement: Document = {"Effect": "Allow", "Action": list(actions), "Resource": resources}
    return {**statement, "Condition": condition} if condition else statement


def service_trust(service: str | AWSHelperFn) -> Document:
    return document({"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"})


def pod_trust(cluster: str) -> Document:
    """EKS Pod Identity, from this account's cluster alone."""
    return document(
        {
            "Effect": "Allow",
            "Principal": {"Service": "pods.eks.amazonaws.com"},
            "Action": ["sts:AssumeRole", "sts:TagSession"],
            "Condition": {
                "StringEquals": {
                    "aws:SourceAccount": Sub("${AWS::AccountId}"),
                    "aws:RequestTag/eks-cluster-name": cluster,
                }
            },
        }
    )


def irsa_trust(accounts: Sequence[Account]) -> AWSHelperFn:
    """A web identity of the cluster's OIDC issuer, for these service accounts alone.

    The issuer stands in the condition's keys, where CloudFormation takes no function: so the text is put together.
    """
    text = document(
        {
            "Effect": "Allow",
            "Principal": {"Federated": "${Provider}"},
            "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": {
                "StringEquals": {
                    "${Issuer}:aud": TOKEN_AUDIENCE,
                    "${Issuer}:sub": [account.subject for account in accounts],
                }
            },
        }
    )
    issuer = Select(1, Split("//", GetAtt("Cluster", "OpenIdConnectIssuerUrl")))
    return Sub(json.dumps(text, separators=(",", ":")), Provider=GetAtt("OidcProvider", "Arn"), Issuer=issuer)


def _model_prefixes(prefix: str, models: Sequence[str]) -> list[str]:
    return [f"{prefix}/{model}" for model in models]


def _list(bucket_arn: Any, prefixes: Sequence[str]) -> Document:
    patterns = [pattern for p in prefixes for pattern in (f"{p}/", f"{p}/*")]
    return allow(["s3:ListBucket"], bucket_arn, {"StringLike": {"s3:prefix": patterns}})


def _objects(bucket_arn: Any, prefixes: Sequence[str]) -> list[AWSHelperFn]:
    return [Join("", [bucket_arn, f"/{p}/*"]) for p in prefixes]


def reader(bucket_arn: Any, prefix: str, models: Sequence[str], key: Any = None) -> Document:
    """Lists and reads the named models' prefixes, and nothing else."""
    prefixes = _model_prefixes(prefix, models)
    statements = [
        _list(bucket_arn, prefixes),
        allow(["s3:GetObject"], _objects(bucket_arn, prefixes)),
    ]
    return document(*statements, *([allow(["kms:Decrypt"], key)] if key is not None else []))


def writer(bucket_arn: Any, prefix: str, models: Sequence[str], key: Any = None) -> Document:
    """Publishes the named models: reads, writes, resumes and aborts uploads below their prefixes; deletes nothing.

    It sees the names of unfinished uploads of the whole bucket: AWS knows no s3:prefix for that action, and a condition
    on it would never be met.
    """
    prefixes = _model_prefixes(prefix, models)
    statements = [
        _list(bucket_arn, prefixes),
        allow(["s3:ListBucketMultipartUploads"], bucket_arn),
        allow(
            ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"],
            _objects(bucket_arn, prefixes),
        ),
    ]
    return document(*statements, *([allow(["kms:Decrypt", "kms:GenerateDataKey"], key)] if key is not None else []))


def tls_only(bucket: Any) -> Document:
    arn = Sub("arn:${AWS::Partition}:s3:::${Bucket}", Bucket=bucket)
    return document(
        {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": [arn, Join("", [arn, "/*"])],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
    )


def key_administration() -> Document:
    """The account's own IAM decides who uses and administers the key: AWS's default key policy."""
    root = Sub("arn:${AWS::Partition}:iam::${AWS::AccountId}:root")
    return document({"Effect": "Allow", "Principal": {"AWS": root}, "Action": "kms:*", "Resource": "*"})


def external_secrets(stack: str) -> Document:
    arn = Sub(f"arn:${{AWS::Partition}}:secretsmanager:${{AWS::Region}}:${{AWS::AccountId}}:secret:{stack}/*")
    return document(allow(["secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"], arn))


def load_balancer_controller(cluster: str) -> Document:
    """What the controller's documentation asks for, less what this stack never uses (WAF, Shield, Cognito).

    Everything that changes or deletes is held to objects tagged with this cluster's name.
    """
    tag = "elbv2.k8s.aws/cluster"
    ours = {"StringEquals": {f"aws:ResourceTag/{tag}": cluster}}
    creating = {"StringEquals": {f"aws:RequestTag/{tag}": cluster}}
    elb = "elasticloadbalancing"
    ec2_arn = "arn:${AWS::Partition}:ec2:${AWS::Region}:${AWS::AccountId}"
    groups = Sub(f"{ec2_arn}:security-group/*")
    balancing = [
        Sub(f"arn:${{AWS::Partition}}:{elb}:${{AWS::Region}}:${{AWS::AccountId}}:{kind}/*")
        for kind in ("loadbalancer", "targetgroup")
    ]
    listening = [
        Sub(f"arn:${{AWS::Partition}}:{elb}:${{AWS::Region}}:${{AWS::AccountId}}:{kind}/*")
        for kind in (
            "loadbalancer/app",
            "loadbalancer/net",
            "listener/app",
            "listener/net",
            "listener-rule/app",
            "listener-rule/net",
        )
    ]
    describe = [
        *(
            f"ec2:Describe{what}"
            for what in (
                "AccountAttributes", "Addresses", "AvailabilityZones", "InternetGateways", "Vpcs", "VpcPeeringConnections",
                "Subnets", "SecurityGroups", "Instances", "NetworkInterfaces", "Tags", "RouteTables",
            )
        ),
        "ec2:GetSecurityGroupsForVpc",
        f"{elb}:Describe*",
        "acm:ListCertificates",
        "acm:DescribeCertificate",
        "iam:ListServerCertificates",
        "iam:GetServerCertificate",
    ]  # fmt: skip
    linked = {"StringEquals": {"iam:AWSServiceName": f"{elb}.amazonaws.com"}}
    return document(
        allow(describe, "*"),
        allow(["iam:CreateServiceLinkedRole"], "*", linked),
        allow(["ec2:CreateSecurityGroup"], [groups, Sub(f"{ec2_arn}:vpc/*")]),
        allow(
            ["ec2:CreateTags"],
            groups,
            {"StringEquals": {"ec2:CreateAction": "CreateSecurityGroup", f"aws:RequestTag/{tag}": cluster}},
        ),
        allow(["ec2:CreateTags", "ec2:DeleteTags", "ec2:DeleteSecurityGroup"], groups, ours),
        # also on the nodes' own group, which the controller opens to its load balancers
        allow(["ec2:AuthorizeSecurityGroupIngress", "ec2:RevokeSecurityGroupIngress"], groups),
        allow([f"{elb}:CreateLoadBalancer", f"{elb}:CreateTargetGroup"], "*", creating),
        allow([f"{elb}:CreateListener", f"{elb}:DeleteListener", f"{elb}:CreateRule", f"{elb}:DeleteRule"], listening),
        allow(
            [f"{elb}:AddTags"],
            [*balancing, *listening],
            {
                "StringEquals": {
                    f"{elb}:CreateAction": ["CreateTargetGroup", "CreateLoadBalancer", "CreateListener", "CreateRule"]
                }
            },
        ),
        allow([f"{elb}:AddTags", f"{elb}:RemoveTags"], [*balancing, *listening], ours),
        allow(
            [
                f"{elb}:{what}"
                for what in (
                    "ModifyLoadBalancerAttributes",
                    "SetIpAddressType",
                    "SetSecurityGroups",
                    "SetSubnets",
                    "DeleteLoadBalancer",
                    "ModifyTargetGroup",
                    "ModifyTargetGroupAttributes",
                    "DeleteTargetGroup",
                    "RegisterTargets",
                    "DeregisterTargets",
                )
            ],
            balancing,
            ours,
        ),
        allow(
            [
                f"{elb}:{what}"
                for what in (
                    "ModifyListener",
                    "ModifyListenerAttributes",
                    "AddListenerCertificates",
                    "RemoveListenerCertificates",
                    "ModifyRule",
                    "SetRulePriorities",
                )
            ],
            listening,
        ),
    )
