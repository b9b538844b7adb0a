"""The cluster half of an AWS stack: the configuration that the Kubernetes target gets, EKS's charts, and the target."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onecopy.config.schema import StackConfig
from onecopy.core.events import Event, Reporter
from onecopy.targets.aws import charts
from onecopy.targets.aws.inputs import Inputs, gpu_instance
from onecopy.targets.aws.nodes import WORKLOAD
from onecopy.targets.base import Plan, Rendered, Status, fingerprint
from onecopy.targets.kubernetes.build import Stage
from onecopy.targets.kubernetes.helm import Helm
from onecopy.targets.kubernetes.live import Differ
from onecopy.targets.kubernetes.releases import Release
from onecopy.targets.kubernetes.rollout import Rollout
from onecopy.targets.kubernetes.serving import ALB_TARGETS
from onecopy.targets.kubernetes.stack import Object
from onecopy.targets.kubernetes.target import KubernetesTarget

GROUP = "charts"
_NODE_CPUS = 2
"""Of a GPU node, for what runs beside the replicas: the cache's agent, plugin, exporters, and the system."""


def cluster_config(
    inputs: Inputs, outputs: Mapping[str, str], kubeconfig: Path | None, *, region: str | None
) -> StackConfig:
    """The stack's configuration as the Kubernetes target needs it on this cluster; what the user set stays.

    outputs: of the stack; empty while it is not there.
    """
    config = inputs.config
    kubernetes = config.kubernetes
    gpu = inputs.aws.gpu_nodes.enabled
    identity: dict[str, Any] = {"kind": inputs.identity}
    if inputs.identity == "irsa":
        identity |= {"reader": outputs.get("ReaderRoleArn"), "writer": outputs.get("WriterRoleArn")}
    changed: dict[str, Any] = {
        "cloud": "aws",
        "identity": kubernetes.identity.model_copy(update={k: v for k, v in identity.items() if v}),
        "node_selector": kubernetes.node_selector or {WORKLOAD: "gpu" if gpu else "cpu"},
    }
    kind = gpu_instance(config)
    if kind is not None and kubernetes.gpu.count and "cpu" not in kubernetes.model_fields_set:
        # as many replicas as the node's cards take; the defaults share an L4 whose node has 8 vCPUs
        together = max(1, kind.cards * kubernetes.gpu.replicas_per_card // kubernetes.gpu.count)
        changed["cpu"] = str(max(1, min(int(kubernetes.cpu), (kind.cpus - _NODE_CPUS) // together)))
    if kubeconfig is not None:
        changed |= {"kubeconfig": kubeconfig, "context": None}
    if not gpu:
        changed["gpu"] = kubernetes.gpu.model_copy(update={"count": 0})
    if kubernetes.ingress.host and kubernetes.ingress.class_name in (None, "alb"):
        annotations = dict(kubernetes.ingress.annotations)
        if inputs.is_calico:  # pods of an overlay have addresses that no load balancer reaches
            annotations.setdefault(ALB_TARGETS, "instance")
        changed["ingress"] = kubernetes.ingress.model_copy(update={"class_name": "alb", "annotations": annotations})
    store = config.store.model_copy(
        update={"uri": outputs.get("StoreUri") or config.store.uri, "region": config.store.region or region}
    )
    return config.model_copy(
        update={"target": "kubernetes", "store": store, "kubernetes": kubernetes.model_copy(update=changed)}
    )


class Workloads:
    def __init__(self, inputs: Inputs, config: StackConfig, outputs: Mapping[str, str]) -> None:
        self._inputs, self.config, self._outputs = inputs, config, outputs
        self.target = KubernetesTarget(config)

    @functools.cached_property
    def _helm(self) -> Helm:
        return Helm(self.config.kubernetes.kubeconfig, self.config.kubernetes.context)

    @property
    def _releases(self) -> list[Release]:
        return list(charts.releases(self._inputs, region=self.config.store.region or "", outputs=self._outputs))

    def plan(self, *, rollback: bool) -> Plan:
        differ = Differ(self.target.cluster)
        found = [
            *(differ.compare(GROUP, obj) for obj in _namespaces(self._releases)),
            *(differ.compare_release(GROUP, self._helm, release) for release in self._releases),
        ]
        below = self.target.plan(rollback=rollback)
        seen = fingerprint([below.seen, *differ.seen])
        return below.model_copy(update={"changes": (*found, *below.changes), "seen": seen})

    def apply(self, *, rollback: bool, report: Reporter) -> None:
        """Plans and applies in one: on a first apply the cluster was not there to be planned for."""
        for release in self._releases:
            stage = Stage(release.name, _namespaces([release]), [release], deadline=release.deadline)
            changed = {("Namespace", release.namespace), ("Release", f"{release.namespace}/{release.name}")}
            Rollout(self.target.cluster, lambda: self._helm, report).stage(stage, changed)
        self.target.apply(self.target.plan(rollback=rollback), report=report)

    def install_calico(self, *, report: Reporter) -> None:
        """Waits for nothing: there is no node yet that it could run on."""
        release = charts.calico(self._inputs)
        report(Event("calico", "started", f"{release.chart} {release.version}"))
        for namespace in _namespaces([release]):
            self.target.cluster.apply(namespace)
        self._helm.apply(release)
        report(Event("calico", "done", f"{release.chart} {release.version}"))

    def destroy(self, *, delete_models: frozenset[str], report: Reporter) -> None:
        """The stack's own parts: with its ingress go the load balancers. Charts go with the cluster."""
        self.target.destroy(self.target.plan(destroy=True), delete_models=delete_models, report=report)

    def status(self) -> Status:
        return self.target.status()

    def outputs(self) -> dict[str, Any]:
        return self.target.outputs()

    def render(self, out: Path) -> Rendered:
        folder = out / "charts"
        folder.mkdir(parents=True, exist_ok=True)
        releases = [*([charts.calico(self._inputs)] if self._inputs.is_calico else []), *self._releases]
        files = [folder / "releases.json"]
        files[0].write_text(json.dumps([r.as_dict() for r in releases], indent=1) + "\n", encoding="utf-8")
        for release in releases:
            files.append(folder / f"{release.name}.values.yaml")
            files[-1].write_text(json.dumps(release.values, indent=1) + "\n", encoding="utf-8")
        below = self.target.render(out / "kubernetes")
        return Rendered(files=(*files, *below.files), warnings=below.warnings)


def _namespaces(releases: Iterable[Release]) -> list[Object]:
    """Those that no cluster has by itself."""
    names = dict.fromkeys(release.namespace for release in releases if release.namespace != "kube-system")
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names]
