"""The template: cfn-lint finds nothing, our own rules neither, and each switch of the configuration does what it says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cfnlint.api import ManualArgs, lint
from cfnlint.schema import PROVIDER_SCHEMA_MANAGER
from tests.aws import rules

from onecopy.config.kubernetes import KubernetesConfig
from onecopy.config.schema import StackConfig
from onecopy.core.errors import ConfigError
from onecopy.storage.uri import StoreUri
from onecopy.targets.aws.inputs import Choices, make_inputs
from onecopy.targets.aws.template import MAX_BYTES, build_template, compact
from onecopy.targets.aws.workloads import cluster_config
from onecopy.targets.kubernetes import access, identity, models, releases, serving
from onecopy.targets.kubernetes.stack import make_stack

ZONES = ("us-east-2a", "us-east-2b", "us-east-2c")
EXISTING = {
    "vpc_id": "vpc-0a1b2c3d",
    "private_subnets": ["subnet-0a1b2c3a", "subnet-0a1b2c3b", "subnet-0a1b2c3c"],
    "s3_route_tables": ["rtb-0a1b2c3a"],
}
CERTIFICATE = {"alb.ingress.kubernetes.io/certificate-arn": "arn:aws:acm:us-east-2:123456789012:certificate/1"}
ADMIN = "arn:aws:iam::123456789012:role/Platform"
CASES: dict[str, tuple[dict[str, Any], Choices]] = {
    "defaults": ({}, Choices()),
    "chosen": ({}, Choices(ZONES, 2, ("198.51.100.7/32",), {"coredns": "v1.12.1-eksbuild.2"})),
    "calico, irsa, mount, kms": (
        {
            "aws": {
                "network": {"nat": "per-zone"},
                "cluster": {"cni": "calico", "admins": [ADMIN]},
                "bucket": {"encryption": "kms"},
                "addons": {"cert_manager": True, "ebs_csi": True, "external_secrets": True},
                "gpu_nodes": {"capacity": "capacity-block", "capacity_reservation": "cr-0123456789abcdef0"},
                "tags": {"team": "serving"},
            },
            "kubernetes": {"delivery": "mount", "identity": {"kind": "irsa"}},
        },
        Choices(),
    ),
    "existing VPC, adopted bucket, CPU only": (
        {
            "store": {"uri": "s3://my-models/llm"},
            "aws": {"network": EXISTING, "gpu_nodes": {"enabled": False}, "bucket": {"encryption": "kms"}},
            "kubernetes": {"delivery": "stream"},
        },
        Choices(create_bucket=False, bucket_key="arn:aws:kms:us-east-2:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"),
    ),
}  # fmt: skip
# W3010: a zone that was chosen because it offers the GPU has to be named
LINT = ManualArgs(regions=["us-east-2"], ignore_checks=["W3010"])


def build(config: dict[str, Any], choices: Choices | None = None) -> dict[str, Any]:
    return build_template(make_inputs(StackConfig.model_validate(config), choices))


@pytest.mark.parametrize("case", CASES)
def test_cfn_lint_and_our_rules_find_nothing(case: str) -> None:
    template = build(*CASES[case])
    assert [str(match) for match in lint(compact(template), config=LINT)] == []
    assert rules.findings(template) == []


def test_the_schemas_of_other_partitions_take_it_too() -> None:
    """One region of each partition, with a type that all of them have."""
    config, choices = CASES["calico, irsa, mount, kms"]
    gpu = {**config["aws"]["gpu_nodes"], "instance_types": ["g4dn.xlarge"]}
    template = build({**config, "aws": {**config["aws"], "gpu_nodes": gpu}}, choices)
    regions = ManualArgs(regions=["eu-west-1", "us-gov-west-1", "cn-north-1"], ignore_checks=["W3010"])
    assert [str(match) for match in lint(compact(template), config=regions)] == []


def test_cfn_lint_would_find_something() -> None:
    """The check above can fail: a wrong AMI type, a wrong property and a dangling reference are found."""
    template = build({})
    template["Resources"]["GpuNodes"]["Properties"]["AmiType"] = "AL2023_x86_64_NVIDEA"
    template["Resources"]["Vpc"]["Properties"]["CidrBlok"] = "10.0.0.0/16"
    template["Resources"]["CpuNodes"]["Properties"]["NodeRole"] = {"Ref": "NoSuchRole"}
    assert {match.rule.id for match in lint(compact(template), config=LINT)} >= {"E3030", "E3002"}
    assert any("NoSuchRole" in finding for finding in rules.findings(template))


def test_the_same_inputs_give_the_same_bytes() -> None:
    for config, choices in CASES.values():
        assert compact(build(config, choices)) == compact(build(config, choices))


def test_choices_are_read_back_from_the_template() -> None:
    choices = CASES["chosen"][1]
    stored = json.loads(compact(build({}, choices)))["Metadata"]["onecopy"]["choices"]
    assert Choices.from_dict(stored) == choices
    assert Choices.from_dict({**stored, "from a newer version": 1}) == choices


def test_without_an_address_the_api_server_is_private() -> None:
    assert build({})["Resources"]["Cluster"]["Properties"]["ResourcesVpcConfig"]["EndpointPublicAccess"] is False
    open_to = build({}, Choices(api_cidrs=("198.51.100.7/32",)))["Resources"]["Cluster"]["Properties"][
        "ResourcesVpcConfig"
    ]
    assert open_to["PublicAccessCidrs"] == ["198.51.100.7/32"]


def test_calico_means_no_aws_node_and_nodes_that_wait() -> None:
    template = build({"aws": {"cluster": {"cni": "calico"}}})
    addons = {addon["AddonName"] for addon in rules.of_type(template, "AWS::EKS::Addon").values()}
    assert "vpc-cni" not in addons
    node_role = template["Resources"]["NodeRole"]["Properties"]["ManagedPolicyArns"]
    assert not any("CNI" in str(arn) for arn in node_role)
    without = build({"aws": {"cluster": {"cni": "calico"}}}, Choices(nodes=False))
    assert {"CpuNodes", "GpuNodes", "CorednsAddon", "MetricsServerAddon"} <= set(template["Resources"]) - set(
        without["Resources"]
    )
    assert set(without["Resources"]) < set(template["Resources"])
    assert rules.findings(without) == []


def test_nodes_wait_for_the_pod_network_and_the_way_out() -> None:
    waits = set(build({})["Resources"]["GpuNodes"]["DependsOn"])
    assert {"VpcCniAddon", "KubeProxyAddon", "PrivateDefaultRoute1", "S3Endpoint"} <= waits


def test_gpu_nodes_stay_in_the_zones_that_offer_the_type() -> None:
    resources = build({}, Choices(zones=ZONES, gpu_zones=1))["Resources"]
    assert resources["GpuNodes"]["Properties"]["Subnets"] == [{"Ref": "PrivateSubnet1"}]
    assert len(resources["CpuNodes"]["Properties"]["Subnets"]) == 3


def test_a_second_model_adds_its_prefix_to_the_reader_alone() -> None:
    def objects(models: list[dict[str, str]]) -> list[str]:
        policy = build({"models": models})["Resources"]["ReaderRole"]["Properties"]["Policies"][0]["PolicyDocument"]
        return [
            r["Fn::Join"][1][-1] for s in policy["Statement"] if s["Action"] == ["s3:GetObject"] for r in s["Resource"]
        ]

    assert objects([{"name": "one"}]) == ["/models/one/*"]
    assert objects([{"name": "one"}, {"name": "two"}]) == ["/models/one/*", "/models/two/*"]


@pytest.mark.parametrize("partition", ["aws", "aws-us-gov", "aws-cn"])
def test_no_partition_is_written_out(partition: str) -> None:
    """Every ARN that the template makes takes AWS::Partition; the domain of a service takes AWS::URLSuffix."""
    for config, _ in (CASES["defaults"], CASES["calico, irsa, mount, kms"]):
        text = compact(build({**config, "aws": {**config.get("aws", {}), "cluster": {}}}))
        assert f'"arn:{partition}:' not in text
        assert "ec2.amazonaws.com" not in text


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"name": "Upper"}, "name"),
        ({"name": "1st"}, "name"),
        ({"name": "x" * 40}, "name"),
        ({"store": {"uri": "gs://bucket/models"}}, "store.uri"),
        ({"store": {"uri": "s3://bucket"}}, "store.uri"),
        ({"kubernetes": {"identity": {"kind": "workload-identity"}}}, "identity"),
        ({"aws": {"tags": {f"key-{i}": "v" * 250 for i in range(20)}, "cluster": {"admins": [ADMIN] * 90}}}, "bytes"),
    ],
)
def test_what_cannot_work_is_refused_before_any_call(config: dict[str, Any], named: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=named):
        build(config)


@pytest.mark.parametrize(
    "aws",
    [
        {"network": {"cidr": "10.20.0.0/24"}},
        {"network": {"cidr": "10.20.0.1/16"}},
        {"network": {"cidr": "172.20.0.0/16"}},
        {"network": {"cidr": "10.244.0.0/16"}, "cluster": {"cni": "calico"}},
        {"network": {"vpc_id": "vpc-0a1b2c3d", "private_subnets": ["subnet-0a1b2c3a"]}},
        {"network": {"private_subnets": ["subnet-0a1b2c3a", "subnet-0a1b2c3b"]}},
        {"network": {"zones": ["us-east-2a", "us-east-2a", "us-east-2b"]}},
        {"cluster": {"public_cidrs": ["0.0.0.0/0"]}},
        {"cluster": {"cni": "calico"}, "cpu_nodes": {"desired": 1}},
        {"cluster": {"cni": "calico"}, "addons": {"versions": {"vpc-cni": "v1.20.0-eksbuild.1"}}},
        {"addons": {"versions": {"core-dns": "v1.12.1-eksbuild.2"}}},
        {"gpu_nodes": {"instance_types": ["m7i.xlarge"]}},
        {"gpu_nodes": {"instance_types": ["g4ad.xlarge"]}},
        {"gpu_nodes": {"capacity": "capacity-block"}},
        {"gpu_nodes": {"min": 2, "desired": 1, "max": 3}},
        {"cpu_nodes": {"instance_types": ["m7g.xlarge"]}},
        {"cpu_nodes": {"min": 0}},
        {"tags": {"aws:x": "y"}},
        {"bucket": {"kms_key": "arn:aws:kms:us-east-2:123456789012:key/1"}},
    ],
)  # fmt: skip
def test_a_section_refuses_what_contradicts_itself(aws: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"(?s)."):
        StackConfig.model_validate({"aws": aws})


def test_the_largest_usual_template_is_far_below_the_limit() -> None:
    config, choices = CASES["calico, irsa, mount, kms"]
    models = [{"name": f"organisation-model-{i}-instruct"} for i in range(20)]
    assert len(compact(build({**config, "models": models}, choices))) < MAX_BYTES * 0.8


def test_a_role_stays_below_iams_limit_or_is_refused_before_any_call() -> None:
    def many(count: int) -> dict[str, Any]:
        return {"models": [{"name": f"organisation-model-{i:02}-70b-instruct"} for i in range(count)]}

    writer = build(many(30))["Resources"]["WriterRole"]["Properties"]["Policies"]
    assert 5_000 < len(compact({"policies": writer})) < 10_240
    with pytest.raises(ConfigError, match=r"models: the policy of \w+Role has about 1\d{4} characters"):
        build(many(60))


def test_what_cloudformation_does_not_tag_by_itself_is_tagged() -> None:
    """Its schemas say which types take the stack's tags; the launch template has its own way."""
    for case in CASES.values():
        for name, resource in build(*case)["Resources"].items():
            schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", resource["Type"]).schema
            if schema.get("tagging", {}).get("taggable") or "Tags" not in json.dumps(schema["properties"]):
                continue
            assert resource["Properties"]["TagSpecifications"][0]["ResourceType"] == "launch-template", name


@pytest.mark.parametrize(
    ("cni", "targets", "service"), [("vpc", "ip", "ClusterIP"), ("calico", "instance", "NodePort")]
)
def test_a_load_balancer_goes_to_what_it_can_reach(cni: str, targets: str, service: str) -> None:
    config = StackConfig.model_validate(
        {
            "store": {"uri": "s3://b-1/models"},
            "models": [{"name": "one", "revision": "0123456789abcdef"}],
            "kubernetes": {"ingress": {"host": "llm.example.org", "annotations": CERTIFICATE}, "api_key_secret": "key"},
            "aws": {"cluster": {"cni": cni}},
        }
    )
    below = cluster_config(make_inputs(config), {}, None, region="us-east-2")
    store = StoreUri.parse("s3://b-1/models")
    stack = make_stack(below, store, models.find(below, store, {}, ask_store=False).models)
    (made,) = serving.ingress(stack)
    assert made["spec"]["ingressClassName"] == "alb"
    assert made["metadata"]["annotations"]["alb.ingress.kubernetes.io/target-type"] == targets
    assert releases.serving_values(stack).dump()["routerSpec"]["serviceType"] == service


@pytest.mark.parametrize("delivery", ["node-cache", "stream", "mount"])
@pytest.mark.parametrize("namespace", [None, "elsewhere"])
def test_roles_are_bound_to_the_accounts_that_the_manifests_make(delivery: str, namespace: str | None) -> None:
    """What the AWS half calls a reader and a writer is what the Kubernetes half runs as one."""
    config = StackConfig.model_validate(
        {
            "name": "llm",
            "store": {"uri": "s3://b-1/models"},
            "models": [{"source": "hf://org/Name"}],
            "kubernetes": {"delivery": delivery, "namespace": namespace},
        }
    )
    inputs = make_inputs(config)
    below = cluster_config(inputs, {}, None, region="us-east-2")
    stack = make_stack(
        below,
        StoreUri.parse("s3://b-1/models"),
        models.find(below, StoreUri.parse("s3://b-1/models"), {}, ask_store=False).models,
    )
    made = {
        (o["metadata"]["namespace"], o["metadata"]["name"])
        for o in access.accounts(stack)
        if o["kind"] == "ServiceAccount"
    }
    component = {"node-cache": "agent", "stream": "replica"}.get(delivery)
    wanted = {("Writer", stack.namespace, identity.service_account_name(stack, "publish"))}
    if component:
        where = stack.agent_namespace if component == "agent" else stack.namespace
        wanted.add(("Reader", where, identity.service_account_name(stack, component)))
    else:
        wanted.add(("Reader", "kube-system", "s3-csi-driver-sa"))
    bound = {tuple(account) for account in inputs.accounts if account.role in ("Reader", "Writer")}
    assert bound == wanted
    assert {(space, name) for _, space, name in bound if space != "kube-system"} <= made


def test_the_defaults_share_the_one_card_and_fit_on_its_node() -> None:
    """Two replicas, one g6.2xlarge: one L4 and 8 vCPUs. What the configuration says itself stays."""

    def below(config: dict[str, Any]) -> KubernetesConfig:
        inputs = make_inputs(StackConfig.model_validate(config))
        return cluster_config(inputs, {}, None, region="us-east-2").kubernetes

    shared, alone = below({}), below({"models": [{"replicas": 1}]})
    assert (shared.gpu.replicas_per_card, shared.gpu.card, shared.cpu) == (2, "L4", "3")
    assert (alone.gpu.replicas_per_card, alone.gpu.card, alone.cpu) == (1, None, "6")
    said = below({"kubernetes": {"gpu": {"replicas_per_card": 1}, "cpu": "4"}})
    assert (said.gpu.replicas_per_card, said.cpu) == (1, "4")
