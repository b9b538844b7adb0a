"""The `aws` section: the EKS cluster and the bucket that `target = "aws"` makes. What runs on them is `kubernetes`.

Rules that need nothing but the section itself are checked here, so that a wrong file is refused before any call.
"""

from __future__ import annotations

import ipaddress
import re
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from onecopy.config.section import Section


def _split(value: Any) -> Any:
    """`a,b` from the environment or a flag is the same as ["a", "b"] in the file."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _cidr(value: str) -> str:
    network = ipaddress.ip_network(value)  # ValueError tells what is wrong, host bits included
    if network.version != 4:
        raise ValueError(f"{value} is not IPv4")
    return str(network)


Cidr = Annotated[str, BeforeValidator(_cidr)]
Cidrs = Annotated[tuple[Cidr, ...], BeforeValidator(_split)]
Arn = Annotated[str, StringConstraints(pattern=r"^arn:aws[a-z-]*:[a-z0-9-]+:[a-z0-9-]*:[0-9]*:.+$")]
Arns = Annotated[tuple[Arn, ...], BeforeValidator(_split)]
SubnetIds = Annotated[
    tuple[Annotated[str, StringConstraints(pattern=r"^subnet-([0-9a-f]{8}|[0-9a-f]{17})$")], ...],
    BeforeValidator(_split),
]
RouteTableIds = Annotated[
    tuple[Annotated[str, StringConstraints(pattern=r"^rtb-([0-9a-f]{8}|[0-9a-f]{17})$")], ...], BeforeValidator(_split)
]
InstanceType = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*\.[a-z0-9-]+$")]
InstanceTypes = Annotated[tuple[InstanceType, ...], BeforeValidator(_split), Field(min_length=1, max_length=20)]
Zones = Annotated[
    tuple[Annotated[str, StringConstraints(pattern=r"^[a-z]{2}(-[a-z]+)+-\d[a-z]$")], ...], BeforeValidator(_split)
]
TagKey = Annotated[str, StringConstraints(pattern=r"^[\w .:/=+@-]+$", max_length=128)]
TagValue = Annotated[str, StringConstraints(pattern=r"^[\w .:/=+@-]*$", max_length=256)]

# NVIDIA families that EKS's AL2023 NVIDIA image drives; g4ad is AMD and g5g is ARM
_GPU_FAMILY = re.compile(r"^(g4dn|g5|g6|g6e|g6f|g7|g7e|gr6|gr6f|p3|p3dn|p4d|p4de|p5|p5e|p5en|p6-[a-z0-9]+)\.")
# Graviton: a `g` behind the generation, as in m7g, c8gn, t4g
_ARM_FAMILY = re.compile(r"^([a-z]+\d+g[a-z]*|a1)\.")
SERVICE_CIDR = "172.20.0.0/16"
MAX_TAGS = 20


class NetworkConfig(Section):
    vpc_id: Annotated[str, StringConstraints(pattern=r"^vpc-([0-9a-f]{8}|[0-9a-f]{17})$")] | None = None
    """Existing VPC to use; unset makes one."""
    private_subnets: SubnetIds = ()
    """Existing private subnets for nodes and control plane, in at least two zones (with vpc_id)."""
    s3_route_tables: RouteTableIds = ()
    """Route tables of an existing VPC that get an S3 gateway endpoint; leave empty when it has one."""
    cidr: Cidr = "10.20.0.0/16"
    """Address range of the new VPC, /16 to /20."""
    zones: Zones = ()
    """Three availability zones; by default those that offer the GPU type, then the region's first."""
    nat: Literal["one", "per-zone"] = "one"
    """NAT gateways: one for the VPC, or one a zone (three times the price; survives the loss of a zone)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.vpc_id is None:
            if self.private_subnets or self.s3_route_tables:
                raise ValueError("private_subnets and s3_route_tables belong to an existing VPC: set vpc_id too")
            if not 16 <= ipaddress.ip_network(self.cidr).prefixlen <= 20:
                raise ValueError(f"cidr {self.cidr} must be between /16 and /20, to hold six subnets")
            if self.zones and len(set(self.zones)) != 3:
                raise ValueError("zones must name three different availability zones")
        elif len(self.private_subnets) < 2:
            raise ValueError("an existing VPC needs private_subnets in at least two zones")
        elif self.zones:
            raise ValueError("the zones of an existing VPC are those of its subnets: leave zones empty")
        return self


class ClusterConfig(Section):
    version: Annotated[str, StringConstraints(pattern=r"^1\.\d{2}$")] = "1.35"
    """Kubernetes version; `plan` checks that EKS offers it, and says when its standard support ends."""
    public_cidrs: Cidrs = ()
    """Who may reach the API server from outside the VPC; by default the address that `apply` is run from."""
    allow_any_address: bool = False
    """Permits 0.0.0.0/0 in public_cidrs."""
    admins: Arns = ()
    """IAM roles and users that administer the cluster, beside its creator."""
    kms_key: Arn | None = None
    """KMS key for the cluster's secrets; unset makes one."""
    log_days: Literal[1, 3, 5, 7, 14, 30, 60, 90, 180, 365] = 30
    """Days that control-plane logs are kept."""
    cni: Literal["vpc", "calico"] = "vpc"
    """Pod network: the VPC CNI, or Calico's VXLAN overlay with no aws-node at all."""
    pod_cidr: Cidr = "10.244.0.0/16"
    """Pod addresses of the Calico overlay."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "0.0.0.0/0" in self.public_cidrs and not self.allow_any_address:
            raise ValueError(
                "public_cidrs opens the API server to everyone; set allow_any_address = true if it is meant"
            )
        return self


class NodesConfig(Section):
    instance_types: InstanceTypes = ("m7i.xlarge",)
    """Instance types, first choice first."""
    min: int = Field(default=1, ge=0, le=450)
    """Fewest nodes."""
    desired: int = Field(default=2, ge=0, le=450)
    """Nodes at the start; an autoscaler may move it later."""
    max: int = Field(default=3, ge=1, le=450)
    """Most nodes."""
    disk_gib: int = Field(default=50, ge=20, le=16384)
    """Encrypted gp3 root volume in GiB; holds images, never weights."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.min <= self.desired <= self.max:
            raise ValueError(f"min ≤ desired ≤ max does not hold: {self.min}, {self.desired}, {self.max}")
        if len(set(self.instance_types)) != len(self.instance_types):
            raise ValueError("instance_types names one type twice")
        for kind in self.instance_types:
            if _ARM_FAMILY.match(kind) or kind.startswith("g5g."):
                raise ValueError(f"{kind} is ARM, and the images are built for x86-64")
        return self


class CpuNodesConfig(NodesConfig):
    capacity: Literal["on-demand", "spot"] = "on-demand"
    """How the instances are bought."""

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.min < 1:
            raise ValueError("min must be 1 or more: router, DNS and monitoring run on these nodes")
        return self


class GpuNodesConfig(NodesConfig):
    enabled: bool = True
    """Makes the GPU node group; false serves on the CPU nodes."""
    instance_types: InstanceTypes = ("g6.2xlarge",)
    """NVIDIA instance types, first choice first. g6.2xlarge has one L4 (24 GB)."""
    capacity: Literal["on-demand", "spot", "capacity-block"] = "on-demand"
    """How the instances are bought; capacity-block needs capacity_reservation."""
    capacity_reservation: Annotated[str, StringConstraints(pattern=r"^cr-([0-9a-f]{8}|[0-9a-f]{17})$")] | None = None
    """Capacity block to start in."""
    min: int = Field(default=1, ge=0, le=450)
    """Fewest nodes."""
    desired: int = Field(default=1, ge=0, le=450)
    """Nodes at the start."""
    max: int = Field(default=1, ge=1, le=450)
    """Most nodes."""
    disk_gib: int = Field(default=100, ge=20, le=16384)
    """Encrypted gp3 root volume in GiB; the vLLM image unpacks to about 25 GB."""
    subnets: SubnetIds = ()
    """Subnets of an existing VPC whose zones offer the types; by default all private_subnets."""
    nvidia: Literal["device-plugin", "operator"] = "device-plugin"
    """What offers the GPUs to Kubernetes. The image has the driver already, so the plugin is enough."""

    @model_validator(mode="after")
    def _gpu(self) -> Self:
        for kind in self.instance_types:
            if not _GPU_FAMILY.match(kind):
                raise ValueError(f"{kind} is not an NVIDIA instance type that EKS's NVIDIA image drives")
        if (self.capacity == "capacity-block") != (self.capacity_reservation is not None):
            raise ValueError("capacity = capacity-block and capacity_reservation belong together")
        if self.capacity == "capacity-block" and len(self.instance_types) != 1:
            raise ValueError("a capacity block holds one instance type: name exactly one")
        return self


NodeGroup = CpuNodesConfig | GpuNodesConfig


class BucketConfig(Section):
    encryption: Literal["s3", "kms"] = "s3"
    """Encryption at rest: S3's own keys, or KMS."""
    kms_key: Arn | None = None
    """KMS key of the bucket (encryption = kms); unset makes one, which outlives the stack like the bucket."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kms_key and self.encryption != "kms":
            raise ValueError("kms_key needs encryption = kms")
        return self


AddonName = Literal[
    "coredns",
    "kube-proxy",
    "vpc-cni",
    "eks-pod-identity-agent",
    "metrics-server",
    "cert-manager",
    "aws-mountpoint-s3-csi-driver",
    "aws-ebs-csi-driver",
]


ChartName = Literal[
    "aws-load-balancer-controller", "external-secrets", "nvidia-device-plugin", "gpu-operator", "tigera-operator"
]


class AddonsConfig(Section):
    versions: dict[AddonName, str] = Field(default_factory=dict[AddonName, str])
    """Add-on versions by name; by default `apply` pins what EKS recommends and keeps it."""
    metrics_server: bool = True
    """`kubectl top` and autoscaling on CPU."""
    cert_manager: bool = False
    """cert-manager, for certificates made inside the cluster. A load balancer's certificate (ACM) needs none."""
    ebs_csi: bool = False
    """EBS volumes. Nothing of this stack needs them."""
    load_balancer_controller: bool = True
    """Makes load balancers for ingresses."""
    load_balancer_controller_version: str = "3.5.0"
    """Version of its chart, aws-load-balancer-controller."""
    external_secrets: bool = False
    """Reads secrets named <stack>/… from Secrets Manager into the cluster."""
    external_secrets_version: str = "2.9.0"
    """Version of its chart, external-secrets."""
    device_plugin_version: str = "0.19.3"
    """Version of NVIDIA's chart, nvidia-device-plugin."""
    gpu_operator_version: str = "v26.3.3"
    """Version of NVIDIA's chart, gpu-operator."""
    calico_version: str = "v3.31.7"
    """Version of the chart tigera-operator (cni = calico)."""
    charts: dict[ChartName, str] = Field(default_factory=dict[ChartName, str])
    """Where a chart comes from instead of its owner's repository: a folder or oci://…, by the chart's name."""


class AwsConfig(Section):
    region: Annotated[str, StringConstraints(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")] | None = None
    """Region of the stack; AWS_REGION and the profile's region otherwise."""
    profile: str | None = None
    """Profile of ~/.aws/config; the usual credential chain otherwise."""
    workloads: bool = True
    """Installs the stack's Kubernetes part once the cluster stands; false makes cluster and bucket alone."""
    prices: Path | None = None
    """TOML file of prices for `plan`, over the shipped list of us-east-1: another region's, or yours with a discount."""
    tags: dict[TagKey, TagValue] = Field(default_factory=dict, max_length=MAX_TAGS)
    """Tags on everything that is made, beside our own."""
    network: NetworkConfig = NetworkConfig()
    cluster: ClusterConfig = ClusterConfig()
    cpu_nodes: CpuNodesConfig = CpuNodesConfig()
    gpu_nodes: GpuNodesConfig = GpuNodesConfig()
    bucket: BucketConfig = BucketConfig()
    addons: AddonsConfig = AddonsConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if reserved := [key for key in self.tags if key.lower().startswith(("aws:", "onecopy:"))]:
            raise ValueError(f"the tag {reserved[0]} is reserved")
        ranges = {"aws.cluster's service range": SERVICE_CIDR}
        if self.network.vpc_id is None:
            ranges["aws.network.cidr"] = self.network.cidr
            if self.gpu_nodes.subnets:
                raise ValueError("gpu_nodes.subnets belongs to an existing VPC: set network.vpc_id too")
        if self.cluster.cni == "calico":
            ranges["aws.cluster.pod_cidr"] = self.cluster.pod_cidr
        for (name, one), (other, two) in combinations(ranges.items(), 2):
            if ipaddress.ip_network(one).overlaps(ipaddress.ip_network(two)):
                raise ValueError(f"{name} {one} overlaps {other} {two}")
        if self.cluster.cni == "calico" and not self.workloads:
            raise ValueError("cni = calico needs workloads = true: no node gets Ready before Calico is installed")
        if self.cluster.cni == "calico" and self.cpu_nodes.desired < 2:
            raise ValueError(
                "cni = calico needs cpu_nodes.desired = 2 or more: pods that hold a node's port run in pairs"
            )
        if self.cluster.cni == "calico" and "vpc-cni" in self.addons.versions:
            raise ValueError("addons.versions names vpc-cni, and cni = calico leaves it out")
        return self
