"""Managed node groups: CPU for router, monitoring and DNS; GPU for replicas.

Neither has a name of its own, so that a change that replaces one makes the new before it removes the old.
"""

from __future__ import annotations

from typing import Any

from troposphere import GetAtt, Ref, Sub, Template, ec2, eks, iam

from onecopy.config.aws import GpuNodesConfig, NodeGroup
from onecopy.targets.aws import policies
from onecopy.targets.aws.cluster import CLUSTER
from onecopy.targets.aws.inputs import Inputs
from onecopy.targets.aws.network import Network, Value
from onecopy.targets.aws.storage import managed_policy

WORKLOAD = "workload-type"
GPU_TAINT = "nvidia.com/gpu"
CAPACITY = {"on-demand": "ON_DEMAND", "spot": "SPOT", "capacity-block": "CAPACITY_BLOCK"}


def add_node_groups(template: Template, inputs: Inputs, network: Network, *, waits: list[str]) -> None:
    """waits: add-ons without which no node gets Ready."""
    managed = ["AmazonEKSWorkerNodePolicy", "AmazonEC2ContainerRegistryPullOnly"]
    if not inputs.is_calico:
        # The VPC CNI must work before any pod identity does, so it takes the node's role
        managed.append("AmazonEKS_CNI_Policy")
    template.add_resource(
        iam.Role(
            "NodeRole",
            AssumeRolePolicyDocument=policies.service_trust(Sub("ec2.${AWS::URLSuffix}")),
            ManagedPolicyArns=[managed_policy(name) for name in managed],
        )
    )
    waits = [*network.waits, *waits]
    _group(template, inputs, "Cpu", inputs.aws.cpu_nodes, network.private, waits)
    if inputs.aws.gpu_nodes.enabled:
        _group(template, inputs, "Gpu", inputs.aws.gpu_nodes, network.gpu, waits)


def _group(
    template: Template,
    inputs: Inputs,
    title: str,
    nodes: NodeGroup,
    subnets: tuple[Value, ...],
    waits: list[str],
) -> None:
    gpu = isinstance(nodes, GpuNodesConfig)
    tags = [
        {"Key": key, "Value": value} for key, value in {**inputs.tags, "Name": f"{inputs.name}-{title.lower()}"}.items()
    ]
    data: dict[str, Any] = {
        "MetadataOptions": ec2.MetadataOptions(HttpTokens="required", HttpPutResponseHopLimit=1),
        "BlockDeviceMappings": [
            ec2.LaunchTemplateBlockDeviceMapping(
                DeviceName="/dev/xvda",
                Ebs=ec2.EBSBlockDevice(
                    Encrypted=True, VolumeType="gp3", VolumeSize=nodes.disk_gib, DeleteOnTermination=True
                ),
            )
        ],
        # the stack's tags stop at the node group: instances and volumes get theirs here
        "TagSpecifications": [
            ec2.TagSpecifications(ResourceType=kind, Tags=tags) for kind in ("instance", "volume", "network-interface")
        ],
    }
    block = nodes.capacity_reservation if isinstance(nodes, GpuNodesConfig) else None
    if block:
        data["InstanceType"] = nodes.instance_types[0]
        data["InstanceMarketOptions"] = ec2.InstanceMarketOptions(MarketType="capacity-block")
        data["CapacityReservationSpecification"] = ec2.CapacityReservationSpecification(
            CapacityReservationTarget=ec2.CapacityReservationTarget(CapacityReservationId=block)
        )
    launch = template.add_resource(
        ec2.LaunchTemplate(
            f"{title}Launch",
            LaunchTemplateData=ec2.LaunchTemplateData(**data),
            # the one resource that CloudFormation does not tag by itself
            TagSpecifications=[ec2.TagSpecifications(ResourceType="launch-template", Tags=tags)],
        )
    )
    optional: dict[str, Any] = {} if block else {"InstanceTypes": list(nodes.instance_types)}
    if gpu:
        optional["Taints"] = [eks.Taint(Key=GPU_TAINT, Value="true", Effect="NO_SCHEDULE")]
    template.add_resource(
        eks.Nodegroup(
            f"{title}Nodes",
            ClusterName=Ref(CLUSTER),
            NodeRole=GetAtt("NodeRole", "Arn"),
            Subnets=list(subnets),
            AmiType="AL2023_x86_64_NVIDIA" if gpu else "AL2023_x86_64_STANDARD",
            CapacityType=CAPACITY[nodes.capacity],
            ScalingConfig=eks.ScalingConfig(MinSize=nodes.min, DesiredSize=nodes.desired, MaxSize=nodes.max),
            LaunchTemplate=eks.LaunchTemplateSpecification(
                Id=Ref(launch), Version=GetAtt(launch, "LatestVersionNumber")
            ),
            Labels={WORKLOAD: "gpu" if gpu else "cpu"},
            UpdateConfig=eks.UpdateConfig(MaxUnavailable=1),
            NodeRepairConfig=eks.NodeRepairConfig(Enabled=True),
            DependsOn=waits,
            **optional,
        )
    )
