"""End to end: the emulated EKS answers with a real API server, which asks EKS's authenticator who holds a token.

Real: API server, scheduler, controllers, Helm, the tokens, the kubeconfig's plugin, every step of ours. Not real: AWS
and its nodes (no kubelet: `tests/cluster/nodes.py` plays it), and the charts, which are small ones of the same names.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.aws.conftest import REGION, Emulator
from tests.aws.test_life import NAME, client, session
from tests.cluster import plane
from tests.cluster.conftest import CHART, chart, helm  # noqa: F401
from tests.cluster.nodes import Hand, add_node

from onecopy.targets.kubernetes.cluster import Cluster

REVISION = "0123456789abcdef"
TINY = {
    "Chart.yaml": "apiVersion: v2\nname: aws-load-balancer-controller\nversion: 3.5.0\n",
    "templates/all.yaml": """\
apiVersion: v1
kind: ConfigMap
metadata: {name: balancer}
data: {cluster: "{{ .Values.clusterName }}", vpc: "{{ .Values.vpcId }}"}
""",
}


class WebhookPlane(plane.ControlPlane):
    """A control plane that asks a webhook who holds a token, as EKS's does."""

    webhook = ""

    def _run(self, program: str, *args: str) -> None:
        if program == "kube-apiserver":
            named = (
                [{"name": "eks", "cluster": {"server": self.webhook}}],
                [{"name": "eks", "context": {"cluster": "eks", "user": "eks"}}],
            )
            body = {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": named[0],
                "contexts": named[1],
                "users": [{"name": "eks"}],
                "current-context": "eks",
            }
            self._write("webhook", json.dumps(body))
            args = (*args, "--authentication-token-webhook-config-file", "webhook")
        super()._run(program, *args)


@pytest.fixture
def cluster(aws: Emulator, tmp_path: Path) -> Iterator[Cluster]:
    """The API server behind the cluster that will be made; held by its own administrator's certificate, not by us."""
    if reason := plane.missing():
        pytest.skip(f"no control plane: {reason}")
    secret = secrets.token_hex(16)
    made = WebhookPlane(tmp_path / "plane")
    made.webhook = f"{aws.endpoint}/_ministack/eks-auth/{session().identity.account}/{REGION}/{NAME}/{secret}"
    with made as running:
        config = json.loads(running.kubeconfig.read_text())["clusters"][0]["cluster"]
        arn = f"arn:aws:iam::{session().identity.account}:user/operator"
        aws.set(
            endpoint=config["server"],
            ca=config["certificate-authority-data"],
            webhook_token=secret,
            creator={"principalArn": arn, "username": "operator", "kubernetesGroups": ["operators"]},
        )
        assert base64.b64decode(config["certificate-authority-data"]).startswith(b"-----BEGIN")
        found = plane.connect(running.kubeconfig)
        add_node(found, "cpu-1", labels={"workload-type": "cpu"})
        add_node(found, "gpu-1", gpus=4, labels={"workload-type": "gpu"})
        yield found


@pytest.fixture
def operator(cluster: Cluster) -> dict[str, str]:
    """Somebody with every right in the account and none of the cluster's own passwords. EKS makes whoever creates a
    cluster its administrator; on the emulator the binding is made here."""
    iam = client("iam")
    iam.create_user(UserName="operator")
    iam.attach_user_policy(UserName="operator", PolicyArn="arn:aws:iam::aws:policy/AdministratorAccess")
    key = iam.create_access_key(UserName="operator")["AccessKey"]
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "operators"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "Group", "name": "operators", "apiGroup": "rbac.authorization.k8s.io"}],
    }
    cluster.apply(binding)
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


def onecopy(*arguments: str, env: dict[str, str], cwd: Path, code: int = 0) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "onecopy", *arguments],
        env={**os.environ, **env},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == code, done.stderr[-4000:]
    return json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout


@pytest.mark.timeout(900)
def test_from_an_account_to_a_served_model_and_back(
    aws: Emulator,
    cluster: Cluster,
    operator: dict[str, str],
    helm: Path,  # noqa: F811
    chart: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    balancer = tmp_path / "balancer"
    for name, text in TINY.items():
        (balancer / name).parent.mkdir(parents=True, exist_ok=True)
        (balancer / name).write_text(text)
    assert CHART
    (tmp_path / "onecopy.toml").write_text(
        f"""
name = "{NAME}"
target = "aws"
[[models]]
name = "one"
source = "folder"
revision = "{REVISION}"
[aws.cluster]
public_cidrs = ["198.51.100.7/32"]
cni = "calico"
[aws.gpu_nodes]
enabled = false
[aws.addons.charts]
aws-load-balancer-controller = "{balancer}"
tigera-operator = "{balancer}"
[kubernetes]
delivery = "stream"
model_bytes = "1Gi"
observability = {{ mode = "none" }}
charts = {{ vllm_stack = "{chart}" }}
"""
    )
    env = {**operator, "ONECOPY_HELM": str(helm)}
    for name in ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"):
        env[name] = str(tmp_path / name.lower())

    with Hand(cluster, tmp_path / "nodes"):
        plan = onecopy("plan", "--json", env=env, cwd=tmp_path)
        later = {change["name"] for change in plan["changes"] if change["note"] == "once Calico is installed"}
        assert {"CpuNodes", "CorednsAddon"} <= later
        assert client("eks").list_clusters()["clusters"] == []
        applied = onecopy("apply", "--yes", "--json", env=env, cwd=tmp_path)
        assert applied["outputs"]["aws"]["ClusterName"] == NAME
        again = onecopy("plan", "--json", env=env, cwd=tmp_path)
        assert not again["has_changes"], [c for c in again["changes"] if c["action"] != "no-op"]
        assert onecopy("status", "--json", env=env, cwd=tmp_path)["healthy"]

        vpc = applied["outputs"]["aws"]["VpcId"]
        settings = cluster.get("v1", "ConfigMap", "balancer", "kube-system")
        assert settings is not None
        assert settings["data"] == {"cluster": NAME, "vpc": vpc}
        assert len(client("eks").list_nodegroups(clusterName=NAME)["nodegroups"]) == 1, "made once Calico was there"
        assert "vpc-cni" not in client("eks").list_addons(clusterName=NAME)["addons"]
        replicas = cluster.list("v1", "Pod", namespace=NAME, labels={"onecopy.dev/component": "replica"})
        assert {pod["spec"]["nodeName"] for pod in replicas} == {"cpu-1"}
        # the role is bound to the very account that the replicas run as
        held = client("eks").list_pod_identity_associations(clusterName=NAME)["associations"]
        assert (NAME, replicas[0]["spec"]["serviceAccountName"]) in {
            (a["namespace"], a["serviceAccount"]) for a in held
        }

        written = tmp_path / "kubeconfig"
        onecopy("aws", "kubeconfig", "--out", str(written), env=env, cwd=tmp_path)
        assert operator["AWS_SECRET_ACCESS_KEY"] not in written.read_text()
        stranger = client("iam").create_access_key(UserName=_stranger())["AccessKey"]
        denied = {"AWS_ACCESS_KEY_ID": stranger["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": stranger["SecretAccessKey"]}
        onecopy("status", "--json", env={**env, **denied}, cwd=tmp_path, code=1)

        onecopy("destroy", "--yes", "--json", env=env, cwd=tmp_path)
    assert cluster.list("apps/v1", "Deployment", namespace=NAME) == []
    assert client("eks").list_clusters()["clusters"] == []


def _stranger() -> str:
    """Every right in the account, and no entry in the cluster."""
    client("iam").create_user(UserName="stranger")
    client("iam").attach_user_policy(UserName="stranger", PolicyArn="arn:aws:iam::aws:policy/AdministratorAccess")
    return "stranger"
