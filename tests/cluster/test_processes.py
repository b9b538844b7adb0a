"""The publish job and the agents as real processes, with the commands, arguments, environment and mounts of the pods
that the API server holds: from an empty store to weights on the nodes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import checkpoint
from tests.cluster.nodes import Hand, can_mount

from onecopy.config.schema import StackConfig
from onecopy.core.events import Event
from onecopy.registry import catalogue
from onecopy.registry.publish import publish
from onecopy.registry.sources import open_source
from onecopy.storage.devserver import DevServer
from onecopy.storage.objectstore import open_store
from onecopy.targets.kubernetes.cluster import Cluster
from onecopy.targets.kubernetes.target import KubernetesTarget
from onecopy.weights.manifest import Manifest

Make = Callable[..., StackConfig]


@pytest.mark.skipif(not can_mount(), reason="no mount namespaces here: they need root")
def test_from_an_empty_store_to_weights_on_every_node(
    make: Make, cluster: Cluster, s3_server: DevServer, tmp_path: Path
) -> None:
    seed = open_store(s3_server.uri.child("seed"), s3_server.options)
    source = publish(open_source(str(checkpoint(tmp_path / "model"))), seed, "tiny")
    store = s3_server.uri.child("cluster-test")
    config = make(
        models=[{"name": "tiny", "source": f"{seed.uri}#tiny@main", "revision": "main"}],
        store={"uri": str(store), "endpoint": s3_server.endpoint, "region": "us-east-1"},
    )
    space = config.kubernetes.namespace or ""
    keys = {
        "AWS_ACCESS_KEY_ID": s3_server.options.access_key_id or "",
        "AWS_SECRET_ACCESS_KEY": s3_server.options.secret_access_key.reveal()
        if s3_server.options.secret_access_key
        else "",
    }

    def report(event: Event) -> None:
        if (event.step, event.state) == ("namespaces", "done"):
            for name, namespace in (("chat-writer", space), ("chat-reader", f"{space}-agent")):
                cluster.apply(secret(name, namespace, keys), manager="people")

    with Hand(cluster, tmp_path / "nodes", run="onecopy:") as hand:
        target = KubernetesTarget(config, cluster=cluster, ask_store=False)
        plan = target.plan()
        assert {c.note for c in plan.changes if c.group in ("delivery", "serving")} == {"known after publish"}
        target.apply(plan, report=report)

        (job,) = cluster.list("batch/v1", "Job", namespace=space)
        assert job["status"]["succeeded"] == 1
        assert target.outputs()["models"]["tiny"]["revision"] == source.revision
        assert catalogue.resolve(open_store(store, s3_server.options), "tiny").revision == source.revision
        for node in ("gpu-1", "gpu-2"):
            folder = hand.on_node(node, f"/dev/shm/onecopy/{space}.chat/tiny/{source.revision}")
            manifest = Manifest.from_json((folder / "onecopy.json").read_bytes(), where=str(folder))
            assert manifest.revision == source.revision
            assert {path.name for path in folder.iterdir()} == {file.path for file in manifest.files} | {"onecopy.json"}
        agents = [p for p in hand.processes.values() if p.container["name"] == "agent"]
        assert len(agents) == 2
        for agent in agents:
            assert agent.text("/readyz")
            assert f'onecopy_agent_filled_bytes_total{{model="tiny"}} {manifest.total_bytes}' in agent.text("/metrics")
            assert keys["AWS_SECRET_ACCESS_KEY"] not in Path(f"/proc/{agent.popen.pid}/cmdline").read_text()
        assert target.status().healthy
        assert not KubernetesTarget(config, cluster=cluster, ask_store=False).plan().has_changes
        target.destroy(target.plan(destroy=True))
    assert catalogue.resolve(open_store(store, s3_server.options), "tiny").revision == source.revision


def secret(name: str, namespace: str, data: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()},
    }


def test_secret_values_never_reach_the_api_server_but_in_secrets(make: Make) -> None:
    from onecopy.storage.uri import StoreUri
    from onecopy.targets.kubernetes import build, models
    from onecopy.targets.kubernetes.stack import make_stack

    config = make()
    uri = StoreUri.parse(config.store.uri or "")
    stack = make_stack(config, uri, models.find(config, uri, {}, ask_store=False).models)
    stages = build.stages(stack, monitors=True, install_monitoring=True)
    kinds = {obj["kind"] for stage in stages for obj in stage.objects}
    assert "Secret" not in kinds
    assert "SECRET_ACCESS_KEY" not in json.dumps([list(stage.objects) for stage in stages])
