"""The EKS control plane: its role, secrets key, log group, and who may administer it."""

from __future__ import annotations

from troposphere import AWSHelperFn, GetAtt, Ref, Sub, Template, eks, iam, kms, logs

from onecopy.config.aws import SERVICE_CIDR
from onecopy.targets.aws import policies
from onecopy.targets.aws.inputs import Inputs
from onecopy.targets.aws.network import Network
from onecopy.targets.aws.storage import KEY_WAIT_DAYS, managed_policy

CLUSTER = "Cluster"
LOG_TYPES = ("api", "audit", "authenticator", "controllerManager", "scheduler")


def add_cluster(template: Template, inputs: Inputs, network: Network) -> None:
    settings = inputs.aws.cluster
    role = template.add_resource(
        iam.Role(
            "ClusterRole",
            AssumeRolePolicyDocument=policies.service_trust("eks.amazonaws.com"),
            ManagedPolicyArns=[managed_policy("AmazonEKSClusterPolicy")],
        )
    )
    key: str | AWSHelperFn | None = settings.kms_key
    if key is None:
        template.add_resource(
            kms.Key(
                "SecretsKey",
                Description=f"Kubernetes secrets of the onecopy stack {inputs.name}",
                EnableKeyRotation=True,
                PendingWindowInDays=KEY_WAIT_DAYS,
                KeyPolicy=policies.key_administration(),
                DeletionPolicy="Delete",
                UpdateReplacePolicy="Delete",
            )
        )
        key = GetAtt("SecretsKey", "Arn")
    # EKS makes this group itself when it is not there, and then keeps its logs for ever, after the stack too
    group = template.add_resource(
        logs.LogGroup(
            "ClusterLogs",
            LogGroupName=f"/aws/eks/{inputs.name}/cluster",
            RetentionInDays=settings.log_days,
            DeletionPolicy="Delete",
            UpdateReplacePolicy="Delete",
        )
    )
    cidrs = list(inputs.choices.api_cidrs)
    template.add_resource(
        eks.Cluster(
            CLUSTER,
            Name=inputs.name,
            Version=settings.version,
            RoleArn=GetAtt(role, "Arn"),
            # nothing comes by itself: each add-on is one of ours, and with Calico aws-node is never there
            BootstrapSelfManagedAddons=False,
            AccessConfig=eks.AccessConfig(AuthenticationMode="API", BootstrapClusterCreatorAdminPermissions=True),
            ResourcesVpcConfig=eks.ResourcesVpcConfig(
                SubnetIds=list(network.private),
                EndpointPrivateAccess=True,
                EndpointPublicAccess=bool(cidrs),
                PublicAccessCidrs=cidrs or Ref("AWS::NoValue"),
            ),
            KubernetesNetworkConfig=eks.KubernetesNetworkConfig(ServiceIpv4Cidr=SERVICE_CIDR),
            EncryptionConfig=[eks.EncryptionConfig(Provider=eks.Provider(KeyArn=key), Resources=["secrets"])],
            Logging=eks.Logging(
                ClusterLogging=eks.ClusterLogging(EnabledTypes=[eks.LoggingTypeConfig(Type=kind) for kind in LOG_TYPES])
            ),
            DependsOn=[group.title],
        )
    )
    for i, admin in enumerate(settings.admins):
        template.add_resource(
            eks.AccessEntry(
                f"Admin{i + 1}",
                ClusterName=Ref(CLUSTER),
                PrincipalArn=admin,
                AccessPolicies=[
                    eks.AccessPolicy(
                        PolicyArn=Sub(
                            "arn:${AWS::Partition}:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"
                        ),
                        AccessScope=eks.AccessScope(Type="cluster"),
                    )
                ],
            )
        )
    if inputs.identity == "irsa":
        template.add_resource(
            iam.OIDCProvider(
                "OidcProvider",
                Url=GetAtt(CLUSTER, "OpenIdConnectIssuerUrl"),
                ClientIdList=[policies.TOKEN_AUDIENCE],
            )
        )
        return
    for i, account in enumerate(inputs.accounts):
        template.add_resource(
            eks.PodIdentityAssociation(
                f"{account.role}Identity{i + 1}",
                ClusterName=Ref(CLUSTER),
                Namespace=account.namespace,
                ServiceAccount=account.name,
                RoleArn=GetAtt(f"{account.role}Role", "Arn"),
            )
        )
