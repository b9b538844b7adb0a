"""Namespaces that several stacks share, or that were there before: they belong to who made them, and outlive the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onecopy.targets.kubernetes.build import Stage
from onecopy.targets.kubernetes.cluster import Cluster
from onecopy.targets.kubernetes.stack import LABEL_STACK, Object, Stack, dig

ENFORCE = "pod-security.kubernetes.io/enforce"


def without_foreign(stages: Sequence[Stage], cluster: Cluster, stack: Stack) -> tuple[list[Stage], list[str]]:
    """The stages without namespaces that are somebody else's, and a warning for each whose pod security does not fit."""
    made: list[Stage] = []
    warnings: list[str] = []
    for stage in stages:
        kept: list[Object] = []
        for obj in stage.objects:
            live = cluster.get_like(obj) if obj["kind"] == "Namespace" else None
            if live is None or dig(live, "metadata", "labels", LABEL_STACK) == stack.stack_label:
                kept.append(obj)
                continue
            wanted, found = obj["metadata"]["labels"][ENFORCE], dig(live, "metadata", "labels", ENFORCE)
            if found != wanted:
                name = obj["metadata"]["name"]
                warnings.append(
                    f"namespace {name} is not this stack's, and enforces pod security {found}, not {wanted}"
                )
        made.append(replace(stage, objects=kept))
    return [stage for stage in made if stage.objects or stage.releases], warnings


def shared(cluster: Cluster, stack: Stack, namespace: str) -> list[str]:
    """Other stacks that have something in a namespace."""
    others = {
        str(dig(obj, "metadata", "labels", LABEL_STACK))
        for api_version, kind in (("v1", "ConfigMap"), ("apps/v1", "DaemonSet"), ("apps/v1", "Deployment"))
        for obj in cluster.list(api_version, kind, namespace=namespace)
        if dig(obj, "metadata", "labels", LABEL_STACK) not in (None, stack.stack_label)
    }
    return sorted(others)
