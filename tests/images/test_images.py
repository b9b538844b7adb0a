"""Our images: what their files promise, and their install steps run for real, in an environment instead of a container.

No container engine is needed. The scripts are the very ones that the Containerfiles run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onecopy.cli.main import COMMANDS
from onecopy.engine.environments import VLLM_VERSION

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "images"
CONTAINERFILES = sorted(IMAGES.glob("*.Containerfile"))


def run(*command: str | Path, **settings: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **settings)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("file", CONTAINERFILES, ids=lambda file: file.stem)
def test_bases_are_pinned_and_the_user_is_not_root(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    bases = dict(re.fullmatch(r"ARG (\w+)=(\S+)", line).groups() for line in lines if line.startswith("ARG "))  # type: ignore[union-attr]
    for line in lines:
        if line.startswith("FROM "):
            assert re.fullmatch(r"FROM \$\{(\w+)\}(?: AS \w+)?", line), "a base must be an argument, for a digest"
    for name, base in bases.items():
        assert re.search(r":v?\d+\.\d+\.\d+", base), f"{name}={base} is not pinned to a whole version"
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users, "no USER"
    assert all(part.isdigit() and int(part) > 0 for part in users[-1].split(":"))


@pytest.mark.parametrize("file", CONTAINERFILES, ids=lambda file: file.stem)
def test_every_file_that_is_copied_is_there(file: Path) -> None:
    for line in file.read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for name in line.split()[1:-1]:
                assert (ROOT / name).exists(), name


def test_the_engine_image_has_the_vllm_that_the_plugin_was_proven_with() -> None:
    assert f"vllm/vllm-openai:v{VLLM_VERSION}" in (IMAGES / "vllm.Containerfile").read_text()


def test_every_package_is_pinned_by_hash() -> None:
    for lock in sorted(IMAGES.glob("*.txt")):
        pins = re.findall(r"^(\S+)==(\S+)", lock.read_text(), re.MULTILINE)
        blocks = re.split(r"\n(?=\S)", lock.read_text().strip())
        assert pins
        assert all("--hash=sha256:" in block for block in blocks), lock.name


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The command line as the image has it."""
    prefix = tmp_path_factory.mktemp("image") / "onecopy"
    python = Path(sys.executable).resolve().parent
    run("sh", IMAGES / "install-onecopy", ROOT, prefix, env={**os.environ, "PATH": f"{python}:{os.environ['PATH']}"})
    yield prefix
    shutil.rmtree(prefix)


def test_the_installed_command_line_works_alone(installed: Path, tmp_path: Path) -> None:
    onecopy = installed / "bin/onecopy"
    clean = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    assert run(onecopy, "version", env=clean, cwd=tmp_path).stdout.strip()
    assert "L4" in run(onecopy, "gpu", "cards", env=clean, cwd=tmp_path).stdout, "data files travel too"
    for command in COMMANDS:
        assert "Usage: onecopy" in run(onecopy, command, "--help", env=clean, cwd=tmp_path).stdout


def test_the_image_carries_no_installer_and_nothing_heavy(installed: Path) -> None:
    packages = {path.name.partition("-")[0].lower() for path in installed.glob("lib/*/site-packages/*.dist-info")}
    assert "onecopy" in packages
    assert not packages & {"pip", "torch", "vllm", "troposphere", "numpy", "pytest", "hatchling"}
    size = sum(path.stat().st_size for path in installed.rglob("*") if path.is_file() and not path.is_symlink())
    assert size < 120 * 2**20
