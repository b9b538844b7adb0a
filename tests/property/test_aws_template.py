"""Over the configuration space: what the schema accepts gives a template that keeps every rule of tests/aws/rules.py."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.aws import rules

from onecopy.config.schema import StackConfig
from onecopy.targets.aws.inputs import Choices, make_inputs
from onecopy.targets.aws.template import MAX_BYTES, build_template, compact

ZONES = ("eu-west-1a", "eu-west-1b", "eu-west-1c")


def sizes(least: int) -> st.SearchStrategy[dict[str, int]]:
    three = st.tuples(st.integers(least, 20), st.integers(least, 20), st.integers(max(least, 1), 20)).map(sorted)
    return three.map(lambda s: {"min": s[0], "desired": s[1], "max": max(s[2], 1)})


@st.composite
def gpu_nodes(draw: st.DrawFn, existing: bool) -> dict[str, Any]:
    capacity = draw(st.sampled_from(["on-demand", "spot", "capacity-block"]))
    types = ["g4dn.xlarge", "g5.2xlarge", "g6.2xlarge", "g6e.12xlarge", "p5.48xlarge", "p6-b200.48xlarge"]
    block = capacity == "capacity-block"
    count = 1 if block else draw(st.integers(1, 4))
    made = {
        "enabled": draw(st.booleans()),
        "capacity": capacity,
        "instance_types": draw(st.lists(st.sampled_from(types), min_size=count, max_size=count, unique=True)),
        "disk_gib": draw(st.integers(20, 2000)),
        "nvidia": draw(st.sampled_from(["device-plugin", "operator"])),
        **draw(sizes(0)),
    }
    if block:
        made["capacity_reservation"] = "cr-0123456789abcdef0"
    if existing and draw(st.booleans()):
        made["subnets"] = ["subnet-0a1b2c3a"]
    return made


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    existing, calico = draw(st.booleans()), draw(st.booleans())
    network: dict[str, Any] = {"nat": draw(st.sampled_from(["one", "per-zone"]))}
    if existing:
        network |= {"vpc_id": "vpc-0a1b2c3d", "private_subnets": ["subnet-0a1b2c3a", "subnet-0a1b2c3b"]}
        if draw(st.booleans()):
            network["s3_route_tables"] = ["rtb-0a1b2c3a"]
    else:
        network["cidr"] = f"10.{draw(st.integers(0, 200))}.0.0/{draw(st.integers(16, 20))}"
    kms = draw(st.sampled_from(["s3", "kms", "own"]))
    key = "arn:aws:kms:eu-west-1:123456789012:key/1"
    names = draw(st.lists(st.from_regex(r"[a-z][a-z0-9-]{0,30}[a-z0-9]", fullmatch=True), max_size=4, unique=True))
    addons = {name: draw(st.booleans()) for name in ("metrics_server", "cert_manager", "ebs_csi", "load_balancer_controller", "external_secrets")}  # fmt: skip
    return {
        "name": draw(st.from_regex(r"[a-z][a-z0-9]{0,10}(-[a-z0-9]{1,10})?", fullmatch=True)),
        "store": {"uri": draw(st.sampled_from([None, "s3://some-bucket/models", "s3://b-1/deep/er"]))},
        "models": [{"name": name} for name in names] or [{}],
        "kubernetes": {
            "delivery": draw(st.sampled_from(["node-cache", "mount", "stream"])),
            "identity": {"kind": draw(st.sampled_from([None, "pod-identity", "irsa"]))},
        },
        "aws": {
            "network": network,
            "cluster": {
                "cni": "calico" if calico else "vpc",
                "admins": draw(st.sampled_from([[], ["arn:aws-cn:iam::123456789012:role/a"]])),
                "kms_key": draw(st.sampled_from([None, key])),
            },
            "cpu_nodes": {"capacity": draw(st.sampled_from(["on-demand", "spot"])), **draw(sizes(2 if calico else 1))},
            "gpu_nodes": draw(gpu_nodes(existing)),
            "bucket": {"encryption": "s3" if kms == "s3" else "kms", "kms_key": key if kms == "own" else None},
            "addons": addons,
            "tags": draw(st.dictionaries(st.from_regex(r"[a-z]{1,12}", fullmatch=True), st.just("value"), max_size=5)),
        },
    }


@st.composite
def choices(draw: st.DrawFn) -> Choices:
    return Choices(
        zones=draw(st.sampled_from([(), ZONES])),
        gpu_zones=draw(st.integers(1, 3)),
        api_cidrs=draw(st.sampled_from([(), ("198.51.100.7/32",)])),
        addon_versions=draw(st.sampled_from([{}, {"coredns": "v1.12.1-eksbuild.2"}])),
        create_bucket=draw(st.booleans()),
        nodes=draw(st.booleans()),
    )


@settings(max_examples=150, deadline=None)
@given(configurations(), choices())
def test_every_accepted_configuration_gives_a_template_that_keeps_the_rules(
    config: dict[str, Any], chosen: Choices
) -> None:
    template = build_template(make_inputs(StackConfig.model_validate(config), chosen))
    assert rules.findings(template) == []
    assert len(compact(template)) <= MAX_BYTES
    assert Choices.from_dict(template["Metadata"]["onecopy"]["choices"]) == chosen
