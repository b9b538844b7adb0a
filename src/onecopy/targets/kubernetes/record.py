"""What a stack remembers in the cluster: one ConfigMap with the revisions served, and the ones before.

Written last, when the replicas are ready: an apply that was cut leaves the old record, and the next one goes on.
"""

from __future__ import annotations

import json
from typing import Any, cast

from onecopy.core.errors import StackError
from onecopy.targets.kubernetes.cluster import Cluster
from onecopy.targets.kubernetes.live import STATE_COMPONENT
from onecopy.targets.kubernetes.models import Remembered
from onecopy.targets.kubernetes.stack import Object, Stack, dig, dig_map

FORMAT = 1


def name(release: str) -> str:
    return f"{release}-state"


def read(cluster: Cluster, namespace: str, release: str) -> tuple[dict[str, Remembered], bool]:
    """Remembered revisions by model, and whether this stack installed the monitoring. Raises StackError: unknown format."""
    found = cluster.get("v1", "ConfigMap", name(release), namespace)
    if found is None:
        return {}, False
    body = cast(dict[str, Any], json.loads(dig(found, "data", "state.json") or "{}"))
    if body.get("format", FORMAT) != FORMAT:
        raise StackError(
            f"{namespace}/{name(release)} was written by another version (format {body['format']})",
            hint="use a newer onecopy",
        )
    models = {
        model: Remembered(entry["revision"], entry.get("bytes"), entry.get("previous"))
        for model, entry in dig_map(body, "models").items()
    }
    return models, bool(body.get("installed_monitoring"))


def config_map(stack: Stack, *, installed_monitoring: bool) -> Object:
    models = {
        model.name: {"revision": model.revision, "bytes": model.bytes, "previous": model.previous}
        for model in stack.models
    }
    body = {"format": FORMAT, "models": models, "installed_monitoring": installed_monitoring}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": stack.metadata(name(stack.release), STATE_COMPONENT),
        "data": {"state.json": json.dumps(body, sort_keys=True)},
    }
