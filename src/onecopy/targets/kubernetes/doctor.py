"""Preflight of a cluster: what would make `apply` fail or wait, found before it, each with its fix. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from onecopy.core.errors import OnecopyError
from onecopy.core.units import format_bytes, parse_bytes
from onecopy.targets.kubernetes.delivery import node_terms, tolerations
from onecopy.targets.kubernetes.helm import Helm, find_helm
from onecopy.targets.kubernetes.identity import principal
from onecopy.targets.kubernetes.stack import Object, Stack, dig, dig_list, dig_map
from onecopy.targets.preflight import Finding, from_error

if TYPE_CHECKING:
    from onecopy.targets.kubernetes.cluster import Cluster
    from onecopy.targets.kubernetes.target import KubernetesTarget

DRIVERS = {
    "aws": ("s3.csi.aws.com", "install the EKS add-on aws-mountpoint-s3-csi-driver, v2"),
    "gcp": ("gcsfuse.csi.storage.gke.io", "enable the Cloud Storage FUSE CSI driver on the GKE cluster"),
    "azure": ("blob.csi.azure.com", "enable the Blob CSI driver: az aks update --enable-blob-driver"),
}
# What an apply has to be allowed: (group, resource, verb)
RIGHTS = (
    ("", "namespaces", "create"),
    ("", "persistentvolumes", "create"),
    ("apps", "daemonsets", "create"),
    ("apps", "deployments", "create"),
    ("batch", "jobs", "create"),
    ("networking.k8s.io", "networkpolicies", "create"),
    ("rbac.authorization.k8s.io", "rolebindings", "create"),
)


def examine(target: KubernetesTarget) -> list[Finding]:
    """A check that cannot be made is a finding too; the others go on."""
    found: list[Finding] = []
    try:
        cluster = target.cluster
        version = cluster.version()
    except OnecopyError as error:
        return [*_helm(target), from_error("cluster", error)]
    found.append(_version(version))
    try:
        stack = target.known_stack()
    except OnecopyError as error:
        return [*found, *_helm(target), from_error("configuration", error)]
    checks: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
        ("helm", lambda: _helm(target)),
        ("rights", lambda: _rights(cluster)),
        ("nodes", lambda: _nodes(stack, cluster)),
        ("driver", lambda: _driver(stack, cluster)),
        ("secrets", lambda: _secrets(stack, cluster)),
        ("kinds", lambda: _kinds(stack, cluster)),
        ("ingress", lambda: _ingress(stack, cluster)),
        ("labels", lambda: _labels(stack, cluster)),
        ("quota", lambda: _quota(stack, cluster)),
        ("images", lambda: _images(stack)),
    )
    for name, check in checks:
        try:
            found += check()
        except OnecopyError as error:
            found.append(from_error(name, error))
    return found


def _version(version: tuple[int, int]) -> Finding:
    text = f"Kubernetes {version[0]}.{version[1]}"
    if version < (1, 31):
        return Finding("cluster", "warning", f"{text}: made for 1.31 and newer", "upgrade the control plane")
    return Finding("cluster", "ok", text)


def _helm(target: KubernetesTarget) -> list[Finding]:
    try:
        find_helm()
        settings = target.config.kubernetes
        version = Helm(settings.kubeconfig, settings.context).version()
    except OnecopyError as error:
        return [from_error("helm", error)]
    major = int(version.lstrip("v").split(".")[0])
    if major < 3:
        return [Finding("helm", "problem", f"Helm {version}", "install Helm 3.14 or newer")]
    return [Finding("helm", "ok", f"Helm {version}")]


def _rights(cluster: Cluster) -> Iterator[Finding]:
    denied = [f"{verb} {resource}" for group, resource, verb in RIGHTS if not cluster.allowed(group, resource, verb)]
    if denied:
        yield Finding("rights", "problem", f"not allowed to {', '.join(denied)}", "use a kubeconfig of a cluster admin")
    else:
        yield Finding("rights", "ok", "all that an apply needs")


def _nodes(stack: Stack, cluster: Cluster) -> Iterator[Finding]:
    nodes = cluster.list("v1", "Node")
    matching = [node for node in nodes if any(_matches(node, term) for term in node_terms(stack))]
    if not matching:
        fix = "set kubernetes.node_selector, or label the nodes: kubectl label node NAME onecopy.dev/replicas=true"
        level = "warning" if stack.kubernetes.node_selector else "problem"
        yield Finding("nodes", level, f"none of {len(nodes)} nodes may hold replicas", fix)
        return
    tolerated = tolerations(stack)
    blocked = {
        f"{taint['key']}:{taint['effect']}"
        for node in matching
        for taint in dig_list(node, "spec", "taints")
        if taint["effect"] != "PreferNoSchedule" and not any(_tolerates(one, taint) for one in tolerated)
    }
    if blocked:
        yield Finding(
            "taints", "problem", f"not tolerated: {', '.join(sorted(blocked))}", "add to kubernetes.tolerations"
        )
    yield from _cards(stack, matching)
    yield from _memory(stack, matching)


def _cards(stack: Stack, nodes: list[Object]) -> Iterator[Finding]:
    gpu = stack.kubernetes.gpu
    if gpu.count == 0:
        yield Finding("nodes", "ok", f"{len(nodes)} for replicas on the CPU")
        return
    there = sum(int(dig(node, "status", "allocatable", gpu.resource) or 0) for node in nodes)
    wanted = sum(model.config.replicas for model in stack.models) * gpu.count
    if there == 0:
        fix = "install NVIDIA's device plugin or GPU operator; see that the driver is on the nodes"
        yield Finding("gpus", "problem", f"{len(nodes)} nodes, and none offers {gpu.resource}", fix)
    elif there < wanted:
        fix = "add nodes, ask for fewer replicas, or let replicas share cards (kubernetes.gpu.replicas_per_card)"
        yield Finding("gpus", "warning", f"{there} × {gpu.resource} in {len(nodes)} nodes, {wanted} wanted", fix)
    else:
        yield Finding("gpus", "ok", f"{there} × {gpu.resource} in {len(nodes)} nodes, {wanted} wanted")


def _memory(stack: Stack, nodes: list[Object]) -> Iterator[Finding]:
    if stack.kubernetes.delivery != "node-cache":
        return
    least = min(parse_bytes(dig(node, "status", "allocatable", "memory") or "0") for node in nodes)
    need = stack.sizing.agent_memory + stack.sizing.replica_memory
    if least < need:
        fix = "larger nodes, kubernetes.cache.medium = disk, or a smaller kubernetes.cache.size"
        text = f"the cache and one replica take {format_bytes(need)}, the smallest node offers {format_bytes(least)}"
        yield Finding("memory", "problem", text, fix)
    else:
        yield Finding("memory", "ok", f"{format_bytes(need)} of {format_bytes(least)} for the cache and one replica")


def _matches(node: Object, term: Object) -> bool:
    labels = dig_map(node, "metadata", "labels")
    return all(
        e["key"] in labels and (e["operator"] == "Exists" or labels[e["key"]] in e["values"])
        for e in dig_list(term, "matchExpressions")
    )


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, taint["effect"]):
        return False
    if toleration.get("key") not in (None, taint["key"]):
        return False
    return toleration.get("operator") == "Exists" or toleration.get("value") == taint.get("value")


def _driver(stack: Stack, cluster: Cluster) -> Iterator[Finding]:
    if stack.kubernetes.delivery != "mount":
        return
    name, fix = DRIVERS[stack.kubernetes.cloud]
    if cluster.get("storage.k8s.io/v1", "CSIDriver", name) is None:
        yield Finding("driver", "problem", f"no CSI driver {name}", fix)
    else:
        yield Finding("driver", "ok", name)


def _secrets(stack: Stack, cluster: Cluster) -> Iterator[Finding]:
    for namespace, name, keys in wanted_secrets(stack):
        live = cluster.get("v1", "Secret", name, namespace)
        if live is None:
            made = " ".join(f"--from-literal={key}=…" for key in keys) or "--from-literal=KEY=…"
            fix = f"kubectl -n {namespace} create secret generic {name} {made}"
            yield Finding("secrets", "problem", f"no Secret {namespace}/{name}", fix)
        elif missing := [key for key in keys if key not in dig_map(live, "data")]:
            yield Finding("secrets", "problem", f"Secret {namespace}/{name} lacks {', '.join(missing)}", "add the key")
        else:
            yield Finding("secrets", "ok", f"{namespace}/{name}")


def wanted_secrets(stack: Stack) -> list[tuple[str, str, tuple[str, ...]]]:
    """Namespace, name and keys of the Secrets that people make: they are never in manifests."""
    settings = stack.kubernetes
    made: list[tuple[str, str, tuple[str, ...]]] = []
    publishes = any(model.publishable for model in stack.models)
    if stack.identity == "secret":
        keys = {"gs": ("key.json",), "az": ("AZURE_STORAGE_ACCOUNT_KEY",)}.get(
            stack.store.scheme, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        )
        reads_in = stack.agent_namespace if settings.delivery == "node-cache" else stack.namespace
        if settings.delivery == "mount" and settings.cloud == "aws":
            # Mountpoint's driver has a Secret of its own, under a name that cannot be chosen
            made.append(("kube-system", "aws-secret", ("key_id", "access_key")))
        else:
            made.append((reads_in, principal(stack, "reader") or "", keys))
        if publishes:
            made.append((stack.namespace, principal(stack, "writer") or "", keys))
    if settings.api_key_secret:
        made.append((stack.namespace, settings.api_key_secret, ("api-key",)))
    if settings.hub_secret and publishes:
        made.append((stack.namespace, settings.hub_secret, ("token",)))
    if settings.ingress.tls_secret:
        made.append((stack.namespace, settings.ingress.tls_secret, ("tls.crt", "tls.key")))
    return made


def _kinds(stack: Stack, cluster: Cluster) -> Iterator[Finding]:
    if stack.kubernetes.autoscaling.max_replicas and not cluster.has_kind("keda.sh/v1alpha1", "ScaledObject"):
        yield Finding("keda", "problem", "autoscaling is on, and the cluster has no KEDA", "install KEDA")
    mode = stack.kubernetes.observability.mode
    there = cluster.has_kind("monitoring.coreos.com/v1", "PodMonitor")
    if mode == "existing" and not there:
        fix = "set kubernetes.observability.mode = install, or install the Prometheus operator"
        yield Finding("monitoring", "problem", "no Prometheus operator", fix)
    elif mode == "auto":
        yield Finding(
            "monitoring", "ok", "what is there is used" if there else "kube-prometheus-stack will be installed"
        )


def _ingress(stack: Stack, cluster: Cluster) -> Iterator[Finding]:
    settings = stack.kubernetes.ingress
    if settings.host is None:
        return
    classes = [str(found["metadata"]["name"]) for found in cluster.list("networking.k8s.io/v1", "IngressClass")]
    if settings.class_name and settings.class_name not in classes:
        fix = f"the cluster has: {', '.join(classes) or 'none; install an ingress controller'}"
        yield Finding("ingress", "problem", f"no ingress class {settings.class_name}", fix)
    else:
        yield Finding("ingress", "ok", settings.host)


def _labels(stack: Stack, cluster: Cluster) -> Iterator[Finding]:
    """Pods that the router would take for its replicas although another stack made them."""
    release = f"{stack.release}-"
    strangers = [
        str(pod["metadata"]["name"])
        for pod in cluster.list("v1", "Pod", labels=stack.selector("replica"))
        if pod["metadata"]["namespace"] != stack.namespace or not str(pod["metadata"]["name"]).startswith(release)
    ]
    if strangers:
        yield Finding("labels", "problem", f"other pods carry this stack's labels: {strangers[0]}", "rename the stack")
    else:
        yield Finding("labels", "ok", "no other pod carries this stack's labels")


def _quota(stack: Stack, cluster: Cluster) -> Iterator[Finding]:
    for quota in cluster.list("v1", "ResourceQuota", namespace=stack.namespace):
        hard, used = dig_map(quota, "status", "hard"), dig_map(quota, "status", "used")
        need = sum(model.config.replicas for model in stack.models) * stack.sizing.replica_memory
        for resource in ("requests.memory", "limits.memory"):
            if resource in hard and parse_bytes(hard[resource]) - parse_bytes(used.get(resource, "0")) < need:
                text = (
                    f"ResourceQuota {quota['metadata']['name']}: {resource} {hard[resource]}, {used.get(resource)} used"
                )
                yield Finding("quota", "warning", f"{text}; replicas ask for {format_bytes(need)}", "raise the quota")


def _images(stack: Stack) -> Iterator[Finding]:
    images = stack.kubernetes.images
    for name in (images.onecopy, images.engine):
        if "/" not in name:
            fix = "build it from images/, push it where the nodes can pull it, and set kubernetes.images"
            yield Finding("images", "warning", f"{name} names no registry: the nodes must have it already", fix)
