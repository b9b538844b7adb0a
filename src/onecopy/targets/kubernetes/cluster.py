"""The cluster's API as plain JSON objects, by lightkube: server-side apply, dry-run, list, delete. Errors are translated
here and nowhere else.

Kinds that are not Kubernetes' own are looked up in the cluster's custom resource definitions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx2 as httpx
from lightkube import ApiError, Client, KubeConfig
from lightkube.core.exceptions import ConfigError as KubeConfigError
from lightkube.core.exceptions import LoadResourceError
from lightkube.core.resource import NamespacedResource
from lightkube.core.resource_registry import resource_registry
from lightkube.generic_resource import load_in_cluster_generic_resources
from lightkube.types import CascadeType, PatchType

from onecopy.core.errors import CloudError, ConfigError
from onecopy.targets.kubernetes.stack import Object, dig

FIELD_MANAGER = "onecopy"
HELM_MANAGER = "helm"
_REGISTRY: Any = resource_registry


class KindMissing(CloudError):
    """The cluster does not know this kind: an operator's definitions are not installed."""


class Immutable(CloudError):
    """The API server refuses the change of an object that is there: it has to be replaced."""


class Cluster:
    """One cluster under one identity. `kubeconfig` and `context` as kubectl takes them."""

    def __init__(self, kubeconfig: Path | None = None, context: str | None = None, *, timeout: float = 30) -> None:
        self.kubeconfig, self.context = kubeconfig, context
        try:
            loaded = KubeConfig.from_file(str(kubeconfig)) if kubeconfig else KubeConfig.from_env()
            single = loaded.get(context_name=context)
            # lightkube's overloads speak of its own classes; here everything is JSON
            self._client: Any = Client(config=single, timeout=httpx.Timeout(timeout), trust_env=False)
        except (KubeConfigError, OSError, KeyError, TypeError) as error:
            where = kubeconfig or "KUBECONFIG or ~/.kube/config"
            raise ConfigError(
                f"no cluster in {where}: {error}", hint="set kubernetes.kubeconfig and kubernetes.context"
            ) from error
        self._customs_loaded = False
        self._custom: set[tuple[str, str]] = set()

    def close(self) -> None:
        self._client.close()

    def version(self) -> tuple[int, int]:
        """Major and minor of the API server."""
        body = self.raw("/version")
        return int(body["major"]), int(str(body["minor"]).rstrip("+"))

    def raw(self, path: str) -> Any:
        """GET of a path that is no object: /version, /apis, /readyz."""
        with _translated(path):
            client = self._client._client._client  # there is no public way to a plain GET
            response = client.get(path.lstrip("/"))
            response.raise_for_status()
            return response.json()

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """The live object, or None."""
        what = self._kind(api_version, kind)
        try:
            with _translated(f"{kind} {name}"):
                found = self._client.get(what, name, **_namespace(what, namespace))
        except _NotFound:
            return None
        return plain(found, api_version, kind)

    def get_like(self, obj: Object) -> Object | None:
        meta = obj["metadata"]
        return self.get(obj["apiVersion"], obj["kind"], meta["name"], meta.get("namespace"))

    def list(
        self, api_version: str, kind: str, *, namespace: str | None = "*", labels: dict[str, str] | None = None
    ) -> list[Object]:
        what = self._kind(api_version, kind)
        selected: Any = labels or {}
        with _translated(f"list {kind}"):
            items = self._client.list(what, labels=selected, **_namespace(what, namespace))
            return [plain(item, api_version, kind) for item in items]

    def apply(self, obj: Object, *, dry_run: bool = False, manager: str = FIELD_MANAGER) -> Object:
        """Server-side apply. Raises Immutable when only a replacement would do."""
        what = self._kind(obj["apiVersion"], obj["kind"])
        meta = obj["metadata"]
        with _translated(f"{obj['kind']} {meta['name']}"):
            done = self._client.patch(
                what,
                meta["name"],
                obj,
                patch_type=PatchType.APPLY,
                field_manager=manager,
                force=True,
                dry_run=dry_run,
                **_namespace(what, meta.get("namespace")),
            )
        return plain(done, obj["apiVersion"], obj["kind"])

    def create(self, obj: Object) -> None:
        """Plain create, for what must never be taken over. Raises CloudError when it is there."""
        what = self._kind(obj["apiVersion"], obj["kind"])
        with _translated(f"{obj['kind']} {obj['metadata']['name']}"):
            self._client.create(what.from_dict(obj), **_namespace(what, obj["metadata"].get("namespace")))

    def delete(self, obj: Object) -> None:
        """Idempotent; children go first (foreground)."""
        what = self._kind(obj["apiVersion"], obj["kind"])
        meta = obj["metadata"]
        try:
            with _translated(f"{obj['kind']} {meta['name']}"):
                self._client.delete(
                    what, meta["name"], cascade=CascadeType.FOREGROUND, **_namespace(what, meta.get("namespace"))
                )
        except _NotFound:
            return

    def allowed(self, group: str, resource: str, verb: str) -> bool:
        """Whether this identity may, in every namespace: asked of the API server."""
        what = self._kind("authorization.k8s.io/v1", "SelfSubjectAccessReview")
        attributes = {"group": group, "resource": resource, "verb": verb}
        with _translated("SelfSubjectAccessReview"):
            # A review has no name and is never stored: only its answer counts
            answer = self._client.create(what.from_dict({"metadata": {}, "spec": {"resourceAttributes": attributes}}))
        return bool(dig(answer.to_dict(), "status", "allowed"))

    def has_kind(self, api_version: str, kind: str) -> bool:
        try:
            self._kind(api_version, kind)
        except KindMissing:
            return False
        return True

    def refresh_kinds(self) -> None:
        """After a chart has brought new definitions."""
        self._customs_loaded = False

    def _kind(self, api_version: str, kind: str) -> Any:
        try:
            found = _REGISTRY.get(api_version, kind) or _REGISTRY.load(api_version, kind)
        except (ImportError, LoadResourceError):
            found = None
        if found is None or not found.__module__.startswith("lightkube.resources"):
            # A custom kind stays registered for the process; only the cluster knows whether it has it
            if not self._customs_loaded:
                with _translated("list CustomResourceDefinition"):
                    load_in_cluster_generic_resources(self._client)
                    self._custom = {
                        (f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"])
                        for crd in self.list("apiextensions.k8s.io/v1", "CustomResourceDefinition")
                        for version in crd["spec"]["versions"]
                    }
                self._customs_loaded = True
            found = _REGISTRY.get(api_version, kind) if (api_version, kind) in self._custom else None
        if found is None:
            raise KindMissing(f"the cluster has no {kind} ({api_version})", hint="install the operator that brings it")
        return found


def _namespace(what: Any, namespace: str | None) -> dict[str, Any]:
    if not issubclass(what, NamespacedResource):
        return {}
    return {"namespace": namespace} if namespace else {}


def plain(found: Any, api_version: str, kind: str) -> Object:
    """A typed or generic object as JSON, with its own kind written in (lists leave it out)."""
    made = cast(Object, found.to_dict())
    return {**made, "apiVersion": api_version, "kind": kind}


class _NotFound(CloudError):
    pass


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        raise _translate(what, error) from error
    except httpx.HTTPStatusError as error:
        raise CloudError(f"{what}: the API server answered {error.response.status_code}") from error
    except httpx.TransportError as error:
        raise CloudError(
            f"{what}: no answer from the cluster ({type(error).__name__}: {error})",
            hint="check the kubeconfig and the network: `kubectl version`",
        ) from error


def _translate(what: str, error: ApiError) -> CloudError:
    status = error.status
    code, reason, message = status.code, status.reason or "", status.message or str(error)
    if code == 404:
        return _NotFound(f"{what}: {message}")
    if code in (401, 403):
        return CloudError(f"{what}: {message}", hint="the kubeconfig's user needs this right: `onecopy doctor`")
    if code == 422 and any(
        word in message for word in ("immutable", "may not be changed", "cannot be changed", "Forbidden: ")
    ):
        return Immutable(f"{what}: {message}")
    return CloudError(f"{what}: {reason} {message}".replace("  ", " "))
