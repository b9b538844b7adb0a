"""The whole CloudFormation template, from inputs alone: no call, no clock, no account.

The same inputs give the same bytes. It deploys as it is, from the console too; `apply` adds only the stack's tags.
With Calico there are two, the second with the nodes: they can get Ready only once the pod network is installed.
"""

from __future__ import annotations

import json
from typing import Any, cast

from troposphere import GetAtt, Output, Ref, Sub, Template

from onecopy.core.errors import ConfigError
from onecopy.targets.aws.addons import add_first_addons, add_later_addons
from onecopy.targets.aws.cluster import CLUSTER, add_cluster
from onecopy.targets.aws.inputs import Inputs
from onecopy.targets.aws.network import add_network
from onecopy.targets.aws.nodes import add_node_groups
from onecopy.targets.aws.storage import Bucket, add_bucket, add_roles

# CreateChangeSet's limit for a template that is sent in the call itself, and not left in a bucket first
MAX_BYTES = 51_200
# Of all inline policies of a role together, without white space (IAM quotas)
MAX_POLICY = 10_240
# What a reference stands for: an ARN with a bucket's longest name, or a role's
_REFERENCE = "x" * 90
METADATA = "onecopy"


def build_template(inputs: Inputs) -> dict[str, Any]:
    """Raises ConfigError when the template grows past what AWS takes."""
    template = Template(Description=f"onecopy stack {inputs.name}: EKS, and one copy of the weights in S3")
    template.set_metadata({METADATA: {"format": 1, "stack": inputs.name, "choices": inputs.choices.as_dict()}})
    network = add_network(template, inputs)
    bucket = add_bucket(template, inputs)
    add_roles(template, inputs, bucket)
    add_cluster(template, inputs, network)
    first = add_first_addons(template, inputs)
    if inputs.choices.nodes:
        add_node_groups(template, inputs, network, waits=first)
        add_later_addons(template, inputs)
    _add_outputs(template, inputs, bucket, network.vpc)
    made: dict[str, Any] = json.loads(template.to_json())
    size = len(compact(made).encode())
    if size > MAX_BYTES:
        raise ConfigError(
            f"the template has {size} bytes, and AWS takes {MAX_BYTES}",
            hint="use fewer or shorter tags (aws.tags), admins or models",
        )
    _check_policies(made)
    return made


def _check_policies(template: dict[str, Any]) -> None:
    """AWS would refuse a role after everything before it was made."""
    roles = {name: body for name, body in template["Resources"].items() if body["Type"] == "AWS::IAM::Role"}
    for name, role in roles.items():
        policies: list[dict[str, Any]] = role["Properties"].get("Policies", [])
        for policy in policies:
            size = len(compact(_resolved(policy["PolicyDocument"])))
            if size > MAX_POLICY:
                raise ConfigError(
                    f"models: the policy of {name} has about {size} characters, and IAM takes {MAX_POLICY}",
                    hint="serve some of the models by another stack (name = …), or use a shorter store prefix",
                )


def _resolved(node: Any) -> Any:
    """With text in the place of CloudFormation's functions, about as long as they will give."""
    if isinstance(node, list):
        return [_resolved(item) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    body = cast("dict[str, Any]", node)
    if "Fn::Join" in body:
        return "".join(str(_resolved(part)) for part in body["Fn::Join"][1])
    if body.keys() & {"Ref", "Fn::GetAtt", "Fn::Sub"}:
        return _REFERENCE
    return {key: _resolved(value) for key, value in body.items()}


def compact(template: dict[str, Any]) -> str:
    """The text that is sent: no white space, stable order."""
    return json.dumps(template, separators=(",", ":"), sort_keys=True)


def _add_outputs(template: Template, inputs: Inputs, bucket: Bucket, vpc: Any) -> None:
    values: dict[str, Any] = {
        "ClusterName": Ref(CLUSTER),
        "ClusterEndpoint": GetAtt(CLUSTER, "Endpoint"),
        "VpcId": vpc,
        "BucketName": bucket.name,
        "StoreUri": Sub(f"s3://${{Bucket}}/{inputs.prefix}", Bucket=bucket.name),
        "Region": Ref("AWS::Region"),
        **{
            f"{role}RoleArn": GetAtt(f"{role}Role", "Arn")
            for role in dict.fromkeys(account.role for account in inputs.accounts)
        },
    }
    for name, value in values.items():
        template.add_output(Output(name, Value=value))
