"""The `kubernetes` section: what a cluster adds to a stack. The aws target reads it too, once its cluster exists.

Secrets are never values here: a key names an existing Secret of the cluster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from onecopy.config.section import Delivery, Section

Cloud = Literal["aws", "gcp", "azure", "none"]
IdentityKind = Literal["pod-identity", "irsa", "workload-identity", "secret"]
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]

# The identity that a cloud recommends for pods
DEFAULT_IDENTITY: dict[Cloud, IdentityKind] = {
    "aws": "pod-identity",
    "gcp": "workload-identity",
    "azure": "workload-identity",
    "none": "secret",
}
IDENTITIES: dict[Cloud, tuple[IdentityKind, ...]] = {
    "aws": ("pod-identity", "irsa", "secret"),
    "gcp": ("workload-identity", "secret"),
    "azure": ("workload-identity", "secret"),
    "none": ("secret",),
}


class IdentityConfig(Section):
    kind: IdentityKind | None = None
    """How pods prove who they are to the store: pod-identity or irsa (aws), workload-identity (gcp, azure) or secret.
    By default what the cloud recommends."""
    reader: str | None = None
    """Who may read: role ARN (irsa), service account e-mail (gcp), client id (azure), or the Secret's name (secret)."""
    writer: str | None = None
    """Who may publish, in the same words as `reader`."""


class ImagesConfig(Section):
    onecopy: str = "onecopy:0.1.0"
    """Image of the agent and of the publish job; push it where the nodes can pull it (`images/`)."""
    engine: str = "onecopy-vllm:0.1.0"
    """vLLM with the onecopy plugin; for `mount` and `stream` a plain vLLM image does too."""
    router: str = "lmcache/lmstack-router:v0.1.12"
    """Router of the production stack."""
    pull_secret: str | None = None
    """Name of an existing image pull Secret."""


class Toleration(Section):
    key: str | None = None
    """Taint key; unset tolerates every key."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Exists or Equal."""
    value: str | None = None
    """Taint value, for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; unset tolerates every effect."""


class GpuConfig(Section):
    count: int = Field(default=1, ge=0, le=16)
    """Cards of one replica; 0 serves on the CPU."""
    resource: str = "nvidia.com/gpu"
    """Extended resource that the device plugin offers."""
    card: str | None = None
    """Card of the nodes (`onecopy gpu cards` lists them): a model that cannot fit is refused, and replicas that share a
    card get their share, KV cache and length from the planner."""
    replicas_per_card: int = Field(default=1, ge=1, le=8)
    """Replicas that share one card. They need a device plugin that offers each card as many times (time-slicing or MPS)."""
    runtime_class: str | None = None
    """RuntimeClass of the replicas, where the GPU operator needs one."""


class PodCacheConfig(Section):
    medium: Literal["memory", "disk"] = "memory"
    """Where a node keeps the weights: its memory (tmpfs) or its disk."""
    path: Path | None = None
    """Folder on the node; by default /dev/shm/onecopy (memory) or /var/lib/onecopy (disk)."""
    size: Quantity | None = None
    """Room for weights on each node; by default twice the models of this stack, so that a new revision fits beside the old."""


class IngressConfig(Section):
    host: str | None = None
    """Public host name of the endpoint. Unset: the endpoint is reachable inside the cluster only."""
    class_name: str | None = None
    """Ingress class."""
    tls_secret: str | None = None
    """Name of an existing TLS Secret; a certificate of the load balancer may be named in `annotations` instead."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations of the Ingress, e.g. the certificate ARN of an AWS load balancer."""


class AutoscalingConfig(Section):
    max_replicas: int | None = Field(default=None, ge=1, le=256)
    """Upper limit of replicas a model; unset turns autoscaling off. Needs KEDA in the cluster."""
    waiting_requests: int = Field(default=5, ge=1)
    """Requests waiting in a replica's queue at which one more replica is started."""
    cooldown: int = Field(default=360, ge=0)
    """Seconds without load before a replica is stopped."""


class ObservabilityConfig(Section):
    mode: Literal["auto", "install", "existing", "none"] = "auto"
    """Prometheus and Grafana: use what is there and else install (auto), install, use what is there, or none."""
    namespace: Label = "monitoring"
    """Namespace of kube-prometheus-stack."""


class ChartConfig(Section):
    """Where a third-party chart comes from. A mirror or a folder may be named instead."""

    vllm_stack: str = "vllm-stack"
    """The production stack's chart: a name in `vllm_stack_repository`, a folder, or oci://…"""
    vllm_stack_repository: str | None = "https://vllm-project.github.io/production-stack"
    """Its repository; unset for a folder or oci://…"""
    vllm_stack_version: str = "0.1.12"
    """Its version."""
    prometheus: str = "kube-prometheus-stack"
    """The monitoring chart, in the same words."""
    prometheus_repository: str | None = "https://prometheus-community.github.io/helm-charts"
    """Its repository."""
    prometheus_version: str = "82.4.3"
    """Its version."""


class KubernetesConfig(Section):
    kubeconfig: Path | None = None
    """Kubeconfig file; KUBECONFIG and ~/.kube/config otherwise."""
    context: str | None = None
    """Context of the kubeconfig; by default its current one."""
    namespace: Label | None = None
    """Namespace of the stack; by default the stack's name."""
    cloud: Cloud = "none"
    """Whose cluster it is: aws, gcp, azure, or none for any other."""
    delivery: Delivery = "node-cache"
    """How replicas get weights: node-cache (an agent fetches once a node), mount (the cloud's CSI driver) or stream."""
    identity: IdentityConfig = IdentityConfig()
    images: ImagesConfig = ImagesConfig()
    gpu: GpuConfig = GpuConfig()
    cpu: Quantity = "6"
    """CPU request of a replica."""
    memory: Quantity | None = None
    """Memory request and limit of a replica; by default derived from the model's size."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes for replicas and cache."""
    tolerations: tuple[Toleration, ...] = ()
    """Tolerations of replicas and cache; the GPU taint is tolerated always."""
    fill_rate: Quantity = "100M"
    """Slowest fetch that is still healthy, bytes a second: deadlines and probes are derived from it."""
    model_bytes: Quantity | None = None
    """Size of the largest checkpoint, for sizing when the store cannot be asked from here."""
    hub_secret: str | None = None
    """Name of an existing Secret whose key `token` is a Hugging Face token, for gated and private models."""
    azure_resource_group: str | None = None
    """Resource group of the storage account (azure, mount)."""
    cache: PodCacheConfig = PodCacheConfig()
    routing: Literal["roundrobin", "session", "prefixaware"] = "roundrobin"
    """How the router spreads requests."""
    session_key: str | None = None
    """Header that carries the session (routing = session)."""
    api_key_secret: str | None = None
    """Name of an existing Secret whose key `api-key` clients must present. Needed as soon as an ingress is set."""
    ingress: IngressConfig = IngressConfig()
    autoscaling: AutoscalingConfig = AutoscalingConfig()
    observability: ObservabilityConfig = ObservabilityConfig()
    charts: ChartConfig = ChartConfig()
