"""Fixtures of the cluster tests: one control plane a session, a namespace of its own for each test's stack."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import plane
from tests.cluster.nodes import Hand, add_node

from onecopy.config.schema import StackConfig
from onecopy.targets.kubernetes.cluster import Cluster

CHART = {
    "Chart.yaml": "apiVersion: v2\nname: tiny-stack\nversion: 0.1.12\n",
    # The parts of the production stack that the target relies on: its names, labels, strategy and pod fields
    "templates/all.yaml": """\
{{- range $m := .Values.servingEngineSpec.modelSpec }}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: "{{ $.Release.Name }}-{{ $m.name }}-deployment-vllm"
  labels: {{- toYaml $.Values.servingEngineSpec.labels | nindent 4 }}
spec:
  replicas: {{ $m.replicaCount }}
  strategy: {{- toYaml $.Values.servingEngineSpec.strategy | nindent 4 }}
  selector:
    matchLabels: {{- toYaml (merge (dict "model" $m.name) $.Values.servingEngineSpec.labels) | nindent 6 }}
  template:
    metadata:
      labels: {{- toYaml (merge (dict "model" $m.name) $.Values.servingEngineSpec.labels $m.podLabels) | nindent 8 }}
    spec:
      serviceAccountName: {{ $m.serviceAccountName }}
      affinity: {{- toYaml $m.affinity | nindent 8 }}
      tolerations: {{- toYaml $m.tolerations | nindent 8 }}
      volumes: {{- toYaml $m.extraVolumes | nindent 8 }}
      containers:
        - name: vllm
          image: "{{ $m.repository }}:{{ $m.tag }}"
          args: {{- toYaml (concat (list $m.modelURL) $m.vllmConfig.extraArgs) | nindent 12 }}
          resources: {{- toYaml $m.resources | nindent 12 }}
          volumeMounts: {{- toYaml $m.extraVolumeMounts | nindent 12 }}
{{- end }}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: "{{ .Release.Name }}-deployment-router"
  labels: {{- toYaml .Values.routerSpec.labels | nindent 4 }}
spec:
  selector:
    matchLabels: {{- toYaml .Values.routerSpec.labels | nindent 6 }}
  template:
    metadata:
      labels: {{- toYaml .Values.routerSpec.labels | nindent 8 }}
    spec:
      serviceAccountName: {{ .Values.routerSpec.serviceAccountName }}
      containers:
        - name: router
          image: "{{ .Values.routerSpec.repository }}:{{ .Values.routerSpec.tag }}"
---
apiVersion: v1
kind: Service
metadata:
  name: "{{ .Release.Name }}-router-service"
spec:
  selector: {{- toYaml .Values.routerSpec.labels | nindent 4 }}
  ports: [{port: 80, targetPort: 8000, protocol: TCP}]
""",
}


@pytest.fixture(scope="session")
def helm() -> Path:
    found = plane.cache() / "helm"
    named = str(found) if found.is_file() else shutil.which("helm")
    if named is None:
        pytest.skip("no helm: run tests/cluster/prepare")
    return Path(named)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[plane.ControlPlane]:
    reason = plane.missing()
    if reason:
        pytest.skip(f"no control plane: {reason}")
    with plane.ControlPlane(tmp_path_factory.mktemp("plane")) as running:
        cluster = plane.connect(running.kubeconfig)
        add_node(cluster, "cpu-1")
        add_node(cluster, "gpu-1", gpus=4)
        add_node(cluster, "gpu-2", gpus=4)
        yield running
        cluster.close()


@pytest.fixture(autouse=True)
def environment(helm: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONECOPY_HELM", str(helm))
    for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.delenv("KUBECONFIG", raising=False)


@pytest.fixture
def cluster(control_plane: plane.ControlPlane) -> Cluster:
    return plane.connect(control_plane.kubeconfig)


@pytest.fixture
def hand(cluster: Cluster, tmp_path: Path) -> Iterator[Hand]:
    with Hand(cluster, tmp_path / "nodes") as playing:
        yield playing


@pytest.fixture(scope="session")
def chart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chart")
    for name, text in CHART.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="session")
def vllm_stack() -> Path:
    """The real chart, unpacked, without its sub-charts: no package registry carries it."""
    named = os.environ.get("VLLM_STACK_CHART")
    if not named:
        pytest.skip("no vllm-stack chart: set VLLM_STACK_CHART to its folder")
    return Path(named)


Make = Callable[..., StackConfig]


@pytest.fixture
def make(control_plane: plane.ControlPlane, chart: Path, request: pytest.FixtureRequest) -> Make:
    """A stack's configuration in a namespace of the test's own."""
    namespace = "t-" + request.node.name.lower().replace("_", "-").replace("[", "-").rstrip("]")[5:50].strip("-")

    def made(
        models: list[dict[str, Any]] | None = None, store: dict[str, Any] | None = None, **kubernetes: Any
    ) -> StackConfig:
        return StackConfig.model_validate(
            {
                "name": "chat",
                "target": "kubernetes",
                "store": store or {"uri": "s3://models/prod"},
                "models": models or [{"name": "tiny", "source": "folder", "revision": "0123456789abcdef"}],
                "kubernetes": {
                    "kubeconfig": control_plane.kubeconfig,
                    "namespace": namespace,
                    "model_bytes": "1Gi",
                    "observability": {"mode": "none"},
                    "charts": {"vllm_stack": str(chart), "vllm_stack_repository": None},
                    **kubernetes,
                },
            }
        )

    return made
