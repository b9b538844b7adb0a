"""The one schema of a stack. `onecopy.toml`, `ONECOPY_*` and flags all end here.

Every field's description becomes a comment of `onecopy init` and a line of `docs/reference/configuration.md`.
A field's environment name is `ONECOPY_<SECTION>_<FIELD>`, e.g. `ONECOPY_ROUTER_PORT`.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from onecopy.config.aws import AwsConfig
from onecopy.config.kubernetes import KubernetesConfig
from onecopy.config.section import Delivery, Name, Section, TargetName

__all__ = [
    "CacheConfig",
    "Delivery",
    "EngineConfig",
    "ModelConfig",
    "Name",
    "RouterConfig",
    "Section",
    "StackConfig",
    "StoreConfig",
    "TargetName",
]


SAMPLE = "sample"
"""The source that needs no hub: SmolLM2-135M-Instruct out of a package."""
SAMPLE_NAME = "smollm2-135m-instruct"


class StoreConfig(Section):
    uri: str | None = None
    """Where the weights live: s3://bucket/prefix, gs://bucket/prefix, az://account/container/prefix or file:///folder.
    Unset on the local target: an S3 server of our own on loopback."""
    endpoint: str | None = None
    """Endpoint of an S3-compatible store; AWS_ENDPOINT_URL is honoured too."""
    region: str | None = None
    """Region of the store; the cloud's usual environment is honoured too."""
    ca_file: Path | None = None
    """PEM file of a private certificate authority."""


class ModelConfig(Section):
    name: Name | None = None
    """Name that clients ask for and that the registry keeps; by default derived from the source."""
    source: str = "sample"
    """What to serve: `sample` (SmolLM2-135M-Instruct, needs no hub), a Hugging Face folder, or hf://org/name[@revision]."""
    revision: str = "main"
    """Ref or revision of the registry to serve."""
    replicas: int = Field(default=2, ge=1, le=256)
    """How many vLLM servers share this model's one copy."""
    max_model_len: int | None = Field(default=None, ge=16)
    """Longest context in tokens; by default what the model and the memory allow."""
    kv_cache_bytes: int | None = Field(default=None, ge=1 << 20)
    """KV cache of one replica in bytes; by default planned."""
    engine_args: tuple[str, ...] = ()
    """Further arguments for `vllm serve`, passed as they are."""


class EngineConfig(Section):
    python: Path | None = None
    """A Python that has vLLM, used instead of the CPU engine that onecopy installs."""
    start_timeout: float = Field(default=300, gt=0)
    """Longest wait for a replica to answer, in seconds."""
    fork_server: bool = True
    """Start replicas by forking a process that has imported vLLM already (about 2 s each); plain starts otherwise."""


class CacheConfig(Section):
    dir: Path | None = None
    """Folder of the node cache; by default on /dev/shm when it fits, else under the home."""
    headroom: float = Field(default=0.1, ge=0, lt=0.9)
    """Part of the memory (or disk) under the cache that a fill must leave free."""


class RouterConfig(Section):
    host: str = "127.0.0.1"
    """Address the router listens on."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port of the OpenAI-compatible endpoint; 0 takes a free one."""


class StackConfig(Section):
    """A whole stack: what runs, from which store, on which target."""

    name: Name = "onecopy"
    """The stack's name; it is in the labels of all it makes."""
    target: TargetName = "local"
    """Where it runs: local, kubernetes (any cluster) or aws (makes its own EKS cluster)."""
    store: StoreConfig = StoreConfig()
    models: tuple[ModelConfig, ...] = Field(default=(ModelConfig(),), min_length=1)
    engine: EngineConfig = EngineConfig()
    cache: CacheConfig = CacheConfig()
    router: RouterConfig = RouterConfig()
    kubernetes: KubernetesConfig = KubernetesConfig()
    aws: AwsConfig = AwsConfig()
