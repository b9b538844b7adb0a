"""One stack on one cluster, as everything below needs it: names, labels, models with their revisions, sizes.

Made once from the configuration and what is known of the models; the builders read it and nothing else. `check`
refuses what would be insecure or could not work, before anything is sent.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, cast

from onecopy.config.kubernetes import DEFAULT_IDENTITY, IDENTITIES, IdentityKind, KubernetesConfig
from onecopy.config.schema import ModelConfig, StackConfig
from onecopy.core.errors import ConfigError
from onecopy.gpu import GpuPlan
from onecopy.registry.sources import default_name
from onecopy.storage.uri import StoreUri
from onecopy.targets.kubernetes.sizing import Sizing, size

Object = dict[str, Any]
"""A Kubernetes object as JSON."""

LABEL_STACK = "onecopy.dev/stack"
LABEL_COMPONENT = "onecopy.dev/component"
LABEL_MODEL = "onecopy.dev/model"
LABEL_REVISION = "onecopy.dev/revision"
UNKNOWN_REVISION = "0" * 16
"""Stands for a revision that is known only once it is published; never applied."""
NON_ROOT = 10001
MODELS_DIR = "/models"
_REVISION = re.compile(r"^[0-9a-f]{16}$")
_SCHEMES = {"aws": "s3", "gcp": "gs", "azure": "az"}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model of the stack. revision: id, or None while it is not published. bytes: of that revision, if known.

    previous: the revision before, whose cache and volume are kept for a roll back.
    """

    config: ModelConfig
    name: str
    slug: str
    revision: str | None = None
    bytes: int | None = None
    previous: str | None = None
    gpu: GpuPlan | None = None
    """Settings of replicas that share a card, when they are planned."""

    @property
    def known_revision(self) -> str:
        return self.revision or UNKNOWN_REVISION

    @property
    def is_pinned(self) -> bool:
        return is_revision(self.config.revision)

    @property
    def publishable(self) -> bool:
        """The cluster can publish it by itself: a source that is reached from there, under a movable ref."""
        scheme, found, _ = self.config.source.partition("://")
        return bool(found) and scheme != "file" and not self.is_pinned

    @property
    def kept(self) -> tuple[str, ...]:
        """Revisions that stay on the nodes: the one served, and the one before."""
        old = (self.previous,) if self.previous and self.previous != self.revision else ()
        return (self.known_revision, *old)


@dataclass(frozen=True, slots=True)
class Stack:
    config: StackConfig
    store: StoreUri
    models: tuple[ServedModel, ...]
    sizing: Sizing

    @property
    def kubernetes(self) -> KubernetesConfig:
        return self.config.kubernetes

    @property
    def release(self) -> str:
        return slug(self.config.name, 30)

    @property
    def namespace(self) -> str:
        return self.kubernetes.namespace or slug(self.config.name, 50)

    @property
    def agent_namespace(self) -> str:
        """The agent writes to a folder of the node, which no namespace under pod security `restricted` may."""
        return f"{self.namespace}-agent"

    @property
    def identity(self) -> IdentityKind:
        return self.kubernetes.identity.kind or DEFAULT_IDENTITY[self.kubernetes.cloud]

    @property
    def stack_label(self) -> str:
        """Unique in the cluster: two stacks in one namespace, or of one name in two, never cross."""
        return shorten(f"{self.namespace}.{self.release}")

    @property
    def cache_dir(self) -> str:
        cache = self.kubernetes.cache
        default = "/dev/shm/onecopy" if cache.medium == "memory" else "/var/lib/onecopy"  # noqa: S108 - on the node
        return f"{cache.path or default}/{self.stack_label}"

    def labels(self, component: str, **more: str) -> dict[str, str]:
        return {
            "app.kubernetes.io/name": "onecopy",
            "app.kubernetes.io/instance": self.release,
            "app.kubernetes.io/component": component,
            "app.kubernetes.io/managed-by": "onecopy",
            **self.selector(component),
            **more,
        }

    def selector(self, component: str) -> dict[str, str]:
        return {LABEL_STACK: self.stack_label, LABEL_COMPONENT: component}

    def metadata(self, name: str, component: str, *, namespace: str | None = "", **labels: str) -> Object:
        """namespace: the stack's own by default, None for objects of the cluster."""
        meta: Object = {"name": name, "labels": self.labels(component, **labels)}
        if namespace is not None:
            meta["namespace"] = namespace or self.namespace
        return meta


def make_stack(config: StackConfig, store: StoreUri, models: tuple[ServedModel, ...]) -> Stack:
    kv = max((model.config.kv_cache_bytes or 0 for model in models), default=0) or None
    stack = Stack(config, store, models, size(config.kubernetes, tuple(m.bytes for m in models), kv))
    check(stack)
    return stack


def model_name(model: ModelConfig) -> str:
    """The name clients call: as configured, else from the source, as the registry derives it."""
    return model.name or default_name(model.source)


def check(stack: Stack) -> None:
    """Raises ConfigError for what would be insecure or could not work."""
    kubernetes, cloud, delivery = stack.kubernetes, stack.kubernetes.cloud, stack.kubernetes.delivery
    if stack.store.scheme == "file":
        raise ConfigError(f"a cluster cannot read {stack.store}", hint="set store.uri to s3://, gs:// or az://")
    if stack.identity not in IDENTITIES[cloud]:
        allowed = ", ".join(IDENTITIES[cloud])
        raise ConfigError(
            f"kubernetes.identity.kind: {stack.identity} does not exist on cloud {cloud!r}", hint=f"use {allowed}"
        )
    if delivery == "mount" and cloud == "none":
        raise ConfigError(
            "kubernetes.delivery: mount needs the CSI driver of a cloud, and kubernetes.cloud is none",
            hint="use delivery = node-cache, or name the cloud",
        )
    if delivery == "mount" and stack.store.scheme != _SCHEMES[cloud]:
        raise ConfigError(
            f"kubernetes.delivery: mount on {cloud} needs a {_SCHEMES[cloud]}:// store, not {stack.store}",
            hint="use delivery = node-cache for a store elsewhere",
        )
    if delivery == "mount" and cloud == "gcp" and stack.identity == "secret":
        raise ConfigError(
            "kubernetes.identity.kind: GKE's FUSE driver knows no Secret", hint="use workload-identity, or node-cache"
        )
    if delivery == "mount" and cloud == "azure" and not kubernetes.azure_resource_group:
        raise ConfigError(
            "kubernetes.azure_resource_group is not set",
            hint="name the resource group of the storage account",
        )
    if stack.identity == "irsa" or (stack.identity == "workload-identity" and cloud == "azure"):
        _need_identities(stack)
    if kubernetes.ingress.host:
        tls = kubernetes.ingress.tls_secret or any("certificate" in key for key in kubernetes.ingress.annotations)
        if not tls:
            raise ConfigError(
                f"kubernetes.ingress.host {kubernetes.ingress.host}: no TLS",
                hint="set kubernetes.ingress.tls_secret, or a certificate in kubernetes.ingress.annotations",
            )
        if not kubernetes.api_key_secret:
            raise ConfigError(
                f"kubernetes.ingress.host {kubernetes.ingress.host}: no API key",
                hint="make a Secret with the key `api-key` and set kubernetes.api_key_secret",
            )
    slugs = [model.slug for model in stack.models]
    if len(set(slugs)) < len(slugs):
        raise ConfigError(f"two models have one name: {', '.join(slugs)}", hint="set models.name")


def check_shares(stack: Stack) -> None:
    """Before anything is served. A model that a job has yet to publish is planned once its revision is known.

    Raises ConfigError: replicas that share a card have no settings of their own.
    """
    gpu = stack.kubernetes.gpu
    for model in stack.models:
        waits = model.revision is None and gpu.card is not None
        if gpu.count and gpu.replicas_per_card > 1 and not (model.config.kv_cache_bytes or model.gpu or waits):
            raise ConfigError(
                f"{model.name}: replicas that share a card would size their KV cache by measuring each other",
                hint="set kubernetes.gpu.card and give this machine access to the published model, so that it is planned;"
                " or set models.kv_cache_bytes",
            )


def _need_identities(stack: Stack) -> None:
    identity = stack.kubernetes.identity
    needed = ["reader"] + (["writer"] if any(model.publishable for model in stack.models) else [])
    for key in needed:
        if getattr(identity, key) is None:
            what = "a role's ARN" if stack.identity == "irsa" else "a managed identity's client id"
            raise ConfigError(
                f"kubernetes.identity.{key} is not set, and {stack.identity} on {stack.kubernetes.cloud} needs it",
                hint=f"set it to {what}",
            )


PLACEHOLDER = "set-me"


def with_placeholders(config: StackConfig) -> tuple[StackConfig, list[str]]:
    """For `render` alone: what is not set and cannot be guessed becomes `set-me`, with a warning each."""
    warnings: list[str] = []
    kubernetes = config.kubernetes
    kind = kubernetes.identity.kind or DEFAULT_IDENTITY[kubernetes.cloud]
    if config.store.uri is None:
        uri = {"gcp": "gs://set-me/models", "azure": "az://setme/models"}.get(kubernetes.cloud, "s3://set-me/models")
        config = config.model_copy(update={"store": config.store.model_copy(update={"uri": uri})})
        warnings.append(f"store.uri is not set: rendered with {uri}")
    if kind == "irsa" or (kind == "workload-identity" and kubernetes.cloud == "azure"):
        missing = [key for key in ("reader", "writer") if getattr(kubernetes.identity, key) is None]
        if missing:
            identity = kubernetes.identity.model_copy(update=dict.fromkeys(missing, PLACEHOLDER))
            kubernetes = kubernetes.model_copy(update={"identity": identity})
            warnings += [f"kubernetes.identity.{key} is not set: rendered as {PLACEHOLDER}" for key in missing]
    if kubernetes.cloud == "azure" and kubernetes.delivery == "mount" and not kubernetes.azure_resource_group:
        kubernetes = kubernetes.model_copy(update={"azure_resource_group": PLACEHOLDER})
        warnings.append(f"kubernetes.azure_resource_group is not set: rendered as {PLACEHOLDER}")
    return config.model_copy(update={"kubernetes": kubernetes}), warnings


def dig(obj: Any, *path: str) -> Any:
    """The value at a path of keys, or None where something on the way is missing."""
    for step in path:
        if not isinstance(obj, dict):
            return None
        obj = cast("dict[str, Any]", obj).get(step)
    return obj


def dig_list(obj: Any, *path: str) -> list[Any]:
    return cast("list[Any]", dig(obj, *path) or [])


def dig_map(obj: Any, *path: str) -> dict[str, Any]:
    return cast("dict[str, Any]", dig(obj, *path) or {})


def is_revision(text: str) -> bool:
    return _REVISION.match(text) is not None


def slug(text: str, limit: int) -> str:
    """A DNS label of at most `limit` characters; a cut name keeps a digest of the whole."""
    clean = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")
    return clean if len(clean) <= limit else f"{clean[: limit - 7].rstrip('-')}-{_digest(text)}"


def shorten(text: str, limit: int = 63) -> str:
    return text if len(text) <= limit else f"{text[: limit - 7].rstrip('-.')}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
