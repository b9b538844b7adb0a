"""What differs between the cluster and what is wanted: by the API server's own dry-run, so that its defaults, webhooks
and merges are in the answer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from onecopy.targets.base import Change, FieldChange, diff_fields
from onecopy.targets.kubernetes.cluster import FIELD_MANAGER, HELM_MANAGER, Cluster, Immutable, KindMissing
from onecopy.targets.kubernetes.helm import Helm
from onecopy.targets.kubernetes.namespaces import shared
from onecopy.targets.kubernetes.releases import Release
from onecopy.targets.kubernetes.stack import LABEL_COMPONENT, LABEL_STACK, Object, Stack, dig, dig_map

_SERVER_FIELDS = ("managedFields", "resourceVersion", "uid", "creationTimestamp", "generation", "selfLink")
_SERVER_ANNOTATIONS = ("deployment.kubernetes.io/revision", "deprecated.daemonset.template.generation")
STATE_COMPONENT = "state"
KINDS = (
    ("networking.k8s.io/v1", "Ingress"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("batch/v1", "Job"),
    ("apps/v1", "DaemonSet"),
    ("v1", "PersistentVolumeClaim"),
    ("v1", "PersistentVolume"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("v1", "ConfigMap"),
    ("v1", "ServiceAccount"),
    ("v1", "Namespace"),
)
"""Every kind that the builders make, in the order in which it goes: what uses goes before what is used."""


def key(obj: Object) -> tuple[str, str, str | None]:
    meta = obj["metadata"]
    return obj["kind"], meta["name"], meta.get("namespace")


def label(obj: Object) -> str:
    meta = obj["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else str(meta["name"])


def normal(obj: Object) -> Object:
    """An object without what the server writes: the part that a plan speaks of."""
    meta = {k: v for k, v in obj["metadata"].items() if k not in _SERVER_FIELDS}
    annotations = {k: v for k, v in dig_map(meta, "annotations").items() if k not in _SERVER_ANNOTATIONS}
    meta.pop("annotations", None)
    if annotations:
        meta["annotations"] = annotations
    # before Kubernetes 1.24 a controller names a token in each service account, some time after it was made
    written = ("status", "secrets") if obj["kind"] == "ServiceAccount" else ("status",)
    return {k: v for k, v in {**obj, "metadata": meta}.items() if k not in written}


class Differ:
    """One plan's reading of the cluster. `seen` collects the live state for the plan's fingerprint."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.seen: list[Any] = []
        self._namespaces: dict[str, bool] = {}

    def compare(self, group: str, obj: Object, *, manager: str = FIELD_MANAGER) -> Change:
        change = functools.partial(Change, group=group, kind=obj["kind"], name=label(obj))
        try:
            live = self.cluster.get_like(obj)
        except KindMissing:
            self.seen.append((key(obj), None))
            return change(action="create", note="its kind comes with the monitoring")
        self.seen.append((key(obj), normal(live) if live else None))
        if live is None:
            if self._exists(obj["metadata"].get("namespace")):
                self.cluster.apply(obj, dry_run=True, manager=manager)  # a refusal is known before anything is done
            return change(action="create")
        try:
            after = self.cluster.apply(obj, dry_run=True, manager=manager)
        except Immutable as error:
            return change(action="replace", note=error.message)
        fields = tuple(diff_fields(normal(live), normal(after)))
        if not fields:
            return change(action="no-op")
        return change(action="update", fields=fields, note=_restarts(live, fields))

    def compare_release(self, group: str, helm: Helm, release: Release) -> Change:
        change = functools.partial(Change, group=group, kind="Release", name=f"{release.namespace}/{release.name}")
        state = helm.state(release) if self._exists(release.namespace) else None
        self.seen.append((release.name, state))
        if state is None:
            return change(action="create", note=f"{release.chart} {release.version}")
        if state != "deployed":
            return change(action="update", note=f"the release is {state}")
        wanted = helm.dry_run(release)
        found = [self.compare(group, obj, manager=HELM_MANAGER) for obj in wanted]
        fields = tuple(
            FieldChange(path=f"{inner.kind}/{inner.name}: {field.path}", before=field.before, after=field.after)
            for inner in found
            for field in (inner.fields or _whole(inner))
        )
        gone = helm.objects(release) - {key(obj) for obj in wanted}
        fields += tuple(
            FieldChange(path=f"{kind}/{name}", before="there", after=None) for kind, name, _ in sorted(gone, key=str)
        )
        if not fields:
            return change(action="no-op")
        notes = "; ".join(inner.note for inner in found if inner.note)
        return change(action="update", fields=fields, note=notes or None)

    def prune(self, stack: Stack, wanted: Iterable[Object]) -> list[tuple[Change, Object]]:
        """What carries the stack's label and is no longer wanted."""
        keep = {key(obj) for obj in wanted}
        found: list[tuple[Change, Object]] = []
        for live in labelled(self.cluster, stack):
            if live["kind"] == "Namespace" and shared(self.cluster, stack, str(live["metadata"]["name"])):
                continue
            if key(live) in keep or live["metadata"]["labels"].get(LABEL_COMPONENT) == STATE_COMPONENT:
                continue
            self.seen.append((key(live), "prune"))
            change = Change(group="prune", kind=live["kind"], name=label(live), action="delete")
            found.append((change, live))
        return found

    def _exists(self, namespace: str | None) -> bool:
        if namespace is None:
            return True
        if namespace not in self._namespaces:
            self._namespaces[namespace] = self.cluster.get("v1", "Namespace", namespace) is not None
        return self._namespaces[namespace]


def labelled(cluster: Cluster, stack: Stack) -> list[Object]:
    """All that this stack has made itself, in the order in which it goes."""
    selector = {LABEL_STACK: stack.stack_label, "app.kubernetes.io/managed-by": "onecopy"}
    found: list[Object] = []
    for api_version, kind in KINDS:
        try:
            found += cluster.list(api_version, kind, labels=selector)
        except KindMissing:
            continue
    return found


def _whole(change: Change) -> tuple[FieldChange, ...]:
    return () if change.action == "no-op" else (FieldChange(path="", before=None, after=change.action),)


def _restarts(live: Object, fields: Sequence[FieldChange]) -> str | None:
    if live["kind"] not in ("Deployment", "DaemonSet") or not any(f.path.startswith("spec.template") for f in fields):
        return None
    if live["kind"] == "DaemonSet":
        return "restarts its pods; what is on the nodes stays"
    count = dig(live, "spec", "replicas") or 0
    how = "all at once" if dig(live, "spec", "strategy", "type") == "Recreate" else "one by one"
    return f"restarts {count} pod{'s' if count != 1 else ''}, {how}"
