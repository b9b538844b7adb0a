"""Third-party charts by the real Helm, never by code of ours. The binary comes from PATH or from `ONECOPY_HELM`.

Secrets do not pass through: values name existing Secrets, and nothing of Helm's output is kept but its error text.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml

from onecopy.core import environment
from onecopy.core.errors import CloudError
from onecopy.core.redact import redact
from onecopy.targets.kubernetes.releases import Release
from onecopy.targets.kubernetes.stack import Object, dig_list, dig_map


class Helm:
    """Helm against one cluster. Raises CloudError with Helm's own words."""

    def __init__(self, kubeconfig: Path | None = None, context: str | None = None) -> None:
        self.binary = find_helm()
        self._major: str | None = None
        self._where = [
            *(["--kubeconfig", str(kubeconfig)] if kubeconfig else []),
            *(["--kube-context", context] if context else []),
        ]

    def version(self) -> str:
        return self._run(["version", "--template", "{{.Version}}"], deadline=30, cluster=False).strip()

    def dry_run(self, release: Release) -> list[Object]:
        """The chart's objects as an upgrade would send them now, with lookups and capabilities of the cluster."""
        with _values(release) as values:
            text = self._run(
                ["upgrade", "--install", release.name, *_chart(release), "--values", values,
                 "--dry-run=server", "--output", "json", *self._force()],
                deadline=120,
                namespace=release.namespace,
            )  # fmt: skip
        return [_owned(doc, release) for doc in documents(json.loads(text)["manifest"], release.namespace)]

    def apply(self, release: Release) -> None:
        """Install or upgrade; does not wait: readiness is watched by us, with reasons. Repairs a release that a
        killed Helm left pending."""
        state = self.state(release)
        if state and state.startswith("pending"):
            # Helm refuses to go on from here; the release's own record is taken back, its objects stay
            self._undo_pending(release, state)
        with _values(release) as values:
            self._run(
                ["upgrade", "--install", release.name, *_chart(release), "--values", values, *self._force()],
                deadline=300,
                namespace=release.namespace,
            )

    def _undo_pending(self, release: Release, state: str) -> None:
        history = json.loads(
            self._run(["history", release.name, "--output", "json"], deadline=60, namespace=release.namespace)
        )
        whole = [entry["revision"] for entry in history if entry["status"] in ("deployed", "superseded")]
        if state == "pending-install" or not whole:
            self.uninstall(release.name, release.namespace)
        else:
            self._run(["rollback", release.name, str(max(whole))], deadline=120, namespace=release.namespace)

    def state(self, release: Release) -> str | None:
        """`deployed`, `failed`, `pending-upgrade`, … or None when there is no such release."""
        text = self._run(
            ["list", "--all", "--filter", f"^{release.name}$", "--output", "json"]
            if self._is_three()
            else ["list", "--filter", f"^{release.name}$", "--output", "json"],
            deadline=60,
            namespace=release.namespace,
        )
        found = cast(list[dict[str, Any]], json.loads(text or "[]"))
        return str(found[0]["status"]) if found else None

    def objects(self, release: Release) -> set[tuple[str, str, str | None]]:
        """Kind, name and namespace of what the release holds now."""
        text = self._run(["get", "manifest", release.name], deadline=60, namespace=release.namespace)
        return {
            (doc["kind"], doc["metadata"]["name"], doc["metadata"]["namespace"])
            for doc in documents(text, release.namespace)
        }

    def uninstall(self, name: str, namespace: str) -> None:
        self._run(["uninstall", name, "--ignore-not-found"], deadline=300, namespace=namespace)

    def _force(self) -> list[str]:
        # Helm 4 applies on the server's side, and what somebody edited by hand would be a conflict
        return [] if self._is_three() else ["--server-side=true", "--force-conflicts"]

    def _is_three(self) -> bool:
        if self._major is None:
            self._major = self.version().lstrip("v").split(".")[0]
        return self._major == "3"

    def _run(self, args: list[str], *, deadline: int, namespace: str | None = None, cluster: bool = True) -> str:
        command = [
            str(self.binary),
            *args,
            *(["--namespace", namespace] if namespace else []),
            *(self._where if cluster else []),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=deadline, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired as error:
            raise CloudError(f"helm {args[0]} {args[1]}: no end after {deadline} s") from error
        if done.returncode != 0:
            text = redact(done.stderr.strip() or done.stdout.strip())
            last = text.splitlines()[-1].removeprefix("Error: ") if text else f"exit code {done.returncode}"
            raise CloudError(f"helm {args[0]} {args[1]}: {last}", hint=_hint(last))
        return done.stdout


def find_helm() -> Path:
    """Raises CloudError when there is none."""
    named = environment.read("ONECOPY_HELM")
    found = shutil.which(named or "helm")
    if found is None:
        raise CloudError(
            f"no Helm: {named or 'helm is not on PATH'}",
            hint="install helm 3.14 or newer, or set ONECOPY_HELM to its path",
        )
    return Path(found)


def documents(text: str, namespace: str) -> list[Object]:
    """A rendered chart's objects. Those that name no namespace get the release's; hooks are left out, as Helm does."""
    found = [doc for doc in cast("list[Object | None]", list(yaml.safe_load_all(text))) if doc]
    made: list[Object] = []
    single = [item for doc in found for item in (dig_list(doc, "items") if doc["kind"] == "List" else [doc])]
    for doc in single:
        meta = doc["metadata"]
        if "helm.sh/hook" in (meta.get("annotations") or {}):
            continue
        made.append({**doc, "metadata": {**meta, "namespace": meta.get("namespace") or namespace}})
    return made


def _owned(obj: Object, release: Release) -> Object:
    """With the marks that Helm puts on all it applies: without them a dry-run would take them away."""
    meta = obj["metadata"]
    labels = {**dig_map(meta, "labels"), "app.kubernetes.io/managed-by": "Helm"}
    marks = {"meta.helm.sh/release-name": release.name, "meta.helm.sh/release-namespace": release.namespace}
    return {**obj, "metadata": {**meta, "labels": labels, "annotations": {**dig_map(meta, "annotations"), **marks}}}


def _chart(release: Release) -> list[str]:
    folder = Path(release.chart).is_dir()
    return [
        release.chart,
        *([] if folder else ["--version", release.version]),
        *(["--repo", release.repository] if release.repository and not folder else []),
    ]


@contextmanager
def _values(release: Release) -> Iterator[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="onecopy-") as file:
        yaml.safe_dump(release.values, file)
        file.flush()
        yield file.name


def _hint(text: str) -> str | None:
    if "kubeVersion" in text:
        return "the chart asks for a newer Kubernetes"
    if "failed to fetch" in text or "no such host" in text or "looks like" in text:
        return "the chart's repository cannot be reached: name a mirror or a folder in kubernetes.charts"
    return None
