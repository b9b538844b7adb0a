"""Our own model of the production stack's chart values (vllm-stack 0.1.12): the keys that we set, and no others.

The chart's schema lets typos and wrong types pass (`replicaCount: "two"` renders), so what we generate is held to this.
Names are the chart's, in its own spelling.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HttpGet(_Values):
    path: str
    port: int | str


class Probe(_Values):
    initialDelaySeconds: int = Field(default=1, ge=1)
    """Not 0: the chart takes that for unset and waits 15 s."""
    periodSeconds: int = Field(ge=1)
    failureThreshold: int = Field(ge=1)
    timeoutSeconds: int = Field(default=5, ge=1)
    httpGet: HttpGet


class SecretKey(_Values):
    secretName: str
    secretKey: str


class VllmConfig(_Values):
    enablePrefixCaching: bool
    maxModelLen: int | None = None
    tensorParallelSize: int | None = Field(default=None, ge=2)
    gpuMemoryUtilization: float | None = Field(default=None, gt=0, le=1)
    extraArgs: list[str]


class Keda(_Values):
    enabled: Literal[True] = True
    minReplicaCount: int = Field(ge=1)
    maxReplicaCount: int = Field(ge=1)
    pollingInterval: int = 15
    cooldownPeriod: int
    triggers: list[dict[str, Any]]


class ModelSpec(_Values):
    name: Label
    repository: str
    tag: str
    imagePullSecret: str | None = None
    modelURL: str
    replicaCount: int = Field(ge=0)
    serviceAccountName: str
    podLabels: dict[str, str]
    podAnnotations: dict[str, str] | None = None
    resources: dict[str, dict[str, str]]
    """Replaces the chart's request… and limit… keys, which render a GPU request only above 0."""
    vllmConfig: VllmConfig
    env: list[dict[str, Any]]
    envFromSecret: dict[str, str] | None = None
    extraVolumes: list[dict[str, Any]]
    extraVolumeMounts: list[dict[str, Any]]
    affinity: dict[str, Any]
    tolerations: list[dict[str, Any]]
    shmSize: str | None = None
    keda: Keda | None = None


class ServingEngineSpec(_Values):
    enableEngine: Literal[True] = True
    labels: dict[str, str]
    """The router finds its replicas by these: unique to the stack."""
    vllmApiKey: SecretKey | None = None
    modelSpec: list[ModelSpec] = Field(min_length=1)
    containerPort: int
    servicePort: int
    strategy: dict[str, Any]
    startupProbe: Probe
    livenessProbe: Probe
    readinessProbe: Probe
    runtimeClassName: str
    """Empty for none: the chart's own default is nvidia, which most clusters lack."""
    imagePullPolicy: Literal["IfNotPresent"] = "IfNotPresent"
    securityContext: dict[str, Any]
    containerSecurityContext: dict[str, Any]


class RouterSpec(_Values):
    enableRouter: Literal[True] = True
    repository: str
    tag: str
    imagePullPolicy: Literal["IfNotPresent"] = "IfNotPresent"
    imagePullSecrets: list[dict[str, str]] = []
    serviceAccountName: str
    securityContext: dict[str, Any]
    containerSecurityContext: dict[str, Any]
    replicaCount: int = 1
    containerPort: int
    serviceType: Literal["ClusterIP", "NodePort"] = "ClusterIP"
    servicePort: int
    serviceDiscovery: Literal["k8s"] = "k8s"
    k8sServiceDiscoveryType: Literal["pod-ip"] = "pod-ip"
    routingLogic: Literal["roundrobin", "session", "prefixaware"]
    sessionKey: str = ""
    engineScrapeInterval: int = 15
    extraArgs: list[str]
    env: list[dict[str, Any]]
    labels: dict[str, str]
    strategy: dict[str, Any]
    resources: dict[str, dict[str, str]]
    extraVolumes: list[dict[str, Any]]
    extraVolumeMounts: list[dict[str, Any]]
    startupProbe: Probe
    livenessProbe: Probe
    readinessProbe: Probe


class VllmStackValues(_Values):
    servingEngineSpec: ServingEngineSpec
    routerSpec: RouterSpec

    def dump(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)
