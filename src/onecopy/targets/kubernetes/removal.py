"""The end of a stack: what uses goes before what is used, and nothing that is billed is left behind unseen.

Load balancers are the clouds' own, held by finalizers on Ingresses and Services: those are waited for. The store stays,
unless a model is named.
"""

from __future__ import annotations

from collections.abc import Sequence

from onecopy.core.errors import UsageError
from onecopy.core.events import Event, Reporter
from onecopy.registry import care
from onecopy.storage.objectstore import open_store
from onecopy.targets.base import Change, Plan, fingerprint
from onecopy.targets.kubernetes import releases
from onecopy.targets.kubernetes.cluster import Cluster
from onecopy.targets.kubernetes.helm import Helm
from onecopy.targets.kubernetes.live import key, label, labelled
from onecopy.targets.kubernetes.models import store_options
from onecopy.targets.kubernetes.namespaces import shared
from onecopy.targets.kubernetes.rollout import Rollout
from onecopy.targets.kubernetes.stack import Object, Stack, dig

BALANCER_DEADLINE = 600
"""Seconds for a cloud to take a load balancer away: AWS takes one to three minutes."""
GONE_DEADLINE = 300


def plan(stack: Stack, cluster: Cluster, helm: Helm) -> Plan:
    changes: list[Change] = []
    seen: list[object] = []
    if cluster.get("v1", "Namespace", stack.namespace) and (state := helm.state(releases.serving(stack))):
        changes.append(
            Change(group="serving", kind="Release", name=f"{stack.namespace}/{stack.release}", action="delete")
        )
        seen.append(state)
    warnings: list[str] = []
    for obj in labelled(cluster, stack):
        if others := _others(cluster, stack, obj):
            warnings.append(f"namespace {label(obj)} stays: {', '.join(others)} is in it")
            continue
        changes.append(Change(group=_group(obj), kind=obj["kind"], name=label(obj), action="delete"))
        seen.append(key(obj))
    return Plan(
        target="kubernetes",
        stack=stack.config.name,
        changes=tuple(changes),
        seen=fingerprint([stack.stack_label, seen]),
        destroy=True,
        warnings=tuple(warnings),
    )


def run(stack: Stack, cluster: Cluster, helm: Helm, report: Reporter, *, with_monitoring: bool) -> None:
    rollout = Rollout(cluster, lambda: helm, report)
    found = [obj for obj in labelled(cluster, stack) if not _others(cluster, stack, obj)]
    ingresses = [obj for obj in found if obj["kind"] == "Ingress"]
    _delete(cluster, ingresses, report)
    balancers = [*ingresses, *_balancers(cluster, stack)]
    if cluster.get("v1", "Namespace", stack.namespace):
        report(Event("serving", "progress", message=f"uninstalling {stack.release}"))
        helm.uninstall(stack.release, stack.namespace)
        rollout.gone(balancers, BALANCER_DEADLINE, "edge")
        _replicas_gone(cluster, stack, rollout)
    if with_monitoring:
        monitoring = releases.monitoring(stack)
        report(Event("monitoring", "progress", message=f"uninstalling {monitoring.name}"))
        helm.uninstall(monitoring.name, monitoring.namespace)
    rest = [obj for obj in found if obj["kind"] not in ("Ingress", "Namespace")]
    _delete(cluster, rest, report)
    rollout.gone(rest, GONE_DEADLINE, "delivery")
    namespaces = [obj for obj in found if obj["kind"] == "Namespace"]
    _delete(cluster, namespaces, report)
    rollout.gone(namespaces, GONE_DEADLINE, "namespaces")
    report(Event("destroy", "done"))


def prune(cluster: Cluster, objects: Sequence[Object], rollout: Rollout, report: Reporter) -> None:
    """What left the configuration; waits until it is gone."""
    kept = [obj for obj in objects if obj["kind"] != "Namespace"]
    _delete(cluster, kept, report, "prune")
    rollout.gone(kept, GONE_DEADLINE, "prune")
    namespaces = [obj for obj in objects if obj["kind"] == "Namespace"]
    _delete(cluster, namespaces, report, "prune")
    rollout.gone(namespaces, GONE_DEADLINE, "prune")


def _others(cluster: Cluster, stack: Stack, obj: Object) -> list[str]:
    return shared(cluster, stack, str(obj["metadata"]["name"])) if obj["kind"] == "Namespace" else []


def check_models(stack: Stack, names: frozenset[str]) -> None:
    unknown = names - {model.name for model in stack.models}
    if unknown:
        raise UsageError(
            f"not a model of this stack: {', '.join(sorted(unknown))}",
            hint=f"its models: {', '.join(model.name for model in stack.models)}",
        )


def delete_models(stack: Stack, names: frozenset[str], report: Reporter) -> None:
    if not names:
        return
    store = open_store(stack.store, store_options(stack.config))
    for name in sorted(names):
        care.delete_model(store, name, report=report)


def _balancers(cluster: Cluster, stack: Stack) -> list[Object]:
    return [
        service
        for service in cluster.list("v1", "Service", namespace=stack.namespace)
        if dig(service, "spec", "type") == "LoadBalancer"
    ]


def _replicas_gone(cluster: Cluster, stack: Stack, rollout: Rollout) -> None:
    """A claim is held by the pods that use it: they go first."""
    for component in ("replica", "router"):
        rollout.gone(
            cluster.list("v1", "Pod", namespace=stack.namespace, labels=stack.selector(component)),
            GONE_DEADLINE,
            "serving",
        )


def _delete(cluster: Cluster, objects: list[Object], report: Reporter, step: str = "destroy") -> None:
    for obj in objects:
        report(Event(step, "progress", message=f"{obj['kind']} {label(obj)}"))
        cluster.delete(obj)


def _group(obj: Object) -> str:
    return {
        "Ingress": "edge",
        "PodMonitor": "edge",
        "Job": "publish",
        "DaemonSet": "delivery",
        "PersistentVolume": "delivery",
        "PersistentVolumeClaim": "delivery",
        "Namespace": "namespaces",
    }.get(obj["kind"], "access")
