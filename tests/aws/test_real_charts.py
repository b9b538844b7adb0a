"""Our values in the owners' own charts, rendered by the real Helm: each key is known there and has its effect.

Runs where charts are at hand: ONECOPY_TEST_CHARTS names a folder that has one folder a chart, by the chart's name, with
its dependencies. What a chart's pods then do is not shown.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.conftest import helm  # noqa: F401
from tests.conftest import CHARTS

from onecopy.config.aws import ClusterConfig
from onecopy.config.schema import StackConfig
from onecopy.storage.uri import StoreUri
from onecopy.targets.aws import charts
from onecopy.targets.aws.inputs import make_inputs
from onecopy.targets.kubernetes import models
from onecopy.targets.kubernetes.helm import documents
from onecopy.targets.kubernetes.releases import Release, monitoring
from onecopy.targets.kubernetes.stack import make_stack

SHARED = {"gpu": {"replicas_per_card": 2, "card": "L4"}}
OUTPUTS = {"VpcId": "vpc-0a1b2c3d", "LoadBalancerRoleArn": "arn:aws:iam::123456789012:role/lb"}
CONFIGS: dict[str, dict[str, Any]] = {
    "plugin": {"aws": {"addons": {"external_secrets": True}}, "kubernetes": SHARED},
    "operator on calico": {
        "aws": {
            "cluster": {"cni": "calico"},
            "addons": {"external_secrets": True},
            "gpu_nodes": {"nvidia": "operator"},
            "tags": {"team": "serving"},
        },
        "kubernetes": {**SHARED, "identity": {"kind": "irsa"}},
    },
}
# Under these a chart takes any key
FREE = (
    "nodeSelector", "updateStrategy", "config.map", "devicePlugin.config.data", "serviceAccount.annotations", "defaultTags", "resources",
)  # fmt: skip


def releases(case: str) -> dict[str, Release]:
    inputs = make_inputs(StackConfig.model_validate(CONFIGS[case]))
    made = {r.name: r for r in charts.releases(inputs, region="us-east-2", outputs=OUTPUTS)}
    if inputs.is_calico:
        made["calico"] = charts.calico(inputs)
    return made


CASES = [(case, name) for case in CONFIGS for name in releases(case)]


def folder(chart: str) -> Path:
    if CHARTS is None or not (CHARTS / chart / "Chart.yaml").is_file():
        pytest.skip(f"no chart {chart}: ONECOPY_TEST_CHARTS={CHARTS}")
    return CHARTS / chart


def rendered(helm: Path, release: Release, tmp_path: Path) -> list[dict[str, Any]]:  # noqa: F811
    values = tmp_path / "values.yaml"
    values.write_text(json.dumps(release.values))
    version = ClusterConfig().version
    done = subprocess.run(
        [str(helm), "template", release.name, str(folder(release.chart)), "--namespace", release.namespace,
         "--kube-version", f"{version}.0", "--values", str(values)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return documents(done.stdout, release.namespace)


def unknown(ours: dict[str, Any], theirs: Any, path: str = "") -> Iterator[str]:
    for key, value in ours.items():
        where = f"{path}.{key}" if path else key
        if not isinstance(theirs, dict) or key not in theirs:
            yield where
        elif isinstance(value, dict) and not where.endswith(FREE):
            yield from unknown(value, theirs[key] or {}, where)


def properties(schema: Any) -> Any:
    """An OpenAPI schema in the shape of values: key → what is below it; a list stands for its items."""
    if "properties" in schema:
        return {key: properties(below) for key, below in schema["properties"].items()}
    return properties(schema["items"]) if "items" in schema else {}


def one(docs: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = (doc for doc in docs if doc["kind"] == kind and doc["metadata"]["name"] == name)
    return found


@pytest.mark.parametrize(("case", "name"), CASES)
def test_the_chart_knows_every_key_and_renders(case: str, name: str, helm: Path, tmp_path: Path) -> None:  # noqa: F811
    release = releases(case)[name]
    chart = folder(release.chart)
    known = yaml.safe_load((chart / "values.yaml").read_text())
    if name == "calico":  # it takes the whole Installation, which only its own schema knows
        crd = yaml.load((chart / "crds" / "operator.tigera.io_installations.yaml").read_text(), yaml.CSafeLoader)
        known["installation"] |= properties(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])["spec"]
        pools = release.values["installation"]["calicoNetwork"]["ipPools"]
        assert [key for pool in pools for key in unknown(pool, known["installation"]["calicoNetwork"]["ipPools"])] == []
    assert list(unknown(release.values, known)) == []
    assert rendered(helm, release, tmp_path)
    stated = yaml.safe_load((chart / "Chart.yaml").read_text())["version"]
    if not stated.endswith(("-devel", "v0.0")):  # two owners write the version when they publish
        assert stated == release.version, "another version was rendered than the one that is pinned"


def test_load_balancer_controller(helm: Path, tmp_path: Path) -> None:  # noqa: F811
    docs = rendered(helm, releases("operator on calico")["aws-load-balancer-controller"], tmp_path)
    deployment = one(docs, "Deployment", "aws-load-balancer-controller")["spec"]
    pod = deployment["template"]["spec"]
    args = set(pod["containers"][0]["args"])
    assert {
        "--cluster-name=onecopy", "--aws-region=us-east-2", "--aws-vpc-id=vpc-0a1b2c3d", "--default-tags=team=serving",
        "--enable-shield=false", "--enable-waf=false", "--enable-wafv2=false",
    } <= args  # fmt: skip
    assert (pod["hostNetwork"], pod["nodeSelector"]) == (True, {"workload-type": "cpu"})
    assert deployment["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    account = one(docs, "ServiceAccount", pod["serviceAccountName"])
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": OUTPUTS["LoadBalancerRoleArn"]}
    (hooks,) = (doc for doc in docs if doc["kind"] == "MutatingWebhookConfiguration")
    assert "services" not in json.dumps([rule for hook in hooks["webhooks"] for rule in hook["rules"]])
    assert one(docs, "IngressClass", "alb")


def test_on_calico_no_two_pods_of_a_node_want_the_same_port(helm: Path, tmp_path: Path) -> None:  # noqa: F811
    """What the API server calls listens on the node; kubelet, kube-proxy and our add-ons have theirs."""
    taken: dict[int, str] = {10250: "kubelet", 10249: "kube-proxy", 10256: "kube-proxy", 10251: "metrics-server",
                             10260: "cert-manager", 9402: "cert-manager", 6080: "cert-manager"}  # fmt: skip
    for name in ("aws-load-balancer-controller", "external-secrets"):
        docs = rendered(helm, releases("operator on calico")[name], tmp_path)
        on_node = [d for d in docs if d["kind"] == "Deployment" and d["spec"]["template"]["spec"].get("hostNetwork")]
        assert len(on_node) == 1
        for container in on_node[0]["spec"]["template"]["spec"]["containers"]:
            for port in container["ports"]:
                assert port["containerPort"] not in taken, (name, port, taken)
                taken[port["containerPort"]] = name


@pytest.mark.parametrize(("case", "name"), [("plugin", "nvidia-device-plugin"), ("operator on calico", "gpu-operator")])
def test_shared_cards_are_offered_as_often_as_they_are_shared(
    case: str,
    name: str,
    helm: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    docs = rendered(helm, releases(case)[name], tmp_path)
    sharing = {"timeSlicing": {"resources": [{"name": "nvidia.com/gpu", "replicas": 2}]}}
    texts = [text for doc in docs if doc["kind"] == "ConfigMap" for text in doc["data"].values() if "timeSlic" in text]
    assert [yaml.safe_load(text)["sharing"] for text in texts] == [sharing]
    taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    if name == "nvidia-device-plugin":
        pod = one(docs, "DaemonSet", name)["spec"]["template"]["spec"]
        assert taint in pod["tolerations"]
        assert pod["nodeSelector"] == {"workload-type": "gpu"}
        assert "affinity" not in pod or not pod["affinity"], "it would wait for labels that nobody sets"
        return
    policy = one(docs, "ClusterPolicy", "cluster-policy")["spec"]
    assert (policy["driver"]["enabled"], policy["toolkit"]["enabled"]) == (False, False)
    assert taint in policy["daemonsets"]["tolerations"]
    assert policy["devicePlugin"]["config"] == {"name": "sharing", "default": "any"}
    worker = one(docs, "DaemonSet", "gpu-operator-node-feature-discovery-worker")["spec"]["template"]["spec"]
    assert any(t.get("key") == "nvidia.com/gpu" for t in worker["tolerations"])


def test_calico_is_an_overlay_and_starts_before_there_is_a_node(helm: Path, tmp_path: Path) -> None:  # noqa: F811
    docs = rendered(helm, releases("operator on calico")["calico"], tmp_path)
    spec = one(docs, "Installation", "default")["spec"]
    assert (spec["kubernetesProvider"], spec["cni"]["type"]) == ("EKS", "Calico")
    assert spec["calicoNetwork"]["bgp"] == "Disabled"
    assert spec["calicoNetwork"]["ipPools"] == [{"cidr": "10.244.0.0/16", "encapsulation": "VXLAN"}]
    operator = one(docs, "Deployment", "tigera-operator")["spec"]["template"]["spec"]
    assert operator["hostNetwork"] is True
    assert {t.get("effect") for t in operator["tolerations"] if t.get("operator") == "Exists"} >= {"NoSchedule"}
    assert {doc["kind"] for doc in docs}.isdisjoint({"Goldmane", "Whisker"})


def test_monitoring_asks_for_no_webhook_and_no_hidden_control_plane(helm: Path, tmp_path: Path) -> None:  # noqa: F811
    store = StoreUri.parse("s3://b-1/models")
    config = StackConfig.model_validate({"store": {"uri": str(store)}, "kubernetes": {"cloud": "aws"}})
    release = monitoring(make_stack(config, store, models.find(config, store, {}, ask_store=False).models))
    known = yaml.safe_load((folder(release.chart) / "values.yaml").read_text())
    assert list(unknown(release.values, known)) == []
    docs = rendered(helm, release, tmp_path)
    assert not {doc["kind"] for doc in docs} & {"ValidatingWebhookConfiguration", "MutatingWebhookConfiguration", "Job"}
    alerts = {
        rule.get("alert")
        for doc in docs
        if doc["kind"] == "PrometheusRule"
        for group in doc["spec"]["groups"]
        for rule in group["rules"]
    }
    assert "KubeAPIDown" in alerts
    assert alerts.isdisjoint({"KubeControllerManagerDown", "KubeSchedulerDown", "KubeProxyDown", "etcdMembersDown"})
