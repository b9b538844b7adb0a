"""Every combination of cloud, delivery and identity: renders, is valid for three Kubernetes versions, keeps its promises,
and matches a reviewed snapshot. `UPDATE_SNAPSHOTS=1 pytest …` writes the snapshots anew: review the difference.

The first case of each delivery is kept whole, the others as their difference from it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from onecopy.config.kubernetes import IDENTITIES
from onecopy.config.schema import StackConfig
from onecopy.core.errors import ConfigError
from onecopy.targets.kubernetes.target import KubernetesTarget

SNAPSHOTS = Path(__file__).parent / "snapshots"
VERSIONS = ("1.31", "1.34", "1.37")
STORES = {
    "aws": "s3://weights/prod",
    "gcp": "gs://weights/prod",
    "azure": "az://account/weights/prod",
    "none": "s3://weights/prod",
}
READERS = {
    "irsa": ("arn:aws:iam::111122223333:role/reader", "arn:aws:iam::111122223333:role/writer"),
    "workload-identity": ("reader@project.iam.gserviceaccount.com", "writer@project.iam.gserviceaccount.com"),
}
CASES = [
    (cloud, delivery, identity)
    for cloud in ("aws", "gcp", "azure", "none")
    for delivery in ("node-cache", "mount", "stream")
    for identity in IDENTITIES[cloud]
    if (cloud, delivery) != ("none", "mount") and (cloud, delivery, identity) != ("gcp", "mount", "secret")
]
REVISION = "0123456789abcdef"


def config(cloud: str, delivery: str, kind: str, /, **kubernetes: Any) -> StackConfig:
    reader, writer = READERS.get(kind, (None, None))
    section: dict[str, Any] = {
        "cloud": cloud,
        "delivery": delivery,
        "identity": {"kind": kind, "reader": reader, "writer": writer},
        "model_bytes": "16Gi",
        "azure_resource_group": "group",
        **kubernetes,
    }
    return StackConfig.model_validate(
        {
            "name": "chat",
            "target": "kubernetes",
            "store": {"uri": STORES[cloud], "region": "us-east-2" if cloud == "aws" else None},
            "models": [
                {"name": "qwen2.5-7b", "source": "folder", "revision": REVISION},
                {"name": "tiny", "source": "folder", "revision": REVISION[::-1], "replicas": 1},
            ],
            "kubernetes": section,
        }
    )


@pytest.fixture(autouse=True)
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cloud here: the store's address leads nowhere, at once."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")


def rendered(made: StackConfig, out: Path) -> dict[str, str]:
    files = KubernetesTarget(made, ask_store=False).render(out).files
    return {str(path.relative_to(out)): path.read_text() for path in files}


def objects(files: dict[str, str]) -> Iterator[dict[str, Any]]:
    for name, text in files.items():
        if name.startswith("manifests/"):
            yield from yaml.safe_load_all(text)


def pods(files: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for made in objects(files):
        if made["kind"] in ("Job", "DaemonSet", "Deployment"):
            yield made["metadata"]["namespace"], made["spec"]["template"]["spec"]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_matrix(case: tuple[str, str, str], tmp_path: Path) -> None:
    files = rendered(config(*case), tmp_path)
    for made in objects(files):
        if made["apiVersion"].startswith("monitoring.coreos.com"):
            continue  # a third party's kind: no schema here
        for version in VERSIONS:
            kubernetes_validate.validate(made, version, strict=True)
    assert_matches_snapshot("-".join(case), files)


def assert_matches_snapshot(name: str, files: dict[str, str]) -> None:
    text = "".join(f"### {path}\n{body}" for path, body in sorted(files.items()))
    delivery = next(case[1] for case in CASES if "-".join(case) == name)
    first = f"aws-{delivery}-pod-identity"
    if name != first:
        base = (SNAPSHOTS / f"{first}.yaml").read_text()
        lines = difflib.unified_diff(base.splitlines(), text.splitlines(), first, name, n=1, lineterm="")
        text = "\n".join(line for line in lines if not line.startswith("@@")) + "\n"
    path = SNAPSHOTS / (f"{name}.yaml" if name == first else f"{name}.diff")
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text, f"{path.name} is not what is rendered now: UPDATE_SNAPSHOTS=1 and review"


def test_same_configuration_renders_the_same_bytes(tmp_path: Path) -> None:
    made = config("aws", "mount", "irsa")
    assert rendered(made, tmp_path / "a") == rendered(made, tmp_path / "b")


def test_files_of_an_earlier_rendering_go(tmp_path: Path) -> None:
    rendered(config("aws", "node-cache", "irsa"), tmp_path)
    assert rendered(config("aws", "stream", "irsa"), tmp_path).keys() == {
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.yaml")
    }


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_only_the_agent_leaves_pod_security_restricted_and_only_by_its_host_path(
    case: tuple[str, str, str], tmp_path: Path
) -> None:
    files = rendered(config(*case), tmp_path)
    levels = {
        made["metadata"]["name"]: made["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
        for made in objects(files)
        if made["kind"] == "Namespace"
    }
    assert levels.pop("chat") == "restricted"
    assert levels == ({"chat-agent": "privileged"} if case[1] == "node-cache" else {})
    values = yaml.safe_load(files["helm/chat.values.yaml"])
    for spec in (values["servingEngineSpec"], values["routerSpec"]):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["containerSecurityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "runAsNonRoot": True,
        }
    for namespace, pod in pods(files):
        kinds = {key for volume in pod["volumes"] for key in volume if key != "name"}
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        if namespace == "chat":
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert "hostPath" not in kinds


@pytest.mark.parametrize("case", [c for c in CASES if c[1] == "node-cache"], ids="-".join)
def test_with_node_cache_replicas_hold_no_credentials_and_reach_no_store(
    case: tuple[str, str, str], tmp_path: Path
) -> None:
    files = rendered(config(*case), tmp_path)
    for spec in yaml.safe_load(files["helm/chat.values.yaml"])["servingEngineSpec"]["modelSpec"]:
        assert "envFromSecret" not in spec
        assert not [v for v in spec["extraVolumes"] if "secret" in v]
        assert spec["extraVolumeMounts"][-1]["readOnly"] is True
    by_name = {(made["kind"], made["metadata"]["name"]): made for made in objects(files)}
    account = by_name["ServiceAccount", "chat-replica"]
    assert "annotations" not in account["metadata"]
    assert account["automountServiceAccountToken"] is False
    egress = by_name["NetworkPolicy", "chat-replica"]["spec"]["egress"]
    assert {port["port"] for rule in egress for port in rule["ports"]} == {53}


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_volumes_and_replicas_name_a_revision(case: tuple[str, str, str], tmp_path: Path) -> None:
    files = rendered(config(*case), tmp_path)
    for made in objects(files):
        if made["kind"] in ("PersistentVolume", "PersistentVolumeClaim"):
            assert made["metadata"]["labels"]["onecopy.dev/revision"] in made["metadata"]["name"]
            assert made["spec"]["accessModes"] == ["ReadOnlyMany"]
            assert made["spec"]["storageClassName"] == ""
    for spec in yaml.safe_load(files["helm/chat.values.yaml"])["servingEngineSpec"]["modelSpec"]:
        revision = spec["podLabels"]["onecopy.dev/revision"]
        claims = [v["persistentVolumeClaim"] for v in spec["extraVolumes"] if "persistentVolumeClaim" in v]
        assert all(revision in claim["claimName"] for claim in claims)
        assert revision in spec["modelURL"] or claims


def test_mount_is_scoped_to_the_revision(tmp_path: Path) -> None:
    prefix = f"prod/qwen2.5-7b/revisions/{REVISION}"
    options = {
        cloud: [
            option
            for made in objects(rendered(config(cloud, "mount", identity), tmp_path / cloud))
            if made["kind"] == "PersistentVolume" and REVISION in made["metadata"]["name"]
            for option in made["spec"]["mountOptions"]
        ]
        for cloud, identity in (("aws", "pod-identity"), ("gcp", "workload-identity"), ("azure", "secret"))
    }
    assert f"prefix {prefix}/" in options["aws"]
    assert f"only-dir={prefix}" in options["gcp"]
    assert f"--subdirectory={prefix}" in options["azure"]


def test_two_stacks_in_one_namespace_share_no_label_volume_or_cache(tmp_path: Path) -> None:
    seen: list[set[str]] = []
    for name in ("chat", "code"):
        made = config("aws", "node-cache", "irsa", namespace="llm").model_copy(update={"name": name})
        files = rendered(made, tmp_path / name)
        names = {f"{o['kind']}/{o['metadata']['name']}" for o in objects(files) if o["kind"] != "Namespace"}
        agents = [pod for _, pod in pods(files) if pod["volumes"][0].get("hostPath")]
        names |= {pod["volumes"][0]["hostPath"]["path"] for pod in agents}
        names |= {str(yaml.safe_load(files[f"helm/{name}.values.yaml"])["servingEngineSpec"]["labels"])}
        seen.append(names)
    assert not seen[0] & seen[1]


def test_gpu_taint_is_tolerated_and_agents_run_where_replicas_may(tmp_path: Path) -> None:
    files = rendered(config("aws", "node-cache", "irsa"), tmp_path)
    spec = yaml.safe_load(files["helm/chat.values.yaml"])["servingEngineSpec"]["modelSpec"][0]
    agent = next(pod for _, pod in pods(files))
    taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert taint in spec["tolerations"]
    assert agent["tolerations"] == spec["tolerations"]
    assert agent["affinity"] == spec["affinity"]
    volume = next(made for made in objects(files) if made["kind"] == "PersistentVolume")
    required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert volume["spec"]["nodeAffinity"]["required"] == required


@pytest.mark.parametrize(
    ("kubernetes", "message"),
    [
        ({"ingress": {"host": "llm.example.com"}, "api_key_secret": "k"}, "no TLS"),
        ({"ingress": {"host": "llm.example.com", "tls_secret": "t"}}, "no API key"),
        ({"gpu": {"replicas_per_card": 2}}, "share a card"),
        ({"images": {"engine": "vllm/vllm-openai:latest"}}, "not pinned"),
        ({"images": {"engine": "localhost:5000/vllm"}}, "not pinned"),
        ({"identity": {"kind": "irsa"}}, "needs it"),
        ({"identity": {"kind": "workload-identity"}}, "does not exist on cloud"),
    ],
)
def test_what_is_insecure_or_cannot_work_is_refused(kubernetes: dict[str, Any], message: str, tmp_path: Path) -> None:
    from onecopy.storage.uri import StoreUri
    from onecopy.targets.kubernetes import build, models, stack

    made = config("aws", "node-cache", "pod-identity", **kubernetes)
    uri = StoreUri.parse(made.store.uri or "")
    with pytest.raises(ConfigError, match=message):  # noqa: PT012
        found = stack.make_stack(made, uri, models.find(made, uri, {}, ask_store=False).models)
        stack.check_shares(found)
        build.stages(found, monitors=True, install_monitoring=False)


def test_mount_without_a_cloud_or_its_identity_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no Secret"):
        rendered(config("gcp", "mount", "secret"), tmp_path)
    with pytest.raises(ConfigError, match="CSI driver"):
        rendered(config("none", "mount", "secret"), tmp_path)


def test_exposed_stack_has_tls_key_and_an_internal_load_balancer_by_default(tmp_path: Path) -> None:
    ingress = {"host": "llm.example.com", "class_name": "alb", "tls_secret": "tls"}
    files = rendered(config("aws", "node-cache", "irsa", ingress=ingress, api_key_secret="keys"), tmp_path)
    made = next(made for made in objects(files) if made["kind"] == "Ingress")
    for version in VERSIONS:
        kubernetes_validate.validate(made, version, strict=True)
    assert made["metadata"]["annotations"]["alb.ingress.kubernetes.io/scheme"] == "internal"
    assert made["metadata"]["annotations"]["alb.ingress.kubernetes.io/listen-ports"] == '[{"HTTPS":443}]'
    assert made["spec"]["tls"] == [{"hosts": ["llm.example.com"], "secretName": "tls"}]
    values = yaml.safe_load(files["helm/chat.values.yaml"])
    assert values["servingEngineSpec"]["vllmApiKey"] == {"secretName": "keys", "secretKey": "api-key"}


def test_publishing_happens_in_the_cluster_with_the_writers_identity(tmp_path: Path) -> None:
    made = config("aws", "node-cache", "irsa", hub_secret="hub")
    made = made.model_copy(
        update={"models": (made.models[0].model_copy(update={"source": "hf://Qwen/Qwen2.5-7B", "revision": "main"}),)}
    )
    files = rendered(made, tmp_path)
    job = next(made for made in objects(files) if made["kind"] == "Job")
    for version in VERSIONS:
        kubernetes_validate.validate(job, version, strict=True)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][:4] == ["onecopy", "model", "publish", "hf://Qwen/Qwen2.5-7B"]
    token = next(env for env in container["env"] if env["name"] == "HF_TOKEN")
    assert token["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "token"}
    account = next(
        o for o in objects(files) if o["kind"] == "ServiceAccount" and o["metadata"]["name"] == "chat-publish"
    )
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": READERS["irsa"][1]}


def test_deadlines_and_memory_grow_with_the_model(tmp_path: Path) -> None:
    small, large = (
        yaml.safe_load(
            rendered(config("aws", "stream", "irsa", model_bytes=size), tmp_path / size)["helm/chat.values.yaml"]
        )
        for size in ("2Gi", "140Gi")
    )
    budgets = [
        values["servingEngineSpec"]["startupProbe"]["failureThreshold"]
        * values["servingEngineSpec"]["startupProbe"]["periodSeconds"]
        for values in (small, large)
    ]
    assert budgets[0] < 400
    assert budgets[1] > 140 * 2**30 / 100e6
