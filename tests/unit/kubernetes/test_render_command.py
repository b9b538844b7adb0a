"""`onecopy render`, as a script calls it: no configuration, no cluster, no cloud."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml


def render(tmp_path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onecopy", "render", "--target", "kubernetes", "--out", str(tmp_path / "out"), *args],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )


@pytest.mark.parametrize(
    ("cloud", "delivery"),
    [("aws", "node-cache"), ("gcp", "mount"), ("azure", "stream"), ("none", "node-cache")],
)
def test_bare_command_writes_a_whole_stack_and_says_what_is_left_to_set(
    cloud: str, delivery: str, tmp_path: Path
) -> None:
    done = render(tmp_path, "--cloud", cloud, "--delivery", delivery, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    files = {Path(path).relative_to(tmp_path / "out").as_posix() for path in answer["files"]}
    assert {"helm/releases.yaml", "helm/onecopy.values.yaml"} <= files
    assert any(name.startswith("manifests/") for name in files)
    assert any("store.uri is not set" in warning for warning in answer["warnings"])
    assert any("no revision is known" in warning for warning in answer["warnings"])
    releases = yaml.safe_load((tmp_path / "out/helm/releases.yaml").read_text())["releases"]
    (serving,) = [release for release in releases if release["name"] == "onecopy"]
    assert serving.keys() == {"name", "namespace", "chart", "version", "repository", "values"}
    assert (tmp_path / "out/helm" / serving["values"]).is_file()


def test_what_cannot_work_is_an_error_with_a_hint(tmp_path: Path) -> None:
    done = render(tmp_path, "--cloud", "none", "--delivery", "mount")
    assert done.returncode == 1
    assert "CSI driver" in done.stderr
    assert "hint:" in done.stderr
    assert not (tmp_path / "out").exists()


def test_unknown_cloud_names_the_right_ones(tmp_path: Path) -> None:
    done = render(tmp_path, "--cloud", "amazon")
    assert done.returncode == 1
    assert "'aws', 'gcp', 'azure' or 'none'" in done.stderr


def test_plan_without_a_cluster_says_so(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text("apiVersion: v1\nkind: Config\nclusters: []\n")
    done = subprocess.run(
        [sys.executable, "-m", "onecopy", "plan", "--target", "kubernetes", "--store", "s3://b/p"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "KUBECONFIG": str(tmp_path / "kubeconfig")},
    )
    assert done.returncode == 1
    assert "no cluster in" in done.stderr
