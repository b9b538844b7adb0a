"""Which service account of the cluster takes which role. The one place where AWS's and Kubernetes' names meet."""

from __future__ import annotations

from typing import Literal, NamedTuple

from onecopy.config.schema import StackConfig

Role = Literal["Reader", "Writer", "LoadBalancer", "ExternalSecrets", "EbsCsi"]


class Account(NamedTuple):
    role: Role
    namespace: str
    name: str

    @property
    def subject(self) -> str:
        """As an OIDC token says it."""
        return f"system:serviceaccount:{self.namespace}:{self.name}"


def accounts(config: StackConfig) -> tuple[Account, ...]:
    namespace = config.kubernetes.namespace or config.name
    addons = config.aws.addons
    found: list[Account] = []
    match config.kubernetes.delivery:
        case "node-cache":
            found.append(Account("Reader", f"{namespace}-agent", f"{config.name}-agent"))
        case "stream":
            found.append(Account("Reader", namespace, f"{config.name}-replica"))
        case "mount":
            found.append(Account("Reader", "kube-system", "s3-csi-driver-sa"))
    found.append(Account("Writer", namespace, f"{config.name}-publish"))
    if addons.load_balancer_controller:
        found.append(Account("LoadBalancer", "kube-system", "aws-load-balancer-controller"))
    if addons.external_secrets:
        found.append(Account("ExternalSecrets", "external-secrets", "external-secrets"))
    if addons.ebs_csi:
        found.append(Account("EbsCsi", "kube-system", "ebs-csi-controller-sa"))
    return tuple(found)
