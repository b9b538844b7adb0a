"""What is there now: the health of every part, where the weights are, and the addresses."""

from __future__ import annotations

from typing import Any

from onecopy.targets.base import CachedRevision, PartStatus, Status
from onecopy.targets.kubernetes.access import replicas_read
from onecopy.targets.kubernetes.cluster import Cluster
from onecopy.targets.kubernetes.health import judge_live
from onecopy.targets.kubernetes.identity import principal, service_account_name
from onecopy.targets.kubernetes.live import label
from onecopy.targets.kubernetes.serving import ROUTER_SERVICE_PORT, router_service
from onecopy.targets.kubernetes.stack import LABEL_STACK, Object, Stack, dig, dig_list

DRIVER_ACCOUNT = ("kube-system", "s3-csi-driver-sa")
"""Of Mountpoint's CSI driver, as its add-on and its chart make it."""


def status(stack: Stack, cluster: Cluster) -> Status:
    selector = {LABEL_STACK: stack.stack_label}
    parts: list[PartStatus] = []
    for api_version, kind in (
        ("batch/v1", "Job"),
        ("v1", "PersistentVolumeClaim"),
        ("apps/v1", "DaemonSet"),
        ("apps/v1", "Deployment"),
    ):
        for live in cluster.list(api_version, kind, labels=selector):
            verdict = judge_live(cluster, live)
            parts.append(
                PartStatus(
                    kind=kind,
                    name=label(live),
                    health=verdict.health,
                    ready=verdict.ready,
                    desired=verdict.desired,
                    reason=verdict.reason,
                )
            )
    expected = {"Deployment": f"{stack.namespace}/{stack.release}-deployment-router"}
    if stack.kubernetes.delivery == "node-cache":
        expected["DaemonSet"] = f"{stack.agent_namespace}/{stack.release}-agent"
    there = {(part.kind, part.name) for part in parts}
    parts += [
        PartStatus(kind=kind, name=name, health="missing", reason="not applied")
        for kind, name in expected.items()
        if (kind, name) not in there
    ]
    return Status(
        target="kubernetes",
        stack=stack.config.name,
        parts=tuple(parts),
        weights=tuple(_weights(stack, cluster)),
        endpoints=endpoints(stack),
    )


def _weights(stack: Stack, cluster: Cluster) -> list[CachedRevision]:
    """By node, from the agents: an agent is ready when every revision that it was told of is whole on its node."""
    found: list[CachedRevision] = []
    if stack.kubernetes.delivery != "node-cache":
        return found
    for pod in cluster.list("v1", "Pod", namespace=stack.agent_namespace, labels=stack.selector("agent")):
        node = dig(pod, "spec", "nodeName")
        if node is None:
            continue
        for argument in dig_list(pod["spec"]["containers"][0], "args"):
            model, at, revision = str(argument).partition("@")
            if at and not model.startswith("-"):
                found.append(
                    CachedRevision(
                        node=node, model=model, revision=revision, state="ready" if _ready(pod) else "filling"
                    )
                )
    return found


def _ready(pod: Object) -> bool:
    return any(c["type"] == "Ready" and c.get("status") == "True" for c in dig_list(pod, "status", "conditions"))


def endpoints(stack: Stack) -> dict[str, str]:
    made = {"cluster": f"http://{router_service(stack)}.{stack.namespace}.svc:{ROUTER_SERVICE_PORT}/v1"}
    if stack.kubernetes.ingress.host:
        made["public"] = f"https://{stack.kubernetes.ingress.host}/v1"
    return made


def outputs(stack: Stack) -> dict[str, Any]:
    service = router_service(stack)
    return {
        "stack": stack.config.name,
        "target": "kubernetes",
        "namespace": stack.namespace,
        "release": stack.release,
        "store": str(stack.store),
        "delivery": stack.kubernetes.delivery,
        "endpoints": endpoints(stack),
        "port_forward": f"kubectl -n {stack.namespace} port-forward service/{service} 8080:{ROUTER_SERVICE_PORT}",
        "models": {
            model.name: {"revision": model.revision, "previous": model.previous, "replicas": model.config.replicas}
            for model in stack.models
        },
        "identities": identities(stack),
    }


def identities(stack: Stack) -> dict[str, Any]:
    """Which service account needs which right in the cloud: what an association or a binding names."""
    if stack.kubernetes.delivery == "node-cache":
        namespace, account = stack.agent_namespace, service_account_name(stack, "agent")
    elif replicas_read(stack):
        namespace, account = stack.namespace, service_account_name(stack, "replica")
    else:
        namespace, account = DRIVER_ACCOUNT
    made: dict[str, Any] = {
        "reader": {"namespace": namespace, "service_account": account, "principal": principal(stack, "reader")}
    }
    if any(model.publishable for model in stack.models):
        made["writer"] = {
            "namespace": stack.namespace,
            "service_account": service_account_name(stack, "publish"),
            "principal": principal(stack, "writer"),
        }
    return made
