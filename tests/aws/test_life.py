"""The account half of a stack's life on the emulator: it shows our flow, and not whether AWS would accept the same."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from tests.aws.conftest import REGION, Emulator

from onecopy.config.schema import StackConfig
from onecopy.core.errors import CloudError, StackError
from onecopy.core.events import Event
from onecopy.targets.aws.session import Session
from onecopy.targets.aws.target import AwsTarget
from onecopy.targets.base import Plan

NAME = "demo"


def target(**aws: Any) -> AwsTarget:
    models = aws.pop("models", [{"name": "one"}])
    store = {"uri": aws.pop("store", None)}
    cluster = {"public_cidrs": ["198.51.100.7/32"], **aws.pop("cluster", {})}
    body = {
        "name": NAME,
        "target": "aws",
        "models": models,
        "store": store,
        "aws": {"workloads": False, "cluster": cluster, **aws},
    }
    return AwsTarget(StackConfig.model_validate(body), poll=0.1, session=session())


def session() -> Session:
    """One an account: boto3 takes a second to read the descriptions of its clients."""
    return _session(os.environ["AWS_ACCESS_KEY_ID"])


@functools.cache
def _session(account: str) -> Session:
    del account
    return Session(region=REGION, profile=None)


def client(service: str) -> Any:
    return session().client(service)


def apply(at: AwsTarget) -> Plan:
    plan = at.plan()
    at.apply(plan)
    return plan


def by_action(plan: Plan) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for change in plan.changes:
        found.setdefault(change.action, set()).add(change.name)
    found.pop("no-op", None)
    return found


def nothing_is_left() -> None:
    assert client("eks").list_clusters()["clusters"] == []
    assert [vpc for vpc in client("ec2").describe_vpcs()["Vpcs"] if not vpc["IsDefault"]] == []
    assert client("ec2").describe_addresses()["Addresses"] == []
    live = [g for g in client("ec2").describe_nat_gateways()["NatGateways"] if g["State"] != "deleted"]
    assert live == []
    assert [role["RoleName"] for role in client("iam").list_roles()["Roles"] if role["RoleName"].startswith(NAME)] == []
    assert client("logs").describe_log_groups()["logGroups"] == []


def test_from_nothing_to_a_stack_through_changes_and_back(aws: Emulator) -> None:
    plan = target().plan()
    assert plan.has_changes
    assert by_action(plan).keys() == {"create"}
    assert client("cloudformation").list_stacks()["StackSummaries"] == [] or all(
        stack["StackStatus"] == "DELETE_COMPLETE" for stack in client("cloudformation").list_stacks()["StackSummaries"]
    )
    nothing_is_left()
    assert plan.cost is not None
    assert (plan.cost.before_usd, plan.cost.usd > 1000) == (0, True)
    assert plan.duration is not None

    events: list[Event] = []
    target().apply(plan, report=events.append)
    assert any(event.item == "GpuNodes" and "create complete" in event.message for event in events)
    assert target().status().healthy
    outputs = target().outputs()["aws"]
    assert outputs["ClusterName"] == NAME
    assert outputs["StoreUri"].startswith(f"s3://{NAME}-models-")
    bucket = outputs["BucketName"]

    again = target().plan()
    assert not again.has_changes, again.text()
    target().apply(again)
    assert target().drift() == ()

    bigger = target(gpu_nodes={"instance_types": ["g6.12xlarge"]}).plan()
    # whether that is a replacement is AWS's verdict, which the emulator does not give
    assert [name for names in by_action(bigger).values() for name in names] == ["GpuNodes"]
    assert any("InstanceTypes" in field.path for change in bigger.changes for field in change.fields)
    assert bigger.cost is not None
    assert bigger.cost.usd - bigger.cost.before_usd == pytest.approx((4.6016 - 0.9776) * 730, abs=0.01)
    second = apply(target(models=[{"name": "one"}, {"name": "two"}]))
    # what refers to a role by its ARN is listed too: it may change with it
    assert {"ReaderRole", "WriterRole"} <= by_action(second)["update"]
    assert {"GpuNodes", "Cluster", "ModelBucket"}.isdisjoint(*by_action(second).values())

    client("s3").put_object(Bucket=bucket, Key="models/one/revisions/x/onecopy.json", Body=b"{}")
    gone = target().plan(destroy=True)
    assert gone.cost is not None
    assert gone.cost.usd == 0 < gone.cost.before_usd
    assert any(bucket in warning for warning in gone.warnings)
    target().destroy(gone)
    nothing_is_left()
    assert client("s3").list_objects_v2(Bucket=bucket)["KeyCount"] == 1

    comeback = target().plan()
    assert any(f"{bucket} is there already" in warning for warning in comeback.warnings)
    assert "ModelBucket" not in by_action(comeback)["create"]


def test_a_failed_create_tells_its_cause_and_goes_on_from_there(aws: Emulator) -> None:
    reason = "NodeCreationFailure: Instances failed to join the kubernetes cluster"
    aws.set(fail={"AWS::EKS::Nodegroup": reason})
    with pytest.raises(StackError, match=r"(Cpu|Gpu)Nodes \(AWS::EKS::Nodegroup\).*NodeCreationFailure") as caught:
        apply(target())
    assert "`onecopy apply` goes on" in (caught.value.hint or "")
    status = target().status()
    assert not status.healthy
    assert status.parts[0].health == "failed"
    made = client("eks").describe_cluster(name=NAME)["cluster"]["createdAt"]

    aws.set()
    apply(target())
    assert target().status().healthy
    assert client("eks").describe_cluster(name=NAME)["cluster"]["createdAt"] == made
    assert len(client("eks").list_nodegroups(clusterName=NAME)["nodegroups"]) == 2


def test_a_failed_create_is_removed_by_one_command(aws: Emulator) -> None:
    aws.set(fail={"AWS::EC2::NatGateway": "AddressLimitExceeded: The maximum number of addresses has been reached."})
    with pytest.raises(StackError, match="NatGateway1") as caught:
        apply(target())
    assert "Service Quotas" in (caught.value.hint or "")
    aws.set()
    target().destroy(target().plan(destroy=True))
    nothing_is_left()


def test_a_failed_change_leaves_what_ran_before(aws: Emulator) -> None:
    apply(target())
    aws.set(fail={"AWS::EKS::Nodegroup": "InsufficientInstanceCapacity: none left"})
    with pytest.raises(StackError, match=r"GpuNodes.*InsufficientInstanceCapacity"):
        apply(target(gpu_nodes={"instance_types": ["g5.2xlarge"]}))
    aws.set()
    assert target().status().healthy
    assert not target().plan().has_changes


def interrupting(events: list[Event]) -> Callable[[Event], None]:
    """Ctrl-C at the first progress that is shown."""

    def report(event: Event) -> None:
        events.append(event)
        if event.state == "progress":
            raise KeyboardInterrupt

    return report


def rested() -> None:
    deadline = time.monotonic() + 30
    while (state := target().stacks.read()) is not None and state.in_progress:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ctrl_c_ends_the_watching_and_says_how_to_go_on(aws: Emulator) -> None:
    events: list[Event] = []
    with pytest.raises(KeyboardInterrupt):
        target().apply(target().plan(), report=interrupting(events))
    (last,) = (event for event in events if event.state == "warning")
    assert "AWS goes on with demo" in last.message
    assert "`onecopy apply` goes on" in last.message
    rested()
    apply(target())
    assert target().status().healthy
    assert not target().plan().has_changes

    events = []
    with pytest.raises(KeyboardInterrupt):
        target().destroy(target().plan(destroy=True), report=interrupting(events))
    assert any("`onecopy destroy` goes on" in event.message for event in events)
    rested()
    target().destroy(target().plan(destroy=True))
    nothing_is_left()


def test_a_cluster_that_does_not_answer_does_not_bar_the_change_that_lets_us_in(
    aws: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No API server stands behind the emulator's endpoint here, as for somebody whose address is not let in."""
    apply(target())
    monkeypatch.setenv("ONECOPY_HELM", "no-such-helm")
    with pytest.raises(CloudError, match="no Helm: no-such-helm; install helm"):
        target(workloads=True).plan()
    monkeypatch.setenv("ONECOPY_HELM", "true")  # it is not come to
    moved = target(workloads=True, cluster={"public_cidrs": ["198.51.100.9/32"]})
    plan = moved.plan()
    assert "Cluster" in by_action(plan)["update"]
    assert any("is planned once it answers" in warning for warning in plan.warnings)
    with pytest.raises(CloudError, match="no answer from the cluster"):
        moved.apply(plan)
    vpc = client("eks").describe_cluster(name=NAME)["cluster"]["resourcesVpcConfig"]
    assert vpc["publicAccessCidrs"] == ["198.51.100.9/32"]
    with pytest.raises(CloudError, match="no answer from the cluster"):
        moved.plan()
    status = moved.status()
    assert [(part.kind, part.health) for part in status.parts] == [
        ("CloudFormation stack", "ready"), ("EKS cluster", "failed"),
    ]  # fmt: skip
    assert "aws.cluster.public_cidrs" in (status.parts[1].reason or "")
    sets = client("cloudformation").list_change_sets(StackName=NAME)["Summaries"]
    assert [s for s in sets if s["ExecutionStatus"] == "AVAILABLE"] == [], (
        "a plan that failed leaves nothing to execute"
    )


def test_a_stale_plan_is_refused(aws: Emulator) -> None:
    before = target().plan()
    apply(target())
    with pytest.raises(StackError, match="stale"):
        target().apply(before)
    now = target().plan()
    with pytest.raises(StackError, match="stale"):
        target(models=[{"name": "one"}, {"name": "two"}]).apply(now)
    apply(target(models=[{"name": "one"}, {"name": "two"}]))
    with pytest.raises(StackError, match="stale"):
        target().apply(now)
    sets = client("cloudformation").list_change_sets(StackName=NAME)["Summaries"]
    assert [s for s in sets if s["ExecutionStatus"] == "AVAILABLE"] == [], "a refused plan leaves nothing to execute"


def test_a_stack_of_somebody_else_is_left_alone(aws: Emulator) -> None:
    topic = '{"Resources":{"T":{"Type":"AWS::SNS::Topic"}}}'
    client("cloudformation").create_stack(StackName=NAME, TemplateBody=topic)
    client("cloudformation").get_waiter("stack_create_complete").wait(StackName=NAME, WaiterConfig={"Delay": 1})
    for call in (target().plan, lambda: target().plan(destroy=True)):
        with pytest.raises(StackError, match="not ours"):
            call()


def _bucket_of_another(monkeypatch: pytest.MonkeyPatch) -> AwsTarget:
    other = boto3.client("s3", region_name="us-east-1", aws_access_key_id="999999999999", aws_secret_access_key="x")
    other.create_bucket(Bucket="taken-by-another")
    return target(store="s3://taken-by-another/models")


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda _: target(gpu_nodes={"instance_types": ["g6e.xlarge"]}), "g6e.xlarge is not offered"),
        (lambda _: target(cluster={"version": "1.99"}), "does not offer 1.99"),
        (lambda _: target(addons={"versions": {"coredns": "v0.1.0-eksbuild.1"}}), "coredns v0.1.0-eksbuild.1 is not for"),
        (_bucket_of_another, "belongs to another account"),
        (lambda _: target(network={"vpc_id": "vpc-0a1b2c3d", "private_subnets": ["subnet-0a1b2c3d", "subnet-0a1b2c3e"]}), "subnet-0a1b2c3"),
    ],
)  # fmt: skip
def test_preflight(aws: Emulator, monkeypatch: pytest.MonkeyPatch, made: Callable[[Any], AwsTarget], told: str) -> None:
    """What is certain to fail is an error before anything is made; what may not be asked is a warning."""
    at = made(monkeypatch)
    with pytest.raises(CloudError, match=told):
        at.plan()
    nothing_is_left()


def test_load_balancers_that_a_controller_left_are_found_and_removed(aws: Emulator) -> None:
    apply(target())
    subnets = client("ec2").describe_subnets()["Subnets"]
    ours = [s["SubnetId"] for s in subnets if any(t["Value"] == f"{NAME}-public-1" for t in s.get("Tags", []))]
    tags = [{"Key": "elbv2.k8s.aws/cluster", "Value": NAME}]
    client("elbv2").create_load_balancer(Name="k8s-left", Subnets=ours, Tags=tags)
    client("elbv2").create_load_balancer(Name="of-another", Subnets=ours)
    events: list[Event] = []
    target().destroy(target().plan(destroy=True), report=events.append)
    left = [balancer["LoadBalancerName"] for balancer in client("elbv2").describe_load_balancers()["LoadBalancers"]]
    assert left == ["of-another"]
    assert any("deleted load balancer" in event.message for event in events)
    client("logs").create_log_group(logGroupName=f"/aws/eks/{NAME}/cluster")  # as EKS does, late
    with pytest.raises(CloudError, match="orphans --delete"):
        target().plan()
    target().destroy(target().plan(destroy=True))
    nothing_is_left()


def test_every_kind_of_orphan_is_named_and_removed_and_nothing_else(aws: Emulator) -> None:
    """As controllers leave them: tagged with the cluster's name. The like of another cluster stays."""
    ec2 = client("ec2")
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    subnet = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"][0]
    made: dict[str, str] = {}
    for owner in (NAME, "another"):
        kept = made if owner == NAME else {}
        volume_tag = [{"Key": f"kubernetes.io/cluster/{owner}", "Value": "owned"}]
        volume = ec2.create_volume(
            Size=1, AvailabilityZone=subnet["AvailabilityZone"],
            TagSpecifications=[{"ResourceType": "volume", "Tags": volume_tag}],
        )  # fmt: skip
        kept["volume"] = volume["VolumeId"]
        group = ec2.create_security_group(GroupName=f"k8s-{owner}", Description="left", VpcId=vpc)["GroupId"]
        ec2.create_tags(Resources=[group], Tags=[{"Key": "elbv2.k8s.aws/cluster", "Value": owner}])
        kept["security group"] = group
        interface = ec2.create_network_interface(SubnetId=subnet["SubnetId"])["NetworkInterface"]["NetworkInterfaceId"]
        ec2.create_tags(Resources=[interface], Tags=[{"Key": "cluster.k8s.amazonaws.com/name", "Value": owner}])
        kept["network interface"] = interface
        client("logs").create_log_group(logGroupName=f"/aws/eks/{owner}/cluster")
        kept["log group"] = f"/aws/eks/{owner}/cluster"
    found = target().orphans.find(vpc=vpc)
    assert {orphan.kind: orphan.id for orphan in found} == made
    assert all(NAME in orphan.why or "cluster" in orphan.why for orphan in found)
    assert target().orphans.delete(found, report=lambda event: None) == []
    assert target().orphans.find(vpc=vpc) == []
    assert "k8s-another" in {g["GroupName"] for g in ec2.describe_security_groups()["SecurityGroups"]}
    assert len(ec2.describe_volumes()["Volumes"]) == 1


def test_what_is_rendered_deploys_as_it_is_and_is_taken_up(aws: Emulator, tmp_path: Path) -> None:
    """As the console does it: the file, and the acknowledgement that roles are made. Then onecopy knows the stack."""
    (template,) = target().render(tmp_path).files
    client("cloudformation").create_stack(
        StackName=NAME, TemplateBody=template.read_text(), Capabilities=["CAPABILITY_IAM"]
    )
    client("cloudformation").get_waiter("stack_create_complete").wait(StackName=NAME, WaiterConfig={"Delay": 1})
    assert target().status().healthy
    assert target().outputs()["aws"]["ClusterName"] == NAME
    target().destroy(target().plan(destroy=True))
    nothing_is_left()


def test_render_needs_no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    rendered = target().render(tmp_path)
    assert [path.name for path in rendered.files] == ["template.json"]
    assert rendered.files[0].stat().st_size < 51_200, "the console takes it as it is"
