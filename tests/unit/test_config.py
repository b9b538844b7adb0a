"""Resolution: flag > environment > file > default, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from onecopy.config.resolve import fields, resolve
from onecopy.config.schema import StackConfig
from onecopy.config.template import render_template
from onecopy.core.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_file_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_precedence_and_origins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "onecopy.toml"
    file.write_text('name = "file"\n[router]\nport = 1\nhost = "127.0.0.2"\n[[models]]\nreplicas = 3\n')
    monkeypatch.setenv("ONECOPY_ROUTER_PORT", "2")
    monkeypatch.setenv("ONECOPY_REPLICAS", "5")
    resolved = resolve(flags={"models.0.replicas": 7, "models.0.source": None})
    assert resolved.config.name == "file"
    assert resolved.config.router.port == 2
    assert resolved.config.models[0].replicas == 7
    assert resolved.origins["router.port"] == "ONECOPY_ROUTER_PORT"
    assert resolved.origins["router.host"] == str(resolved.file)
    assert resolved.origins["models.0.replicas"] == "flag"
    assert "models.0.source" not in resolved.origins


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "onecopy.toml").write_text("[router]\nprot = 1\n")
    with pytest.raises(ConfigError, match=r"router\.prot") as caught:
        resolve()
    assert caught.value.hint == "did you mean router.port?"


def test_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONECOPY_REPLCAS", "2")
    with pytest.raises(ConfigError, match="ONECOPY_REPLCAS") as caught:
        resolve()
    assert caught.value.hint == "did you mean ONECOPY_REPLICAS?"


def test_refused_value_names_key_value_and_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONECOPY_REPLICAS", "0")
    with pytest.raises(ConfigError, match=r"models\.0\.replicas.*'0'.*ONECOPY_REPLICAS"):
        resolve()


def test_template_is_valid_and_names_every_key() -> None:
    text = render_template()
    StackConfig.model_validate(tomllib.loads(text))
    uncommented = [line.split(" =")[0].removeprefix("# ") for line in text.splitlines() if " =" in line]
    for dotted, field in fields(StackConfig):
        assert dotted.rsplit(".", 1)[-1] in uncommented, dotted
        assert field.description, f"{dotted} has no docstring"
