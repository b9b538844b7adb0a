"""Rules on a finished template that cfn-lint does not know: what must be encrypted, closed, tagged and bounded.

They read the JSON that is sent to AWS and nothing of the code that made it, so they hold for any way of making it.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

Template = dict[str, Any]
# EKS's own add-ons of which this project has read the documentation; a name that is not here is a typing error
ADDONS = {
    "vpc-cni", "kube-proxy", "coredns", "eks-pod-identity-agent", "metrics-server", "cert-manager",
    "aws-mountpoint-s3-csi-driver", "aws-ebs-csi-driver",
}  # fmt: skip
SECRET = re.compile(r"hf_[A-Za-z0-9]{8,}|AKIA[0-9A-Z]{16}|(?i:password|secret_?key|token)\"\s*:\s*\"[^\"$]+\"")


def of_type(template: Template, kind: str) -> dict[str, dict[str, Any]]:
    return {
        title: resource["Properties"] for title, resource in template["Resources"].items() if resource["Type"] == kind
    }


def statements(document: Any) -> list[dict[str, Any]]:
    if "Fn::Sub" in document:
        document = json.loads(document["Fn::Sub"][0])
    return document["Statement"]


def findings(template: Template) -> list[str]:
    return [
        *_addons(template),
        *_nodes(template),
        *_network(template),
        *_storage(template),
        *_cluster(template),
        *_roles(template),
        *_references(template),
    ]


def _addons(template: Template) -> Iterator[str]:
    for title, addon in of_type(template, "AWS::EKS::Addon").items():
        if addon["AddonName"] not in ADDONS:
            yield f"{title}: unknown add-on {addon['AddonName']}"
        if not re.fullmatch(r"v\d+\.\d+\.\d+-eksbuild\.\d+", addon.get("AddonVersion", "v1.2.3-eksbuild.1")):
            yield f"{title}: odd version {addon['AddonVersion']}"


def _nodes(template: Template) -> Iterator[str]:
    for title, group in of_type(template, "AWS::EKS::Nodegroup").items():
        scaling = group["ScalingConfig"]
        if not scaling["MinSize"] <= scaling["DesiredSize"] <= scaling["MaxSize"]:
            yield f"{title}: sizes {scaling}"
        if "NodegroupName" in group:
            yield f"{title}: a fixed name makes a replacement fail"
        if group["AmiType"].endswith("NVIDIA") != any(t["Key"] == "nvidia.com/gpu" for t in group.get("Taints", [])):
            yield f"{title}: GPU nodes and only they are tainted"
        if not group["Subnets"]:
            yield f"{title}: no subnets"
    for title, launch in of_type(template, "AWS::EC2::LaunchTemplate").items():
        data = launch["LaunchTemplateData"]
        if data["MetadataOptions"] != {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}:
            yield f"{title}: instance metadata open to pods"
        for mapping in data["BlockDeviceMappings"]:
            if mapping["Ebs"].get("Encrypted") is not True or mapping["Ebs"]["VolumeType"] != "gp3":
                yield f"{title}: disk {mapping}"
        tagged = {
            s["ResourceType"] for s in data["TagSpecifications"] if any(t["Key"] == "onecopy:stack" for t in s["Tags"])
        }
        if not {"instance", "volume", "network-interface"} <= tagged:
            yield f"{title}: what it starts is not tagged"


def _network(template: Template) -> Iterator[str]:
    subnets = of_type(template, "AWS::EC2::Subnet")
    for (one, a), (two, b) in combinations(subnets.items(), 2):
        if ipaddress.ip_network(a["CidrBlock"]).overlaps(ipaddress.ip_network(b["CidrBlock"])):
            yield f"{one} overlaps {two}"
    for vpc in of_type(template, "AWS::EC2::VPC").values():
        whole = ipaddress.ip_network(vpc["CidrBlock"])
        for title, subnet in subnets.items():
            if not ipaddress.ip_network(subnet["CidrBlock"]).subnet_of(whole):  # type: ignore[arg-type]
                yield f"{title} is outside of the VPC"
        tables = {t for t in of_type(template, "AWS::EC2::RouteTable") if t.startswith("Private")}
        reached = {
            table["Ref"]
            for endpoint in of_type(template, "AWS::EC2::VPCEndpoint").values()
            for table in endpoint["RouteTableIds"]
        }
        if not tables or tables - reached:
            yield f"no S3 gateway endpoint on {tables - reached or 'any private route table'}"
    for title, subnet in subnets.items():
        if subnet.get("MapPublicIpOnLaunch"):
            yield f"{title}: gives out public addresses"


def _storage(template: Template) -> Iterator[str]:
    for title, bucket in of_type(template, "AWS::S3::Bucket").items():
        block = bucket["PublicAccessBlockConfiguration"]
        if [
            block.get(k) for k in ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
        ] != [True] * 4:
            yield f"{title}: public access is not blocked"
        if (
            template["Resources"][title].get("DeletionPolicy") != "Retain"
            or template["Resources"][title].get("UpdateReplacePolicy") != "Retain"
        ):
            yield f"{title}: models would be deleted"
        if bucket["VersioningConfiguration"] != {"Status": "Enabled"} or not bucket["BucketEncryption"]:
            yield f"{title}: versioning or encryption"
        if not any("AbortIncompleteMultipartUpload" in rule for rule in bucket["LifecycleConfiguration"]["Rules"]):
            yield f"{title}: abandoned uploads are kept"
        policies = [p for p in of_type(template, "AWS::S3::BucketPolicy").values() if p["Bucket"] == {"Ref": title}]
        if not any(
            s["Effect"] == "Deny" and s["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
            for p in policies
            for s in statements(p["PolicyDocument"])
        ):
            yield f"{title}: plain HTTP is let in"
        if any(s["Effect"] == "Allow" for p in policies for s in statements(p["PolicyDocument"])):
            yield f"{title}: its policy grants something"
    for title, key in of_type(template, "AWS::KMS::Key").items():
        if key["EnableKeyRotation"] is not True:
            yield f"{title}: is not rotated"


def _cluster(template: Template) -> Iterator[str]:
    for title, cluster in of_type(template, "AWS::EKS::Cluster").items():
        vpc = cluster["ResourcesVpcConfig"]
        cidrs = vpc.get("PublicAccessCidrs")
        if vpc["EndpointPublicAccess"] and not isinstance(cidrs, list):
            yield f"{title}: the API server is open to everyone"
        if cluster["AccessConfig"]["AuthenticationMode"] != "API" or cluster["BootstrapSelfManagedAddons"] is not False:
            yield f"{title}: access or bootstrap"
        if cluster["EncryptionConfig"][0]["Resources"] != ["secrets"]:
            yield f"{title}: secrets are not encrypted"
        if len(cluster["Logging"]["ClusterLogging"]["EnabledTypes"]) != 5:
            yield f"{title}: logs"


def _roles(template: Template) -> Iterator[str]:
    for title, role in of_type(template, "AWS::IAM::Role").items():
        if "RoleName" in role:
            yield f"{title}: a fixed name needs CAPABILITY_NAMED_IAM"
        for s in statements(role["AssumeRolePolicyDocument"]):
            if s["Principal"] == "*" or s["Principal"].get("AWS") == "*":
                yield f"{title}: anyone may take it"
            if "Federated" in s["Principal"] and "StringEquals" not in s.get("Condition", {}):
                yield f"{title}: any account of the cluster may take it"
        for policy in role.get("Policies", []):
            for s in statements(policy["PolicyDocument"]):
                actions = s["Action"]
                if "*" in actions or any(a.endswith(":*") for a in actions):
                    yield f"{title}: every action of a service"
                if title in ("ReaderRole", "WriterRole"):
                    yield from _data_statement(title, s)
                if title == "ExternalSecretsRole" and s["Resource"] == "*":
                    yield f"{title}: every secret"


def _data_statement(title: str, statement: dict[str, Any]) -> Iterator[str]:
    allowed = {"s3:ListBucket", "s3:GetObject", "kms:Decrypt"}
    if title == "WriterRole":
        allowed |= {
            "s3:ListBucketMultipartUploads", "s3:PutObject", "s3:AbortMultipartUpload",
            "s3:ListMultipartUploadParts", "kms:GenerateDataKey",
        }  # fmt: skip
    if extra := set(statement["Action"]) - allowed:
        yield f"{title}: {extra}"
    if statement["Resource"] == "*":
        yield f"{title}: every resource"
    lists = [a for a in statement["Action"] if a.startswith("s3:ListBucket")]
    if "s3:prefix" in json.dumps(statement.get("Condition", {})) and lists != ["s3:ListBucket"]:
        yield f"{title}: AWS knows s3:prefix for s3:ListBucket alone, {lists} would never be permitted"
    if "s3:ListBucket" in lists and not statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix"):
        yield f"{title}: lists the whole bucket"
    for pattern in statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", []):
        if pattern.count("/") < 2:
            yield f"{title}: lists more than a model: {pattern}"
    if not lists and not any(a.startswith("kms:") for a in statement["Action"]):
        for resource in statement["Resource"]:
            tail = resource["Fn::Join"][1][-1]
            if not re.fullmatch(r"/[^*]+/[^*/]+/\*", tail):
                yield f"{title}: objects beyond a model's prefix: {tail}"


def _references(template: Template) -> Iterator[str]:
    """What cfn-lint reports one by one: here for every template of the property test, in a millisecond."""
    known = {*template["Resources"], *template.get("Parameters", {})}
    for name in _names(template["Resources"]):
        if not name.startswith("AWS::") and name not in known:
            yield f"nothing is called {name}"
    if SECRET.search(json.dumps(template)):
        yield "a secret stands in the template"


def _names(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("Ref"), str):
            yield node["Ref"]
        if "Fn::GetAtt" in node:
            yield node["Fn::GetAtt"][0]
        waits = node.get("DependsOn", [])
        yield from [waits] if isinstance(waits, str) else waits
        for value in node.values():
            yield from _names(value)
    elif isinstance(node, list):
        for value in node:
            yield from _names(value)
