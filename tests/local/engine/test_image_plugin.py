"""The engine image's one step, run beside a real vLLM: our wheel and what it pins, and vLLM finds the load format."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from onecopy.core import environment
from onecopy.engine.environments import Engine

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[3]
CODE = """
from vllm.plugins import load_general_plugins; load_general_plugins()
from vllm.model_executor import model_loader
print(model_loader._LOAD_FORMAT_TO_MODEL_LOADER["onecopy"].__module__)
import onecopy; print(onecopy.__file__)
"""


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=cwd, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_vllm_finds_the_plugin_as_the_image_installs_it(engine: Engine, tmp_path: Path) -> None:
    wheels, prefix = tmp_path / "wheels", tmp_path / "vllm"
    run("sh", ROOT / "images/build-wheel", ROOT, wheels)
    run(engine.python, "-m", "venv", prefix)
    packages = run(engine.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    own = next(prefix.glob("lib/*/site-packages"))
    shutil.copy(ROOT / "images/plugin.txt", wheels)
    run("sh", ROOT / "images/install-plugin", prefix / "bin/python", wheels)
    (own / "vllm.pth").write_text(f"{packages}\n")  # stands for vLLM's own image
    quiet = environment.child(OMP_NUM_THREADS="1", VLLM_LOGGING_LEVEL="ERROR", PYTHONPATH=None)
    found = run(prefix / "bin/python", "-c", CODE, env=quiet, cwd=tmp_path).split()
    assert found[-2:] == ["onecopy.engine.loader", str(own / "onecopy/__init__.py")]
    added = {path.name.partition("-")[0] for path in own.glob("*.dist-info")}
    assert added <= {"pip", "setuptools", "onecopy", "obstore", "xxhash"}, "a package of vLLM's would be replaced"
