from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onecopy.core.errors import EngineError
from onecopy.engine import architectures

REGISTRY = """
_TEXT = {"LlamaForCausalLM": ("llama", "LlamaForCausalLM")}
_ALL = {**_TEXT, "Other": ("other", "Other")}
"""


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This Python, with a package named vllm that has nothing but a registry."""
    models = tmp_path / "site" / "vllm" / "model_executor" / "models"
    models.mkdir(parents=True)
    (tmp_path / "site" / "vllm" / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (models / "registry.py").write_text(REGISTRY)
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "site"} exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


def test_known_and_unknown(python: Path) -> None:
    assert architectures.supported(python) == {"LlamaForCausalLM", "Other"}
    architectures.check(python, ["LlamaForCausalLM"])
    with pytest.raises(EngineError, match="FooForCausalLM"):
        architectures.check(python, ["FooForCausalLM"])
