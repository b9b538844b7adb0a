"""What kube-prometheus-stack needs before it is installed: its namespace, and a password for Grafana that we make once."""

from __future__ import annotations

import base64
import secrets

from onecopy.targets.kubernetes.cluster import Cluster
from onecopy.targets.kubernetes.releases import GRAFANA_SECRET, Release


def prepare(cluster: Cluster, release: Release) -> None:
    """Idempotent: a password that is there stays. It is written to the cluster and nowhere else."""
    if cluster.get("v1", "Namespace", release.namespace) is None:
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": release.namespace}})
    if cluster.get("v1", "Secret", GRAFANA_SECRET, release.namespace) is None:
        values = {"user": "admin", "password": secrets.token_urlsafe(18)}
        cluster.create(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": GRAFANA_SECRET, "namespace": release.namespace},
                "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()},
            }
        )
