"""Who may read, who may publish: service accounts, and what a pod needs to prove that it is one of them.

Reader: the agent (node-cache), or the replicas (mount, stream). Writer: the publish job alone. Replicas that read from
the node's cache have no identity at all. Grants on the cloud's side are the aws target's, or in the guides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from onecopy.targets.kubernetes.stack import Object, Stack

Role = Literal["reader", "writer"]
SECRET_MOUNT = "/var/run/secrets/onecopy"  # noqa: S105 - a folder
HUB_TOKEN_ENV = "HF_TOKEN"  # noqa: S105 - a variable's name


@dataclass(frozen=True, slots=True)
class PodAccess:
    """What a pod's spec takes over for one role."""

    service_account: str
    labels: dict[str, str] = field(default_factory=dict[str, str])
    env: Sequence[Object] = ()
    env_from: Sequence[Object] = ()
    secret: str | None = None
    """The Secret behind `env_from` or a mounted key file."""
    volumes: Sequence[Object] = ()
    mounts: Sequence[Object] = ()


def service_account_name(stack: Stack, component: str) -> str:
    return f"{stack.release}-{component}"


def principal(stack: Stack, role: Role) -> str | None:
    """Role ARN, service account e-mail, client id, or Secret name of a role."""
    given = getattr(stack.kubernetes.identity, role)
    return given or (f"{stack.release}-{role}" if stack.identity == "secret" else None)


def service_account(stack: Stack, component: str, role: Role | None, *, namespace: str | None = None) -> Object:
    """role None: an account that may nothing, neither in the cloud nor in the cluster."""
    meta = stack.metadata(service_account_name(stack, component), component, namespace=namespace or "")
    if role is not None:
        annotations = _annotations(stack, principal(stack, role))
        if annotations:
            meta["annotations"] = annotations
        if stack.kubernetes.cloud == "azure" and stack.identity == "workload-identity":
            meta["labels"]["azure.workload.identity/use"] = "true"
    account: Object = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": meta,
        # The clouds' webhooks project a token of their own; the cluster's API is nobody's business here
        "automountServiceAccountToken": False,
    }
    if stack.kubernetes.images.pull_secret:
        account["imagePullSecrets"] = [{"name": stack.kubernetes.images.pull_secret}]
    return account


def _annotations(stack: Stack, who: str | None) -> dict[str, str]:
    if who is None:
        return {}
    if stack.identity == "irsa":
        return {"eks.amazonaws.com/role-arn": who}
    if stack.identity == "workload-identity" and stack.kubernetes.cloud == "gcp":
        return {"iam.gke.io/gcp-service-account": who}
    if stack.identity == "workload-identity" and stack.kubernetes.cloud == "azure":
        return {"azure.workload.identity/client-id": who}
    return {}


def pod_access(stack: Stack, component: str, role: Role) -> PodAccess:
    account = service_account_name(stack, component)
    env = store_env(stack)
    if stack.identity == "workload-identity" and stack.kubernetes.cloud == "azure":
        return PodAccess(account, labels={"azure.workload.identity/use": "true"}, env=env)
    if stack.identity != "secret":
        return PodAccess(account, env=env)
    secret = principal(stack, role) or ""
    if stack.store.scheme == "gs":
        path = f"{SECRET_MOUNT}/{role}"
        return PodAccess(
            account,
            env=[*env, {"name": "GOOGLE_APPLICATION_CREDENTIALS", "value": f"{path}/key.json"}],
            secret=secret,
            volumes=[{"name": "store-key", "secret": {"secretName": secret, "defaultMode": 0o444}}],
            mounts=[{"name": "store-key", "mountPath": path, "readOnly": True}],
        )
    return PodAccess(account, env=env, env_from=[{"secretRef": {"name": secret}}], secret=secret)


def store_env(stack: Stack) -> list[Object]:
    """How the store is reached, as variables: no secrets among them."""
    store = stack.config.store
    values = {
        "AWS_REGION": store.region if stack.store.scheme == "s3" else None,
        "AWS_ENDPOINT_URL": store.endpoint if stack.store.scheme == "s3" else None,
        "AZURE_STORAGE_ACCOUNT_NAME": stack.store.account,
        "ONECOPY_STORE_CA_FILE": f"{CA_MOUNT}/ca.crt" if store.ca_file else None,
    }
    return [{"name": name, "value": value} for name, value in values.items() if value]


CA_MOUNT = "/etc/onecopy/ca"
