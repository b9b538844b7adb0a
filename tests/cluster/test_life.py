"""A stack's life on a real API server, scheduler and controllers, with the real Helm."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.nodes import Hand
from tests.cluster.plane import connect

from onecopy.config.schema import StackConfig
from onecopy.core.errors import StackError
from onecopy.core.events import Event
from onecopy.targets.base import Plan
from onecopy.targets.kubernetes.cluster import Cluster
from onecopy.targets.kubernetes.target import KubernetesTarget

OLD, NEW = "0123456789abcdef", "fedcba9876543210"
Make = Callable[..., StackConfig]


def target(config: StackConfig) -> KubernetesTarget:
    assert config.kubernetes.kubeconfig
    return KubernetesTarget(config, cluster=connect(config.kubernetes.kubeconfig), ask_store=False)


def applied(config: StackConfig) -> KubernetesTarget:
    made = target(config)
    made.apply(made.plan())
    return made


def namespace(config: StackConfig) -> str:
    return config.kubernetes.namespace or ""


def fill(hand: Hand, config: StackConfig, *revisions: str) -> None:
    """What an agent would have done on every GPU node."""
    for node in ("gpu-1", "gpu-2"):
        for revision in revisions:
            folder = f"/dev/shm/onecopy/{namespace(config)}.chat/tiny/{revision}"
            hand.on_node(node, folder).mkdir(parents=True, exist_ok=True)


@pytest.fixture
def config(make: Make, hand: Hand, cluster: Cluster) -> Iterator[StackConfig]:
    made = make()
    fill(hand, made, OLD)
    yield made
    leftover = target(made)
    leftover.destroy(leftover.plan(destroy=True))


def delete_now(cluster: Cluster, api_version: str, kind: str, name: str, space: str) -> None:
    """The garbage collector takes an object a moment after it was deleted: a plan must not be made in between."""
    cluster.delete({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": space}})
    end = time.monotonic() + 30
    while cluster.get(api_version, kind, name, space) is not None:
        assert time.monotonic() < end
        time.sleep(0.1)


def pods(cluster: Cluster, config: StackConfig, component: str) -> list[dict[str, Any]]:
    suffix = "-agent" if component == "agent" else ""
    return cluster.list("v1", "Pod", namespace=namespace(config) + suffix, labels={"onecopy.dev/component": component})


def test_apply_makes_what_the_plan_says_and_a_second_one_changes_nothing(config: StackConfig, cluster: Cluster) -> None:
    first = target(config)
    plan = first.plan()
    assert plan.count("create") == len(plan.changes) > 12
    assert any("1.20" in warning for warning in plan.warnings) == (cluster.version() < (1, 31))
    first.apply(plan)
    again = target(config).plan()
    assert not again.has_changes, again.text()
    status = first.status()
    assert status.healthy, status
    assert {(w.node, w.revision, w.state) for w in status.weights} == {("gpu-1", OLD, "ready"), ("gpu-2", OLD, "ready")}
    assert first.outputs()["models"] == {"tiny": {"revision": OLD, "previous": None, "replicas": 2}}


def test_replicas_and_agents_are_scheduled_on_tainted_gpu_nodes_only(config: StackConfig, cluster: Cluster) -> None:
    applied(config)
    assert {pod["spec"]["nodeName"] for pod in pods(cluster, config, "replica")} <= {"gpu-1", "gpu-2"}
    assert sorted(pod["spec"]["nodeName"] for pod in pods(cluster, config, "agent")) == ["gpu-1", "gpu-2"]
    assert {pod["spec"]["nodeName"] for pod in pods(cluster, config, "router")} == {"cpu-1"}


def test_drift_is_seen_and_put_right(config: StackConfig, cluster: Cluster) -> None:
    made = applied(config)
    space = namespace(config)
    agent = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "chat-agent", "namespace": f"{space}-agent"},
    }
    cluster.apply(
        {**agent, "spec": {"template": {"spec": {"containers": [{"name": "agent", "image": "evil:1"}]}}}},
        manager="kubectl",
    )
    cluster.apply(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "chat-deployment-router", "namespace": space},
         "spec": {"replicas": 3}}, manager="kubectl"
    )  # fmt: skip
    delete_now(cluster, "networking.k8s.io/v1", "NetworkPolicy", "chat-replica", space)
    plan = made.plan()
    changes = {(c.kind, c.action): c for c in plan.changes if c.action != "no-op"}
    assert "evil:1" in changes["DaemonSet", "update"].fields[0].text()
    assert changes["NetworkPolicy", "create"].name == f"{space}/chat-replica"
    # A field that the chart does not set is not its business; nor is it ours
    made.apply(plan)
    assert not target(config).plan().has_changes
    live = cluster.get("apps/v1", "DaemonSet", "chat-agent", f"{space}-agent")
    assert live is not None
    assert live["spec"]["template"]["spec"]["containers"][0]["image"] == "onecopy:0.1.0"


def test_a_release_that_was_edited_by_hand_is_seen_field_by_field(config: StackConfig, cluster: Cluster) -> None:
    made = applied(config)
    name = {"name": "chat-tiny-deployment-vllm", "namespace": namespace(config)}
    cluster.apply(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": name, "spec": {"replicas": 5}}, manager="kubectl"
    )
    plan = made.plan()
    (change,) = [c for c in plan.changes if c.action != "no-op"]
    assert change.kind == "Release"
    assert [(f.path, f.before, f.after) for f in change.fields] == [
        (f"Deployment/{namespace(config)}/chat-tiny-deployment-vllm: spec.replicas", 5, 2)
    ]
    made.apply(plan)
    assert not target(config).plan().has_changes


def test_stale_plan_is_refused(config: StackConfig, cluster: Cluster, tmp_path: Path) -> None:
    made = applied(config)
    changed = config.model_copy(
        update={"kubernetes": config.kubernetes.model_copy(update={"images": config.kubernetes.images.model_copy(update={"onecopy": "onecopy:0.2.0"})})}
    )  # fmt: skip
    plan = target(changed).plan()
    plan.save(tmp_path / "plan.json")
    delete_now(cluster, "v1", "ServiceAccount", "chat-replica", namespace(config))
    with pytest.raises(StackError, match="stale"):
        target(changed).apply(Plan.load(tmp_path / "plan.json"))
    made.apply(made.plan())


def test_new_revision_is_filled_first_then_rolled_and_back_again_without_a_download(
    config: StackConfig, hand: Hand, cluster: Cluster
) -> None:
    applied(config)
    before = {pod["metadata"]["name"] for pod in pods(cluster, config, "replica")}
    agent_args = lambda: pods(cluster, config, "agent")[0]["spec"]["containers"][0]["args"]  # noqa: E731
    new = config.model_copy(update={"models": (config.models[0].model_copy(update={"revision": NEW}),)})
    made = target(new)
    plan = made.plan()
    notes = {c.kind: c.note for c in plan.changes if c.action == "update"}
    assert notes["Release"] == "restarts 2 pods, all at once"
    steps: list[str] = []

    def report(event: Event) -> None:
        if event.state == "done":
            steps.append(event.step)
            if event.step == "delivery":
                # The agents have both, the old replicas still run
                assert {f"tiny@{OLD}", f"tiny@{NEW}"} <= set(agent_args())
                assert {pod["metadata"]["name"] for pod in pods(cluster, config, "replica")} == before
                fill(hand, config, NEW)

    made.apply(plan, report=report)
    assert steps.index("delivery") < steps.index("serving")
    assert all(pod["metadata"]["labels"]["onecopy.dev/revision"] == NEW for pod in pods(cluster, config, "replica"))
    assert made.outputs()["models"]["tiny"]["previous"] == OLD
    assert not target(new).plan().has_changes
    agents = {pod["metadata"]["uid"] for pod in pods(cluster, config, "agent")}

    back = target(new)
    plan = back.plan(rollback=True)
    assert {c.kind for c in plan.changes if c.action != "no-op"} == {"Release"}, plan.text()
    back.apply(plan)
    assert all(pod["metadata"]["labels"]["onecopy.dev/revision"] == OLD for pod in pods(cluster, config, "replica"))
    assert {pod["metadata"]["uid"] for pod in pods(cluster, config, "agent")} == agents


def test_what_is_stuck_is_named_with_its_reason_and_apply_goes_on_from_there(
    config: StackConfig, hand: Hand, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onecopy.targets.kubernetes import sizing

    hand.fails["onecopy-vllm:0.1.0"] = "CUDA out of memory"
    made = target(config)
    with monkeypatch.context() as patch:
        patch.setattr(sizing.Sizing, "roll_deadline", 6)
        message = r"not ready after 6\.0 s.*chat-tiny-deployment-vllm 0/2.*CrashLoopBackOff: CUDA out of memory"
        with pytest.raises(StackError, match=message):
            made.apply(made.plan())
    assert {part.health for part in made.status().parts if "vllm" in part.name} == {"progressing"}
    hand.fails.clear()
    again = target(config)
    again.apply(again.plan())
    assert again.status().healthy


def test_unschedulable_replicas_are_said_to_be(config: StackConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from onecopy.targets.kubernetes import sizing

    monkeypatch.setattr(sizing.Sizing, "roll_deadline", 5)
    large = config.model_copy(update={"kubernetes": config.kubernetes.model_copy(update={"cpu": "900"})})
    made = target(large)
    with pytest.raises(StackError, match=r"Unschedulable: .*nodes are available"):
        made.apply(made.plan())


def test_killed_apply_goes_on(config: StackConfig, cluster: Cluster) -> None:
    made = target(config)
    for stage in ("namespaces", "access", "delivery", "serving"):

        def report(event: Event, stage: str = stage) -> None:
            if (event.step, event.state) == (stage, "done"):
                raise KeyboardInterrupt

        made = target(config)
        with pytest.raises(KeyboardInterrupt):
            made.apply(made.plan(), report=report)
    applied(config)
    assert not target(config).plan().has_changes


def test_release_left_pending_by_a_killed_helm_is_repaired(
    config: StackConfig, hand: Hand, helm: Path, chart: Path, tmp_path: Path
) -> None:
    made = applied(config)
    values = yaml.safe_load((made.render(tmp_path).files[0].parent / "chat.values.yaml").read_text())
    values["routerSpec"]["tag"] = "stuck"
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    hand.stuck.add("lmcache/lmstack-router:stuck")
    where = ["--namespace", namespace(config), "--kubeconfig", str(config.kubernetes.kubeconfig)]
    upgrade = subprocess.Popen(
        [helm, "upgrade", "chat", chart, "--values", tmp_path / "values.yaml", "--wait", *where],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while "pending-upgrade" not in subprocess.check_output([helm, "list", "--output", "json", *where], text=True):
        assert upgrade.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    upgrade.kill()
    upgrade.wait()
    plan = made.plan()
    assert [c.note for c in plan.changes if c.action != "no-op"] == ["the release is pending-upgrade"]
    made.apply(plan)
    assert not target(config).plan().has_changes
    assert target(config).status().healthy


def test_what_left_the_configuration_is_pruned(config: StackConfig, cluster: Cluster) -> None:
    applied(config)
    stream = config.model_copy(update={"kubernetes": config.kubernetes.model_copy(update={"delivery": "stream"})})
    made = target(stream)
    plan = made.plan()
    gone = {(c.kind, c.action) for c in plan.changes if c.group == "prune"}
    assert {("DaemonSet", "delete"), ("PersistentVolume", "delete"), ("Namespace", "delete")} <= gone
    made.apply(plan)
    assert cluster.get("apps/v1", "DaemonSet", "chat-agent", f"{namespace(config)}-agent") is None


def test_two_stacks_live_side_by_side_in_one_namespace(config: StackConfig, hand: Hand, cluster: Cluster) -> None:
    applied(config)
    other = config.model_copy(update={"name": "code"})
    for node in ("gpu-1", "gpu-2"):
        hand.on_node(node, f"/dev/shm/onecopy/{namespace(config)}.code/tiny/{OLD}").mkdir(parents=True)
    second = applied(other)
    assert second.status().healthy
    assert not target(config).plan().has_changes
    second.destroy(second.plan(destroy=True))
    assert target(config).status().healthy


def test_destroy_leaves_nothing_and_waits_for_the_load_balancer(
    make: Make, hand: Hand, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onecopy.targets.kubernetes import removal

    config = make(ingress={"host": "llm.example.com", "tls_secret": "tls"}, api_key_secret="keys")
    fill(hand, config, OLD)
    made = applied(config)
    space = namespace(config)
    # As a load balancer's controller does: it holds the Ingress until the balancer is gone
    ingress = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": "chat", "namespace": space},
    }
    held = {**ingress, "metadata": {**ingress["metadata"], "finalizers": ["example.com/balancer"]}}
    cluster.apply(held, manager="balancer")
    monkeypatch.setattr(removal, "BALANCER_DEADLINE", 3)
    with pytest.raises(StackError, match=r"Ingress .*chat.*held by example\.com/balancer"):
        made.destroy(made.plan(destroy=True))
    cluster.apply(ingress, manager="balancer")
    again = target(config)
    again.destroy(again.plan(destroy=True))
    assert cluster.get("v1", "Namespace", space) is None
    assert cluster.get("v1", "Namespace", f"{space}-agent") is None
    assert cluster.list("v1", "PersistentVolume", labels={"onecopy.dev/stack": f"{space}.chat"}) == []
    assert not target(config).plan(destroy=True).has_changes


def test_files_applied_by_hand_give_the_same_cluster(
    make: Make, hand: Hand, cluster: Cluster, helm: Path, tmp_path: Path
) -> None:
    """What GitOps does with a rendering: server-side apply of every file, Helm for the releases."""
    config = make()
    fill(hand, config, OLD)
    made = target(config)
    files = made.render(tmp_path).files
    for path in files:
        if path.parent.name == "manifests":
            for obj in yaml.safe_load_all(path.read_text()):
                cluster.apply(obj, manager="kubectl")
    for release in yaml.safe_load((tmp_path / "helm/releases.yaml").read_text())["releases"]:
        subprocess.run(
            [helm, "install", release["name"], release["chart"], "--namespace", release["namespace"], "--kubeconfig",
             str(config.kubernetes.kubeconfig), "--values", str(tmp_path / "helm" / release["values"])],
            check=True, capture_output=True,
        )  # fmt: skip
    plan = made.plan()
    assert not plan.has_changes, plan.text()
    made.apply(plan)
    assert made.status().healthy
    made.destroy(made.plan(destroy=True))


MONITORING = {
    "Chart.yaml": "apiVersion: v2\nname: tiny-monitoring\nversion: 82.4.3\n",
    "crds/podmonitors.yaml": """\
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: podmonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {kind: PodMonitor, plural: podmonitors, singular: podmonitor, listKind: PodMonitorList}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, x-kubernetes-preserve-unknown-fields: true}}}}
""",
    "templates/grafana.yaml": """\
apiVersion: v1
kind: ConfigMap
metadata: {name: grafana}
data: {secret: "{{ .Values.grafana.admin.existingSecret }}"}
""",
}


def test_monitoring_is_brought_along_with_a_password_made_once(
    make: Make, hand: Hand, cluster: Cluster, chart: Path, tmp_path: Path
) -> None:
    """The operator's kinds come with its chart, in the same apply that makes monitors of them."""
    if cluster.version() < (1, 22):
        pytest.skip("the API server 1.20 that is built here panics at a server-side apply of a custom kind")
    for name, text in MONITORING.items():
        (tmp_path / "monitoring" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "monitoring" / name).write_text(text)
    charts = {
        "vllm_stack": str(chart),
        "vllm_stack_repository": None,
        "prometheus": str(tmp_path / "monitoring"),
        "prometheus_repository": None,
    }
    config = make(observability={"mode": "install", "namespace": "t-monitoring"}, charts=charts)
    fill(hand, config, OLD)
    made = applied(config)
    password = cluster.get("v1", "Secret", "onecopy-grafana", "t-monitoring")
    names = {o["metadata"]["name"] for o in cluster.list("monitoring.coreos.com/v1", "PodMonitor")}
    assert names == {"chat-replica", "chat-router", "chat-agent"}
    assert not target(config).plan().has_changes
    made.apply(made.plan())
    assert cluster.get("v1", "Secret", "onecopy-grafana", "t-monitoring") == password
    made.destroy(made.plan(destroy=True))
    assert cluster.list("monitoring.coreos.com/v1", "PodMonitor") == []


def test_grafana_password_is_made_once(make: Make, cluster: Cluster) -> None:
    from onecopy.targets.kubernetes import monitoring
    from onecopy.targets.kubernetes.releases import Release

    release = Release("kube-prometheus-stack", namespace(make()), "chart", "1", None, {}, 60)
    monitoring.prepare(cluster, release)
    first = cluster.get("v1", "Secret", "onecopy-grafana", release.namespace)
    monitoring.prepare(cluster, release)
    assert first is not None
    assert set(first["data"]) == {"user", "password"}
    assert cluster.get("v1", "Secret", "onecopy-grafana", release.namespace) == first
    cluster.delete({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": release.namespace}})
