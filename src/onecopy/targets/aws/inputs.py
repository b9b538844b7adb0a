"""What a template is made from: the configuration, and the choices that only the account can answer.

Choices are made once, when the stack is made (which zones offer the GPU, which add-on versions EKS recommends, whose
address may reach the API server) and kept in the template's own metadata: later plans read them back, so that an
unchanged configuration gives an unchanged template, whoever runs it from wherever.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from onecopy.config.aws import AwsConfig
from onecopy.config.kubernetes import IdentityKind
from onecopy.config.schema import StackConfig
from onecopy.core.errors import ConfigError
from onecopy.gpu.cards import Instance, instances
from onecopy.storage.uri import StoreUri
from onecopy.targets.aws.accounts import Account, accounts
from onecopy.targets.kubernetes.stack import model_name

ZONES = 3
MAX_SHARE = 8
"""Replicas of one card, as the configuration allows at most."""
DEFAULT_PREFIX = "models"
TAG_STACK = "onecopy:stack"
# Longest derived name: load balancers allow 32 characters, and a role's name takes the stack's plus 36
_NAME = re.compile(r"^[a-z]([a-z0-9-]{0,26}[a-z0-9])?$")
_BUCKET = re.compile(r"^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$")


@dataclass(frozen=True, slots=True)
class Choices:
    """zones: empty leaves them to AWS (`Fn::GetAZs`). gpu_zones: how many of the zones, from the first, offer the GPU.

    nodes: False leaves out what needs a pod network, until Calico is there. api_cidrs: who reaches the API server from outside; empty makes it private. bucket_key: KMS key of an adopted bucket.
    """

    zones: tuple[str, ...] = ()
    gpu_zones: int = ZONES
    api_cidrs: tuple[str, ...] = ()
    addon_versions: dict[str, str] = field(default_factory=dict[str, str])
    create_bucket: bool = True
    bucket_key: str | None = None
    nodes: bool = True

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Choices:
        """Unknown keys are ignored: an older onecopy can read a newer one's template."""
        new = cls()
        return cls(
            zones=tuple(stored.get("zones", new.zones)),
            gpu_zones=int(stored.get("gpu_zones", new.gpu_zones)),
            api_cidrs=tuple(stored.get("api_cidrs", new.api_cidrs)),
            addon_versions=dict(stored.get("addon_versions", new.addon_versions)),
            create_bucket=bool(stored.get("create_bucket", new.create_bucket)),
            bucket_key=stored.get("bucket_key"),
            nodes=bool(stored.get("nodes", new.nodes)),
        )


@dataclass(frozen=True, slots=True)
class Inputs:
    config: StackConfig
    choices: Choices
    store: StoreUri | None
    """None: a bucket named after stack, account and region."""
    models: tuple[str, ...]
    """Names of the models as the registry keeps them."""

    @property
    def aws(self) -> AwsConfig:
        return self.config.aws

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def prefix(self) -> str:
        return self.store.prefix if self.store else DEFAULT_PREFIX

    @property
    def identity(self) -> IdentityKind:
        return self.config.kubernetes.identity.kind or "pod-identity"

    @property
    def accounts(self) -> tuple[Account, ...]:
        return accounts(self.config)

    @property
    def tags(self) -> dict[str, str]:
        return {**self.aws.tags, TAG_STACK: self.name}

    @property
    def is_calico(self) -> bool:
        return self.aws.cluster.cni == "calico"


def gpu_instance(config: StackConfig) -> Instance | None:
    """What the planner knows of the GPU nodes' first type; None for a new one, or without GPU nodes."""
    nodes = config.aws.gpu_nodes
    if not nodes.enabled:
        return None
    return next((kind for kind in instances() if kind.name == nodes.instance_types[0]), None)


def cards_wanted(config: StackConfig) -> int:
    return config.kubernetes.gpu.count * sum(model.replicas for model in config.models)


def with_shared_cards(config: StackConfig) -> StackConfig:
    """Replicas share cards where there are more of them than cards, unless the configuration says how many may.

    The defaults are two replicas and one card. Named with its card, a share is planned and never measured.
    """
    gpu, kind, nodes = config.kubernetes.gpu, gpu_instance(config), config.aws.gpu_nodes.desired
    if kind is None or nodes == 0 or gpu.count != 1 or "replicas_per_card" in gpu.model_fields_set:
        return config
    share = math.ceil(cards_wanted(config) / (kind.cards * nodes))
    if not 1 < share <= MAX_SHARE:
        return config
    shared = gpu.model_copy(update={"replicas_per_card": share, "card": gpu.card or kind.card})
    return config.model_copy(update={"kubernetes": config.kubernetes.model_copy(update={"gpu": shared})})


def make_inputs(config: StackConfig, choices: Choices | None = None) -> Inputs:
    """Raises ConfigError for what the sections alone cannot see."""
    if not _NAME.match(config.name):
        raise ConfigError(
            f"name: {config.name!r} cannot name an EKS stack",
            hint="use a letter, then at most 27 letters, digits and hyphens",
        )
    store = StoreUri.parse(config.store.uri) if config.store.uri else None
    if store is not None and (store.scheme != "s3" or not _BUCKET.match(store.bucket)):
        raise ConfigError(
            f"store.uri: the aws target keeps models in an S3 bucket without dots in its name, not {store}",
            hint="set s3://bucket/prefix, or leave it out and a bucket is made",
        )
    if store is not None and not store.prefix:
        raise ConfigError(f"store.uri: {store} has no prefix", hint=f"set {store}/{DEFAULT_PREFIX}")
    kind = config.kubernetes.identity.kind or "pod-identity"
    if kind not in ("pod-identity", "irsa"):
        raise ConfigError(f"kubernetes.identity.kind: {kind} is not for aws", hint="use pod-identity or irsa")
    config = with_shared_cards(config)
    return Inputs(config, choices or Choices(), store, tuple(model_name(model) for model in config.models))


def subnet_cidrs(cidr: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(private, public): three quarters of the range for nodes and pods, the last quarter for load balancers and NAT.

    A /16 gives private /18 (16,384 addresses) and public /20.
    """
    quarters = list(ipaddress.ip_network(cidr).subnets(prefixlen_diff=2))
    public = list(quarters[ZONES].subnets(prefixlen_diff=2))[:ZONES]
    return tuple(map(str, quarters[:ZONES])), tuple(map(str, public))
