"""What is asked of an account before anything is made: each refusal, with its fix, on the emulator with IAM enforced."""

from __future__ import annotations

import fnmatch
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from cfnlint.schema import PROVIDER_SCHEMA_MANAGER
from tests.aws.conftest import REGION, Emulator
from tests.aws.test_life import NAME, apply, client, target
from tests.aws.test_template import CASES, build

from onecopy.core.errors import CloudError
from onecopy.targets.aws import preflight
from onecopy.targets.aws.inputs import make_inputs
from onecopy.targets.aws.permissions import operator_policy
from onecopy.targets.aws.session import Session
from onecopy.targets.aws.target import AwsTarget
from onecopy.targets.preflight import Finding


def caller(policy: dict[str, Any], name: str = "operator") -> Session:
    """A session of a user who has this policy and no more."""
    iam = client("iam")
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="all", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    made = Session(region=REGION, profile=None)
    made._boto = boto3.session.Session(key["AccessKeyId"], key["SecretAccessKey"], region_name=REGION)
    return made


def seen_by(session: Session, **aws: Any) -> AwsTarget:
    return AwsTarget(target(**aws).config, poll=0.1, session=session)


def policy() -> dict[str, Any]:
    return operator_policy(NAME, f"{NAME}-models-*")


def finding(at: AwsTarget, check: str, *, level: str = "problem") -> Finding:
    found = [f for f in at.examine() if f.check == check and f.level == level]
    assert found, [(f.check, f.level, f.message) for f in at.examine()]
    return found[0]


def test_the_printed_policy_is_enough_for_a_whole_life(aws: Emulator) -> None:
    """For the calls of ours, and for IAM's simulator; whether AWS's handlers need more is the next test's."""
    operator = caller(policy())
    assert finding(seen_by(operator), "permissions", level="ok").message.endswith("every action")
    at = seen_by(operator)
    at.apply(at.plan())
    assert at.status().healthy
    assert at.drift() == ()
    at.destroy(at.plan(destroy=True))
    assert client("eks").list_clusters()["clusters"] == []


# Of features that no template of ours sets
UNUSED = (
    "*:List*", "ec2:AcceptAddressTransfer", "ec2:*NatGatewayAddress", "ec2:*SubnetCidrBlock", "ec2:*VpnGateway",
    "ec2:CreateVpcEncryptionControl", "ec2:ModifyVpcTenancy", "vpc-lattice:*", "vpce:*", "iam:*InstanceProfile",
    "iam:*RolePermissionsBoundary", "eks:ActivateCertificateAuthority", "kms:DisableKey*", "kms:EnableKey",
    "logs:*DataProtectionPolicy", "logs:CreateLogDelivery", "logs:*ResourcePolicy", "logs:*IndexPolicy",
    "logs:PutBearerTokenAuthentication", "logs:*KmsKey", "logs:PutLogGroupDeletionProtection", "firehose:*",
    "s3:REST.PUT.OBJECT", "s3:*Abac", "s3:*CORS", "s3:*Analytics*", "s3:*Inventory*", "s3:*Metrics*", "s3:*Notification",
    "s3:*Replication*", "s3:*Website*", "s3:*Accelerate*", "s3:*Acl", "s3:*ObjectLock*", "s3:*Logging",
    "s3:*IntelligentTiering*", "s3:*MetadataTable*", "s3:*Metadata*", "s3tables:*", "s3:DeleteObject",
    "s3:DeleteBucket*",  # the bucket is retained
)  # fmt: skip


def test_the_printed_policy_has_what_cloudformations_handlers_ask_for() -> None:
    """AWS's own schemas name the permissions of each resource type's handlers."""
    granted = [a for s in operator_policy(NAME, "b", irsa=True)["Statement"] for a in _actions(s)]
    types = {resource["Type"] for case in CASES.values() for resource in build(*case)["Resources"].values()}
    lacking: set[tuple[str, str]] = set()
    for kind in types:
        handlers = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", kind).schema["handlers"]
        asked = {
            p for work in ("create", "read", "update", "delete") for p in handlers.get(work, {}).get("permissions", [])
        }
        lacking |= {
            (kind, action)
            for action in asked
            if not any(fnmatch.fnmatch(action.lower(), pattern.lower()) for pattern in granted)
            and not any(fnmatch.fnmatchcase(action, pattern) for pattern in UNUSED)
        }
    assert lacking == set()
    assert len(types) > 20


def _actions(statement: dict[str, Any]) -> list[str]:
    return statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]


def test_what_the_caller_may_not_do_is_told_before_anything_is_made(aws: Emulator) -> None:
    less = policy()
    less["Statement"] = [s for s in less["Statement"] if "eks:CreateCluster" not in _actions(s)]
    at = seen_by(caller(less))
    told = finding(at, "permissions", level="warning")
    assert "eks:CreateCluster" in told.message
    assert "onecopy aws policy" in (told.fix or "")
    assert any("eks:CreateCluster" in warning for warning in at.plan().warnings)

    denied = policy()
    denied["Statement"].append({"Effect": "Deny", "Action": "ec2:CreateVpc", "Resource": "*"})
    with pytest.raises(CloudError, match="a policy denies ec2:CreateVpc"):
        seen_by(caller(denied, "denied")).plan()

    silent = policy()
    silent["Statement"].append({"Effect": "Deny", "Action": "iam:SimulatePrincipalPolicy", "Resource": "*"})
    told = finding(seen_by(caller(silent, "silent")), "permissions", level="warning")
    assert told.message == "permissions not checked: iam:SimulatePrincipalPolicy is not permitted"


@pytest.mark.parametrize(
    ("quotas", "settings", "told"),
    [
        (
            {"L-DB2E81BA": 4},
            {},
            r"no room for 1 × g6.2xlarge \(8 vCPUs, on-demand\) beside 0 of 4 in use.*Service Quotas",
        ),
        ({"L-3819A6DF": 0}, {"gpu_nodes": {"capacity": "spot"}}, r"g6.2xlarge \(8 vCPUs, spot\) beside 0 of 0"),
        ({"L-417A185B": 0}, {"gpu_nodes": {"instance_types": ["p4d.24xlarge"]}}, "p4d.24xlarge"),
        ({"L-0263D0A3": 2}, {"network": {"nat": "per-zone"}}, "no room for 3 Elastic IPs beside 0 of 2 in use"),
        ({"L-F678F1CE": 1}, {}, "no room for one more VPC beside 1 of 1"),
    ],
)
def test_a_quota_that_is_too_small_is_a_problem(
    aws: Emulator, quotas: dict[str, int], settings: dict[str, Any], told: str
) -> None:
    aws.set(quotas=quotas)
    with pytest.raises(CloudError, match=f"(?s){told}"):
        target(**settings).plan()


def test_instances_that_run_already_count_against_the_quota(aws: Emulator) -> None:
    aws.set(quotas={"L-DB2E81BA": 8})
    assert target().plan().has_changes
    client("ec2").run_instances(ImageId="ami-12345678", InstanceType="g6.2xlarge", MinCount=1, MaxCount=1)
    with pytest.raises(CloudError, match="beside 8 of 8 in use"):
        target().plan()


def test_a_quota_that_ends_below_the_most_nodes_is_a_warning(aws: Emulator) -> None:
    aws.set(quotas={"L-DB2E81BA": 8})
    plan = target(gpu_nodes={"max": 2}).plan()
    assert any("does not reach to max = 2" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("models", "gpu", "level", "told"),
    [
        ([{"name": "one"}], {}, "ok", "2 replicas want 2 cards, 1 × g6.2xlarge offer 2, each shared by 2"),
        ([{"name": "one", "replicas": 9}], {}, "problem", "9 replicas want 9 cards, and 1 × g6.2xlarge offer 1"),
        ([{"name": "one", "replicas": 9}], {"max": 9}, "warning", "until an autoscaler of yours adds nodes"),
    ],
)
def test_there_is_a_card_for_every_replica(
    aws: Emulator,
    monkeypatch: pytest.MonkeyPatch,
    models: list[dict[str, Any]],
    gpu: dict[str, Any],
    level: str,
    told: str,
) -> None:
    monkeypatch.setenv("ONECOPY_HELM", "true")
    assert told in finding(target(models=models, gpu_nodes=gpu, workloads=True), "cards", level=level).message


def test_settings_that_an_add_on_does_not_know_are_told(aws: Emulator) -> None:
    """The emulator's schema of cert-manager knows no webhook.securePort, which Calico needs."""
    with pytest.raises(CloudError, match=r"cert-manager v1.9.0-eksbuild.2 does not take webhook.securePort"):
        target(cluster={"cni": "calico"}, addons={"cert_manager": True}, workloads=True).plan()


def test_a_type_that_is_changed_to_must_be_offered_in_the_stacks_zones(aws: Emulator) -> None:
    apply(target())
    with pytest.raises(CloudError, match=r"g6e\.2xlarge is not offered"):
        target(gpu_nodes={"instance_types": ["g6e.2xlarge"]}).plan()
    aws.set(quotas={"L-DB2E81BA": 4})
    with pytest.raises(CloudError, match=r"no room for 1 × g6\.12xlarge"):
        target(gpu_nodes={"instance_types": ["g6.12xlarge"]}).plan()


BLOCK = "cr-0123456789abcdef0"
HELD = {"instanceType": "p5.48xlarge", "availabilityZone": f"{REGION}c", "totalInstanceCount": 2, "state": "active"}


def reserved(**more: Any) -> AwsTarget:
    gpu = {"capacity": "capacity-block", "capacity_reservation": BLOCK, "instance_types": ["p5.48xlarge"], **more}
    return target(gpu_nodes=gpu)


def test_the_nodes_of_a_capacity_block_start_in_its_zone(aws: Emulator) -> None:
    aws.set(reservations={BLOCK: HELD})
    apply(reserved())
    groups = client("eks").list_nodegroups(clusterName=NAME)["nodegroups"]
    subnets = {s["SubnetId"]: s["AvailabilityZone"] for s in client("ec2").describe_subnets()["Subnets"]}
    groups = [client("eks").describe_nodegroup(clusterName=NAME, nodegroupName=n)["nodegroup"] for n in groups]
    (gpu,) = (group for group in groups if group.get("taints"))
    assert [subnets[subnet] for subnet in gpu["subnets"]] == [f"{REGION}c"]


@pytest.mark.parametrize(
    ("held", "more", "told"),
    [
        ({"instanceType": "p5e.48xlarge"}, {}, r"p5e\.48xlarge in us-east-2c, and the nodes are p5\.48xlarge"),
        ({}, {"desired": 3, "max": 3}, "and 3 nodes are wanted; lower aws.gpu_nodes.desired"),
        ({"state": "expired"}, {}, "is expired"),
    ],
)
def test_a_capacity_block_that_would_not_do_is_refused(
    aws: Emulator, held: dict[str, Any], more: dict[str, Any], told: str
) -> None:
    aws.set(reservations={BLOCK: {**HELD, **held}})
    with pytest.raises(CloudError, match=told):
        reserved(**more).plan()
    aws.set()
    with pytest.raises(CloudError, match=f"there is no {BLOCK} here"):
        reserved().plan()


def test_a_bucket_in_another_region_is_a_problem(aws: Emulator) -> None:
    elsewhere = boto3.client("s3", region_name="eu-west-1")
    elsewhere.create_bucket(Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    told = finding(target(store="s3://far-away/models"), "bucket")
    assert "is in eu-west-1" in told.message


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A server that tells who asks his address, as AWS's does; the last of the list is told."""
    told = ["203.0.113.9"]

    class Tell(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"{told[-1]}\n".encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Tell) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(preflight, "ADDRESS_SERVICE", f"http://127.0.0.1:{server.server_port}")
        yield told
        server.shutdown()


def test_the_api_server_is_open_to_whoever_made_the_stack_and_says_when_that_moved(
    aws: Emulator, addresses: list[str]
) -> None:
    at = target(cluster={"public_cidrs": []})
    at.apply(at.plan())
    vpc = client("eks").describe_cluster(name=NAME)["cluster"]["resourcesVpcConfig"]
    assert vpc["publicAccessCidrs"] == ["203.0.113.9/32"]
    assert finding(at, "identity", level="ok")
    addresses.append("203.0.113.77")
    plan = at.plan()
    assert not plan.has_changes, "it is not opened to another by itself"
    assert any('public_cidrs = ["203.0.113.9/32", "203.0.113.77/32"]' in warning for warning in plan.warnings)
    addresses.append("<html>a captive portal")
    checks = preflight.Preflight(at.session, make_inputs(at.config))
    checks.new_stack()
    with pytest.raises(CloudError, match="public address is not known"):
        checks.report.raise_problems()


class Vpc:
    """Somebody's VPC, as a platform team makes one: two private subnets with a way out, public ones, an S3 endpoint."""

    def __init__(self) -> None:
        self.ec2 = client("ec2")
        self.id = self.ec2.create_vpc(CidrBlock="10.60.0.0/16")["Vpc"]["VpcId"]
        for name in ("EnableDnsSupport", "EnableDnsHostnames"):
            self.ec2.modify_vpc_attribute(VpcId=self.id, **{name: {"Value": True}})
        gateway = self.ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
        self.ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=self.id)
        self.public = [self.subnet(f"10.60.{i}.0/24", zone) for i, zone in enumerate("bc")]
        self.private = [self.subnet(f"10.60.{16 * (i + 1)}.0/20", zone) for i, zone in enumerate("bc")]
        self.outside = self.table(self.public, GatewayId=gateway)
        address = self.ec2.allocate_address(Domain="vpc")["AllocationId"]
        nat = self.ec2.create_nat_gateway(SubnetId=self.public[0], AllocationId=address)["NatGateway"]["NatGatewayId"]
        self.inside = self.table(self.private, NatGatewayId=nat)

    def subnet(self, cidr: str, zone: str) -> str:
        made = self.ec2.create_subnet(VpcId=self.id, CidrBlock=cidr, AvailabilityZone=f"{REGION}{zone}")
        return made["Subnet"]["SubnetId"]

    def table(self, subnets: list[str], **way: str) -> str:
        table = self.ec2.create_route_table(VpcId=self.id)["RouteTable"]["RouteTableId"]
        if way:
            self.ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", **way)
        for subnet in subnets:
            self.ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)
        return table

    def endpoint(self) -> None:
        self.ec2.create_vpc_endpoint(
            VpcId=self.id, ServiceName=f"com.amazonaws.{REGION}.s3", RouteTableIds=[self.inside]
        )

    def settings(self, **more: Any) -> dict[str, Any]:
        return {"vpc_id": self.id, "private_subnets": self.private, **more}


def test_an_existing_vpc_is_used_and_left_as_it_was(aws: Emulator) -> None:
    vpc = Vpc()
    before = {s["SubnetId"] for s in client("ec2").describe_subnets()["Subnets"]}
    at = target(network=vpc.settings(s3_route_tables=[vpc.inside]))
    plan = at.plan()
    made = {(change.kind, change.name) for change in plan.changes}
    assert ("EC2 VPCEndpoint", "S3Endpoint") in made
    assert not {"EC2 VPC", "EC2 Subnet", "EC2 NatGateway"} & {kind for kind, _ in made}
    assert [w for w in plan.warnings if "subnet-" in w] == []
    at.apply(plan)
    assert not at.plan().has_changes
    assert set(client("eks").describe_cluster(name=NAME)["cluster"]["resourcesVpcConfig"]["subnetIds"]) == set(
        vpc.private
    )
    endpoints = client("ec2").describe_vpc_endpoints()["VpcEndpoints"]
    assert [e["RouteTableIds"] for e in endpoints if e["VpcId"] == vpc.id] == [[vpc.inside]]
    at.destroy(at.plan(destroy=True))
    assert {s["SubnetId"] for s in client("ec2").describe_subnets()["Subnets"]} == before
    assert vpc.id in {v["VpcId"] for v in client("ec2").describe_vpcs()["Vpcs"]}
    assert client("ec2").describe_nat_gateways()["NatGateways"][0]["State"] == "available"


def _other_vpc(vpc: Vpc) -> dict[str, Any]:
    other = vpc.ec2.create_vpc(CidrBlock="10.70.0.0/16")["Vpc"]["VpcId"]
    alien = vpc.ec2.create_subnet(VpcId=other, CidrBlock="10.70.0.0/20", AvailabilityZone=f"{REGION}b")
    return vpc.settings(private_subnets=[alien["Subnet"]["SubnetId"], vpc.private[1]])


SMALL = "10.60.200.0/27"


def _small(vpc: Vpc) -> dict[str, Any]:
    small = vpc.subnet(SMALL, "c")
    vpc.ec2.associate_route_table(RouteTableId=vpc.inside, SubnetId=small)
    return vpc.settings(private_subnets=[vpc.private[0], small])


def _one_zone(vpc: Vpc) -> dict[str, Any]:
    return vpc.settings(private_subnets=[vpc.private[0], vpc.public[0]])


def _no_way_out(vpc: Vpc) -> dict[str, Any]:
    lonely = vpc.subnet("10.60.96.0/20", "c")
    vpc.table([lonely])
    return vpc.settings(private_subnets=[vpc.private[0], lonely])


def _no_gpu(vpc: Vpc) -> dict[str, Any]:
    far = vpc.subnet("10.60.112.0/20", "a")  # the emulator offers GPUs in b and c
    vpc.ec2.associate_route_table(RouteTableId=vpc.inside, SubnetId=far)
    return vpc.settings(private_subnets=[vpc.private[0], far])


def _no_names(vpc: Vpc) -> dict[str, Any]:
    vpc.ec2.modify_vpc_attribute(VpcId=vpc.id, EnableDnsHostnames={"Value": False})
    return vpc.settings()


def _second_endpoint(vpc: Vpc) -> dict[str, Any]:
    vpc.endpoint()
    return vpc.settings(s3_route_tables=[vpc.inside])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (_other_vpc, r"is in vpc-\w+, not in vpc-\w+; name subnets of one VPC"),
        (_small, r"has 2\d free addresses: 64 are the least; name a larger subnet"),
        (_one_zone, "are in one zone .*: EKS needs two"),
        (_no_way_out, "has no way out .*; route 0.0.0.0/0 to a NAT gateway"),
        (_no_gpu, r"no g6.2xlarge in the zones of subnet-\w+; name subnets in us-east-2b, us-east-2c"),
        (_no_names, "enableDnsHostnames off"),
        (_second_endpoint, "has an S3 gateway endpoint already; take it out"),
        (lambda vpc: vpc.settings(s3_route_tables=["rtb-0a1b2c3d"]), "rtb-0a1b2c3d is no route table of this VPC"),
    ],
)
def test_an_existing_vpc_that_would_not_do_is_refused(
    aws: Emulator, given: Callable[[Vpc], dict[str, Any]], told: str
) -> None:
    settings = given(Vpc())
    aws.set(free={SMALL: 27})
    with pytest.raises(CloudError, match=told):
        target(network=settings).plan()
    assert client("eks").list_clusters()["clusters"] == []


def test_an_existing_vpc_that_costs_or_hides_something_is_warned_of(aws: Emulator) -> None:
    vpc = Vpc()
    told = target(network=vpc.settings()).plan().warnings
    assert sum(f"billed through NAT; add {vpc.inside} to aws.network.s3_route_tables" in text for text in told) == 2
    public = target(network=vpc.settings(private_subnets=vpc.public)).plan().warnings
    assert sum("is a public subnet" in text for text in public) == 2
    vpc.endpoint()
    assert [text for text in target(network=vpc.settings()).plan().warnings if "subnet-" in text] == []
