"""Resolution of a stack's configuration: flag > environment > file > default, and where each value came from."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from onecopy.config.schema import ModelConfig, StackConfig
from onecopy.core import environment
from onecopy.core.errors import ConfigError

DEFAULT_FILE = "onecopy.toml"
PREFIX = "ONECOPY_"
# Short names for what people set most; they speak of the first model
_ALIASES: dict[str, str] = {
    "ONECOPY_STORE": "store.uri",
    "ONECOPY_MODEL": "models.0.source",
    "ONECOPY_REPLICAS": "models.0.replicas",
    "ONECOPY_REVISION": "models.0.revision",
    "ONECOPY_MAX_MODEL_LEN": "models.0.max_model_len",
}


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration and, for every value that is not a default, where it came from (dotted path → source)."""

    config: StackConfig
    origins: Mapping[str, str]
    file: Path | None


def resolve(*, file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Resolved:
    """flags: dotted path → value, e.g. `{"router.port": 0, "models.0.replicas": 4}`; None values are not set.

    Raises ConfigError: unreadable file, unknown key (with the nearest right one), refused value.
    """
    path = _find(file)
    tree: dict[str, Any] = _read(path) if path else {}
    origins = {dotted: str(path) for dotted, _ in leaves(tree)}
    names = environment_names()
    _refuse_unknown_variables(names)
    for name, dotted in names.items():
        value = environment.read(name)
        if value is not None:
            _set(tree, dotted, value)
            origins[dotted] = name
    for dotted, value in (flags or {}).items():
        if value is not None:
            _set(tree, dotted, value)
            origins[dotted] = "flag"
    try:
        return Resolved(StackConfig.model_validate(_listed(tree)), origins, path)
    except ValidationError as error:
        raise _refused(error, origins) from error


def _find(file: Path | None) -> Path | None:
    named = file or (Path(value) if (value := environment.read("ONECOPY_CONFIG")) else None)
    if named is not None:
        if not named.is_file():
            raise ConfigError(f"no such configuration file: {named}", hint="`onecopy init` writes one")
        return named
    default = Path(DEFAULT_FILE)
    return default if default.is_file() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}", hint="`onecopy init --force` writes a fresh one") from error
    models = tree.get("models")
    if isinstance(models, list):
        tree["models"] = {str(i): model for i, model in enumerate(cast(list[Any], models))}
    return tree


def environment_names() -> dict[str, str]:
    """Every environment variable of the schema → its dotted path; a short alias goes before the long name."""
    names = {
        f"{PREFIX}{dotted.replace('.', '_').upper()}": dotted
        for dotted, _ in fields(StackConfig)
        if not dotted.startswith("models.")
    }
    return {**names, **_ALIASES}


def _refuse_unknown_variables(names: Mapping[str, str]) -> None:
    others = {name for name in environment.REGISTER if name.startswith(PREFIX)}
    unknown = set(environment.prefixed(PREFIX)) - set(names) - others
    if unknown:
        name = min(unknown)
        near = difflib.get_close_matches(name, [*names, *others], n=1)
        raise ConfigError(
            f"unknown environment variable {name}", hint=f"did you mean {near[0]}?" if near else "unset it"
        )


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf field of the schema as (dotted path, FieldInfo); lists of sections under `name.0.`."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{prefix}{name}.")
        elif name == "models":
            yield from fields(ModelConfig, f"{prefix}{name}.0.")
        else:
            yield f"{prefix}{name}", field


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every leaf; tables in a list count from 0."""
    for key, value in tree.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            value = {str(i): item for i, item in enumerate(cast(list[Any], value))}
        if isinstance(value, dict):
            yield from leaves(cast(dict[str, Any], value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for part in parents:
        below: Any = tree.setdefault(part, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{part} must be a table, not {below!r}")
        tree = cast(dict[str, Any], below)
    tree[last] = value


def _listed(tree: dict[str, Any]) -> dict[str, Any]:
    models = tree.get("models")
    if isinstance(models, dict):
        table = cast(dict[str, Any], models)
        return {**tree, "models": [table[key] for key in sorted(table, key=lambda k: int(k) if k.isdigit() else 0)]}
    return tree


def _refused(error: ValidationError, origins: Mapping[str, str]) -> ConfigError:
    first = error.errors()[0]
    dotted = ".".join(str(part) for part in first["loc"])
    origin = origins.get(dotted)
    where = f" (from {origin})" if origin else ""
    if first["type"] == "extra_forbidden":
        known = [path for path, _ in fields(StackConfig)]
        generic = ".".join("0" if part.isdigit() else part for part in dotted.split("."))
        near = difflib.get_close_matches(generic, known, n=1, cutoff=0.5)
        return ConfigError(
            f"unknown key {dotted}{where}",
            hint=f"did you mean {near[0]}?" if near else "`onecopy init` lists every key",
        )
    return ConfigError(
        f"{dotted}: {first['msg'].lower()}, got {first['input']!r}{where}",
        hint="`onecopy init` writes every key with its meaning",
    )
