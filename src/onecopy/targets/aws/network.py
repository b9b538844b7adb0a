"""The VPC: three public and three private subnets, NAT, and an S3 gateway endpoint, so that weights never cross NAT."""

from __future__ import annotations

from typing import Any, NamedTuple

from troposphere import AWSHelperFn, GetAtt, GetAZs, Ref, Select, Sub, Tags, Template, ec2

from onecopy.targets.aws.inputs import ZONES, Inputs, subnet_cidrs

Value = str | AWSHelperFn


class Network(NamedTuple):
    """What the cluster builds on. waits: logical ids without which a node cannot reach anything."""

    vpc: Value
    private: tuple[Value, ...]
    gpu: tuple[Value, ...]
    waits: tuple[str, ...]


def add_network(template: Template, inputs: Inputs) -> Network:
    network = inputs.aws.network
    if network.vpc_id is not None:
        if network.s3_route_tables:
            _add_s3_endpoint(template, network.vpc_id, list(network.s3_route_tables))
        gpu = inputs.aws.gpu_nodes.subnets or network.private_subnets
        return Network(network.vpc_id, network.private_subnets, gpu, ())
    return _new(template, inputs)


def _new(template: Template, inputs: Inputs) -> Network:
    def named(what: str, **more: str) -> Tags:
        return Tags(**{"Name": f"{inputs.name}-{what}", **more})

    vpc = template.add_resource(
        ec2.VPC(
            "Vpc", CidrBlock=inputs.aws.network.cidr, EnableDnsHostnames=True, EnableDnsSupport=True, Tags=named("vpc")
        )
    )
    gateway = template.add_resource(ec2.InternetGateway("InternetGateway", Tags=named("igw")))
    attached = template.add_resource(
        ec2.VPCGatewayAttachment("InternetGatewayAttachment", VpcId=Ref(vpc), InternetGatewayId=Ref(gateway))
    )
    public_table = template.add_resource(ec2.RouteTable("PublicRoutes", VpcId=Ref(vpc), Tags=named("public")))
    template.add_resource(
        ec2.Route(
            "PublicDefaultRoute",
            RouteTableId=Ref(public_table),
            DestinationCidrBlock="0.0.0.0/0",
            GatewayId=Ref(gateway),
            DependsOn=attached.title,
        )
    )
    private_cidrs, public_cidrs = subnet_cidrs(inputs.aws.network.cidr)
    nats = ZONES if inputs.aws.network.nat == "per-zone" else 1
    private: list[Value] = []
    tables: list[Value] = []
    waits = ["PublicDefaultRoute"]
    for i in range(ZONES):
        zone = inputs.choices.zones[i] if inputs.choices.zones else Select(i, GetAZs(""))
        n = i + 1
        public = template.add_resource(
            ec2.Subnet(
                f"PublicSubnet{n}",
                VpcId=Ref(vpc),
                CidrBlock=public_cidrs[i],
                AvailabilityZone=zone,
                Tags=named(f"public-{n}", **{"kubernetes.io/role/elb": "1"}),
            )
        )
        subnet = template.add_resource(
            ec2.Subnet(
                f"PrivateSubnet{n}",
                VpcId=Ref(vpc),
                CidrBlock=private_cidrs[i],
                AvailabilityZone=zone,
                Tags=named(f"private-{n}", **{"kubernetes.io/role/internal-elb": "1"}),
            )
        )
        _associate(template, f"PublicSubnet{n}Routes", public, public_table)
        if n <= nats:
            address = template.add_resource(
                ec2.EIP(f"NatAddress{n}", Domain="vpc", Tags=named(f"nat-{n}"), DependsOn=attached.title)
            )
            nat = template.add_resource(
                ec2.NatGateway(
                    f"NatGateway{n}",
                    AllocationId=GetAtt(address, "AllocationId"),
                    SubnetId=Ref(public),
                    Tags=named(f"nat-{n}"),
                    # its traffic leaves by the public default route: without it, created nodes wait for nothing
                    DependsOn="PublicDefaultRoute",
                )
            )
            table = template.add_resource(
                ec2.RouteTable(f"PrivateRoutes{n}", VpcId=Ref(vpc), Tags=named(f"private-{n}"))
            )
            template.add_resource(
                ec2.Route(
                    f"PrivateDefaultRoute{n}",
                    RouteTableId=Ref(table),
                    DestinationCidrBlock="0.0.0.0/0",
                    NatGatewayId=Ref(nat),
                )
            )
            tables.append(Ref(table))
            waits.append(f"PrivateDefaultRoute{n}")
        _associate(template, f"PrivateSubnet{n}Routes", subnet, tables[min(i, nats - 1)])
        waits.append(f"PrivateSubnet{n}Routes")
        private.append(Ref(subnet))
    waits.append(_add_s3_endpoint(template, Ref(vpc), tables))
    return Network(Ref(vpc), tuple(private), tuple(private[: inputs.choices.gpu_zones]), tuple(waits))


def _associate(template: Template, title: str, subnet: Any, table: Any) -> None:
    table = Ref(table) if isinstance(table, ec2.RouteTable) else table
    template.add_resource(ec2.SubnetRouteTableAssociation(title, SubnetId=Ref(subnet), RouteTableId=table))


def _add_s3_endpoint(template: Template, vpc: Value, tables: list[Any]) -> str:
    """Free, and the difference between $0 and $0.045 a GB for every fetch of every node."""
    endpoint = template.add_resource(
        ec2.VPCEndpoint(
            "S3Endpoint",
            VpcId=vpc,
            VpcEndpointType="Gateway",
            ServiceName=Sub("com.amazonaws.${AWS::Region}.s3"),
            RouteTableIds=tables,
        )
    )
    return str(endpoint.title)
