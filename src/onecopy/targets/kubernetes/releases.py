"""Third-party charts as releases: which chart, which version, which values. Helm itself is in `helm.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from onecopy.core.errors import ConfigError
from onecopy.core.units import parse_bytes
from onecopy.storage.layout import revision_prefix
from onecopy.targets.kubernetes import access, gpus
from onecopy.targets.kubernetes.delivery import node_terms, tolerations, volume_name
from onecopy.targets.kubernetes.identity import pod_access, service_account_name
from onecopy.targets.kubernetes.serving import by_node_ports
from onecopy.targets.kubernetes.sizing import PROBE_PERIOD, STREAM_BUFFER, quantity
from onecopy.targets.kubernetes.stack import (
    LABEL_MODEL,
    LABEL_REVISION,
    MODELS_DIR,
    Object,
    ServedModel,
    Stack,
)
from onecopy.targets.kubernetes.values import (
    HttpGet,
    Keda,
    ModelSpec,
    Probe,
    RouterSpec,
    SecretKey,
    ServingEngineSpec,
    VllmConfig,
    VllmStackValues,
)

SHARE = 0.92
"""Of a card's memory, given to vLLM in all: its own default, which leaves the driver and fragments their part."""
# Two retries elsewhere when a replica dies: off by default, and then one dead replica is one failed request in N
ROUTER_ARGS = ["--max-instance-failover-reroute-attempts", "2"]


# runAsNonRoot said here too: the chart's default for the container says false, and goes before the pod's
_CONTAINER_SECURITY = {**access.CONTAINER_SECURITY, "runAsNonRoot": True}


@dataclass(frozen=True, slots=True)
class Release:
    """name: of the Helm release. chart: a name in `repository`, a folder, or oci://…"""

    name: str
    namespace: str
    chart: str
    version: str
    repository: str | None
    values: dict[str, Any]
    deadline: int

    def as_dict(self) -> dict[str, Any]:
        made = {
            "name": self.name,
            "namespace": self.namespace,
            "chart": self.chart,
            "version": self.version,
            "repository": self.repository,
            "values": f"{self.name}.values.yaml",
        }
        return {key: value for key, value in made.items() if value is not None}


def serving(stack: Stack) -> Release:
    charts = stack.kubernetes.charts
    return Release(
        name=stack.release,
        namespace=stack.namespace,
        chart=charts.vllm_stack,
        version=charts.vllm_stack_version,
        repository=charts.vllm_stack_repository,
        values=serving_values(stack).dump(),
        deadline=stack.sizing.roll_deadline,
    )


def serving_values(stack: Stack) -> VllmStackValues:
    settings = stack.kubernetes
    key = SecretKey(secretName=settings.api_key_secret, secretKey="api-key") if settings.api_key_secret else None
    router_image = _image(settings.images.router)
    return VllmStackValues(
        servingEngineSpec=ServingEngineSpec(
            labels=_labels(stack, "replica"),
            vllmApiKey=key,
            modelSpec=[_model(stack, model) for model in stack.models],
            containerPort=access.ENGINE_PORT,
            servicePort=80,
            # A surge would ask for the cards twice, and two that load at once measure each other's memory
            strategy={"type": "Recreate"},
            startupProbe=_probe(PROBE_PERIOD, stack.sizing.startup_failures),
            # Long prefills make /health slow: only a minute of silence is death
            livenessProbe=_probe(10, 6),
            readinessProbe=_probe(5, 3),
            runtimeClassName=settings.gpu.runtime_class or "",
            securityContext=access.POD_SECURITY,
            containerSecurityContext=_CONTAINER_SECURITY,
        ),
        routerSpec=RouterSpec(
            repository=router_image[0],
            tag=router_image[1],
            imagePullSecrets=[{"name": settings.images.pull_secret}] if settings.images.pull_secret else [],
            serviceAccountName=service_account_name(stack, "router"),
            securityContext=access.POD_SECURITY,
            containerSecurityContext=_CONTAINER_SECURITY,
            containerPort=access.ENGINE_PORT,
            serviceType="NodePort" if by_node_ports(settings.ingress) else "ClusterIP",
            servicePort=80,
            routingLogic=settings.routing,
            sessionKey=settings.session_key or "",
            extraArgs=ROUTER_ARGS,
            env=[{"name": "HOME", "value": "/tmp"}, {"name": "USER", "value": "onecopy"}],  # noqa: S108
            labels=_labels(stack, "router"),
            strategy={"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            resources={"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
            extraVolumes=[{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
            extraVolumeMounts=[{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
            startupProbe=_probe(5, 36),
            livenessProbe=_probe(10, 6),
            readinessProbe=_probe(5, 3),
        ),
    )


def _labels(stack: Stack, component: str) -> dict[str, str]:
    """The chart's default labels (environment, release) are merged in by Helm unless they are set: then they are ours."""
    return {"environment": "onecopy", "release": stack.release, **stack.selector(component)}


def _probe(period: int, failures: int) -> Probe:
    return Probe(
        periodSeconds=period,
        failureThreshold=failures,
        httpGet=HttpGet(path="/health", port=access.ENGINE_PORT),
    )


def _model(stack: Stack, model: ServedModel) -> ModelSpec:
    settings = stack.kubernetes
    repository, tag = _image(settings.images.engine)
    revision = model.known_revision
    labels = {LABEL_MODEL: model.slug, LABEL_REVISION: revision}
    env: list[Object] = [
        {"name": "HOME", "value": "/tmp"},  # noqa: S108
        # Read where a user id has no name, as here
        {"name": "USER", "value": "onecopy"},
        {"name": "VLLM_CACHE_ROOT", "value": "/tmp/vllm"},  # noqa: S108
        # A replica serves what is in the store: it never asks the hub, nor tells anybody
        {"name": "HF_HUB_OFFLINE", "value": "1"},
        {"name": "DO_NOT_TRACK", "value": "1"},
    ]
    env_from: dict[str, str] | None = None
    volumes: list[Object] = [{"name": "tmp", "emptyDir": {}}]
    mounts: list[Object] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108
    annotations: dict[str, str] | None = None
    if settings.delivery == "stream":
        url = str(stack.store.child(revision_prefix(model.name, revision)))
        who = pod_access(stack, "replica", "reader")
        env += [*who.env, {"name": "RUNAI_STREAMER_MEMORY_LIMIT", "value": str(STREAM_BUFFER)}]
        env_from = {"name": who.secret} if who.secret and who.env_from else None
        volumes += who.volumes
        mounts += who.mounts
        labels |= who.labels
    else:
        url = f"{MODELS_DIR}/{model.slug}"
        claim = {"claimName": volume_name(stack, model, revision), "readOnly": True}
        volumes.append({"name": "weights", "persistentVolumeClaim": claim})
        mounts.append({"name": "weights", "mountPath": url, "readOnly": True})
        if settings.delivery == "mount":
            labels |= pod_access(stack, "replica", "reader").labels
            annotations = {"gke-gcsfuse/volumes": "true"} if settings.cloud == "gcp" else None
    cards = settings.gpu.count
    resources: dict[str, dict[str, str]] = {
        "requests": {"cpu": settings.cpu, "memory": quantity(stack.sizing.replica_memory)},
        "limits": {"memory": quantity(stack.sizing.replica_memory)},
    }
    if cards:
        resources["requests"][settings.gpu.resource] = str(cards)
        resources["limits"][settings.gpu.resource] = str(cards)
    return ModelSpec(
        name=model.slug,
        repository=repository,
        tag=tag,
        imagePullSecret=settings.images.pull_secret,
        modelURL=url,
        replicaCount=model.config.replicas,
        serviceAccountName=service_account_name(stack, "replica"),
        podLabels=labels,
        podAnnotations=annotations,
        resources=resources,
        vllmConfig=VllmConfig(
            enablePrefixCaching=True,
            maxModelLen=model.config.max_model_len or (model.gpu.max_model_len if model.gpu else None),
            tensorParallelSize=cards if cards > 1 else None,
            gpuMemoryUtilization=_utilization(stack, model),
            extraArgs=engine_args(stack, model),
        ),
        env=env,
        envFromSecret=env_from,
        extraVolumes=volumes,
        extraVolumeMounts=mounts,
        affinity=_affinity(stack, model),
        tolerations=tolerations(stack),
        shmSize="4Gi" if cards > 1 else None,
        keda=_keda(stack, model),
    )


def engine_args(stack: Stack, model: ServedModel) -> list[str]:
    """What the chart has no key for. Clients call the model by its name, wherever it lies."""
    formats = {
        "node-cache": ["--load-format", "onecopy"],
        # A FUSE mount is read front to back: lazy mapping asks for 128 KiB at a time
        "mount": ["--safetensors-load-strategy", "eager"],
        "stream": ["--load-format", "runai_streamer"],
    }
    kv = model.config.kv_cache_bytes
    return [
        "--served-model-name",
        model.name,
        *formats[stack.kubernetes.delivery],
        *(["--kv-cache-memory-bytes", str(kv)] if kv and stack.kubernetes.gpu.count else []),
        *(gpus.shared_args(model.gpu) if model.gpu else []),
        *model.config.engine_args,
    ]


def _utilization(stack: Stack, model: ServedModel) -> float | None:
    """As planned, else equal shares of the card; floored, because the sum must not pass the whole."""
    if stack.kubernetes.gpu.count == 0:
        return None
    if model.gpu:
        return model.gpu.gpu_memory_utilization
    return math.floor(SHARE / stack.kubernetes.gpu.replicas_per_card * 100) / 100


def _affinity(stack: Stack, model: ServedModel) -> Object:
    made: Object = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": node_terms(stack)}}
    }
    if stack.kubernetes.delivery != "node-cache":
        # Without a shared copy there is nothing to win by sitting together, and a node to lose
        term: Object = {
            "topologyKey": "kubernetes.io/hostname",
            "labelSelector": {"matchLabels": {**stack.selector("replica"), LABEL_MODEL: model.slug}},
        }
        made["podAntiAffinity"] = {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 50, "podAffinityTerm": term}]
        }
    return made


def _keda(stack: Stack, model: ServedModel) -> Keda | None:
    scaling = stack.kubernetes.autoscaling
    if scaling.max_replicas is None:
        return None
    monitoring = stack.kubernetes.observability
    query = (
        f'sum(vllm:num_requests_waiting{{namespace="{stack.namespace}",model_name="{model.name}"}})'
        f' / count(vllm:num_requests_waiting{{namespace="{stack.namespace}",model_name="{model.name}"}})'
    )
    return Keda(
        minReplicaCount=model.config.replicas,
        maxReplicaCount=max(scaling.max_replicas, model.config.replicas),
        cooldownPeriod=scaling.cooldown,
        triggers=[
            {
                "type": "prometheus",
                "metadata": {
                    "serverAddress": f"http://prometheus-operated.{monitoring.namespace}.svc:9090",
                    "query": query,
                    "threshold": str(scaling.waiting_requests),
                },
            }
        ],
    )


def _image(text: str) -> tuple[str, str]:
    """`repo:tag` or `repo@sha256:digest` for a chart that joins the two with a colon. Raises ConfigError: no tag."""
    repository, colon, tag = text.rpartition(":")
    if not colon or "/" in tag or tag == "latest":
        raise ConfigError(f"image {text} is not pinned", hint="write it as repository:version or repository@sha256:…")
    return repository, tag


MONITORING_RELEASE = "kube-prometheus-stack"
GRAFANA_SECRET = "onecopy-grafana"  # noqa: S105 - a name


def monitoring(stack: Stack) -> Release:
    """Prometheus and Grafana once for the cluster; monitors of every namespace are read."""
    charts, settings = stack.kubernetes.charts, stack.kubernetes.observability
    everything: Object = {
        f"{kind}SelectorNilUsesHelmValues": False for kind in ("serviceMonitor", "podMonitor", "rule", "probe")
    }
    # A cloud keeps its control plane's metrics to itself, and EKS kube-proxy's: their alerts would fire for ever
    hidden = (
        ("kubeControllerManager", "kubeScheduler", "kubeEtcd", "kubeProxy") if stack.kubernetes.cloud != "none" else ()
    )
    values: Object = {
        **{part: {"enabled": False} for part in hidden},
        # Where the API server reaches no pod (Calico on EKS), each rule would wait for its deadline
        "prometheusOperator": {"admissionWebhooks": {"enabled": False}, "tls": {"enabled": False}},
        "prometheus": {
            "prometheusSpec": {
                **everything,
                "retention": "15d",
                "resources": {"requests": {"cpu": "500m", "memory": quantity(parse_bytes("2Gi"))}},
            }
        },
        "grafana": {
            "sidecar": {"dashboards": {"enabled": True, "label": "grafana_dashboard", "searchNamespace": "ALL"}},
            # Made once by us, so that no password stands in values and none changes at each upgrade
            "admin": {"existingSecret": GRAFANA_SECRET, "userKey": "user", "passwordKey": "password"},
        },
    }
    return Release(
        name=MONITORING_RELEASE,
        namespace=settings.namespace,
        chart=charts.prometheus,
        version=charts.prometheus_version,
        repository=charts.prometheus_repository,
        values=values,
        deadline=900,
    )
