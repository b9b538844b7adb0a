"""Namespaces, accounts, rights and network policies: everything is closed, then opened by name.

The stack's namespace enforces pod security `restricted`. The agent, which writes to a folder of its node, lives in a
namespace of its own under `privileged`; its container is held to everything of `restricted` but the host path.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from onecopy.core.errors import ConfigError
from onecopy.targets.kubernetes.identity import service_account, service_account_name
from onecopy.targets.kubernetes.stack import NON_ROOT, Object, Stack

ENGINE_PORT = 8000
AGENT_PORT = 9100
POD_SECURITY: Object = {
    "runAsNonRoot": True,
    "runAsUser": NON_ROOT,
    "runAsGroup": NON_ROOT,
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Object = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def namespaces(stack: Stack) -> list[Object]:
    made = [_namespace(stack, stack.namespace, "restricted")]
    if stack.kubernetes.delivery == "node-cache":
        made.append(_namespace(stack, stack.agent_namespace, "privileged"))
    return made


def _namespace(stack: Stack, name: str, level: str) -> Object:
    meta = stack.metadata(name, "namespace", namespace=None)
    meta["labels"].update(
        {
            "pod-security.kubernetes.io/enforce": level,
            "pod-security.kubernetes.io/warn": "restricted",
            "pod-security.kubernetes.io/audit": "restricted",
        }
    )
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}


def accounts(stack: Stack) -> list[Object]:
    """One account a component; the router alone may ask the cluster something: which pods there are."""
    made = [
        service_account(stack, "replica", "reader" if replicas_read(stack) else None),
        _router_account(stack),
        *_router_rights(stack),
    ]
    if any(model.publishable for model in stack.models):
        made.append(service_account(stack, "publish", "writer"))
    if stack.kubernetes.delivery == "node-cache":
        made.append(service_account(stack, "agent", "reader", namespace=stack.agent_namespace))
    return made


def replicas_read(stack: Stack) -> bool:
    """Whether the replicas' own account reads the store. Mountpoint reads with its driver's."""
    settings = stack.kubernetes
    return settings.delivery == "stream" or (settings.delivery == "mount" and settings.cloud != "aws")


def _router_account(stack: Stack) -> Object:
    account = service_account(stack, "router", None)
    account["automountServiceAccountToken"] = True
    return account


def _router_rights(stack: Stack) -> list[Object]:
    name = service_account_name(stack, "router")
    return [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": stack.metadata(name, "router"),
            "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": stack.metadata(name, "router"),
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": stack.namespace}],
        },
    ]


def network_policies(stack: Stack) -> list[Object]:
    """Replicas: the router and the monitoring reach them, and they reach nothing but DNS unless they fetch themselves."""
    monitoring: Object = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": stack.kubernetes.observability.namespace}}
    }
    router: Object = {"podSelector": {"matchLabels": stack.selector("router")}}
    replica: Object = {"podSelector": {"matchLabels": stack.selector("replica")}}
    fetches = stack.kubernetes.delivery == "stream" or (
        # GCS FUSE runs as a sidecar of the replica; the other drivers mount from pods of their own
        stack.kubernetes.delivery == "mount" and stack.kubernetes.cloud == "gcp"
    )
    made = [
        _policy(stack, "default", {}, ingress=[], egress=[]),
        _policy(
            stack,
            "replica",
            stack.selector("replica"),
            ingress=[_rule("from", [router, monitoring], [ENGINE_PORT])],
            egress=[_dns(), *([_store_egress(stack)] if fetches else [])],
        ),
        _policy(
            stack,
            "router",
            stack.selector("router"),
            ingress=[_router_ingress(stack, monitoring)],
            # The API server's address is not knowable here; its ports are 443 and 6443 everywhere
            egress=[_dns(), _rule("to", [replica], [ENGINE_PORT]), _rule("to", None, [443, 6443])],
        ),
    ]
    if any(model.publishable for model in stack.models):
        made.append(
            _policy(
                stack,
                "publish",
                stack.selector("publish"),
                ingress=[],
                egress=[_dns(), _rule("to", None, [443]), _store_egress(stack)],
            )
        )
    if stack.kubernetes.delivery == "node-cache":
        made.append(
            _policy(
                stack,
                "agent",
                stack.selector("agent"),
                namespace=stack.agent_namespace,
                ingress=[_rule("from", [monitoring], [AGENT_PORT])],
                egress=[_dns(), _store_egress(stack)],
            )
        )
    return made


def _router_ingress(stack: Stack, monitoring: Object) -> Object:
    if stack.kubernetes.ingress.host:
        # Load balancers come from addresses of the network, ingress controllers from any namespace
        return _rule("from", None, [ENGINE_PORT])
    inside: list[Object] = [{"podSelector": {}}, monitoring]
    return _rule("from", [*inside, {"namespaceSelector": {}}], [ENGINE_PORT])


def _store_egress(stack: Stack) -> Object:
    endpoint = stack.config.store.endpoint
    port = (urlsplit(endpoint).port if endpoint else None) or (80 if endpoint and endpoint.startswith("http:") else 443)
    # 80: the instance metadata and pod identity services, which hand out the identity's credentials
    return _rule("to", None, sorted({port, 443, 80}))


def _dns() -> Object:
    return {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}


def _rule(direction: str, peers: list[Object] | None, ports: list[int]) -> Object:
    rule: Object = {"ports": [{"port": port, "protocol": "TCP"} for port in ports]}
    if peers is not None:
        rule[direction] = peers
    return rule


def _policy(
    stack: Stack,
    name: str,
    selector: dict[str, str],
    *,
    ingress: list[Object],
    egress: list[Object],
    namespace: str | None = None,
) -> Object:
    spec: Object = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    # The default policy speaks of this stack's pods only: another stack may share the namespace
    spec["podSelector"] = {"matchLabels": selector or {"onecopy.dev/stack": stack.stack_label}}
    if ingress:
        spec["ingress"] = ingress
    if egress:
        spec["egress"] = egress
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": stack.metadata(f"{stack.release}-{name}", name, namespace=namespace or ""),
        "spec": spec,
    }


def ca_config(stack: Stack, namespaces: list[str]) -> list[Object]:
    """The store's private certificate authority, for the pods that speak to the store."""
    file = stack.config.store.ca_file
    if file is None:
        return []
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": stack.metadata(f"{stack.release}-store-ca", "store", namespace=namespace),
            "data": {"ca.crt": _read(file)},
        }
        for namespace in namespaces
    ]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"store.ca_file: cannot read {file}: {error}") from error
