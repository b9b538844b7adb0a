"""The commented `onecopy.toml` that `onecopy init` writes, made from the schema, so that it is never behind it."""

from __future__ import annotations

import json
from typing import Any, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from onecopy.config.schema import ModelConfig, StackConfig

_HEAD = """\
# onecopy.toml: one stack. The same file runs on a laptop (target = "local"), on any Kubernetes cluster and on AWS.
# Every key stands here with its meaning and default; a line that begins with "# key =" is a default: uncomment to change.
# Precedence: flag > environment > this file > default. `onecopy config show` tells where each value came from.
"""


def render_template() -> str:
    blocks = [_HEAD, *_table(StackConfig, "")]
    return "\n".join(blocks).rstrip() + "\n"


def _table(model: type[BaseModel], path: str) -> list[str]:
    lines: list[str] = []
    nested: list[tuple[str, type[BaseModel], bool]] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            nested.append((f"{path}{name}", kind, False))
        elif name == "models":
            nested.append((f"{path}{name}", ModelConfig, True))
        else:
            lines += [*_comment(field), _default_line(name, field), ""]
    for dotted, kind, is_list in nested:
        lines += [f"[[{dotted}]]" if is_list else f"[{dotted}]", *_table(kind, f"{dotted}.")]
    return lines


def _comment(field: FieldInfo) -> list[str]:
    return [f"# {line.strip()}" for line in (field.description or "").splitlines()]


def _default_line(name: str, field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True) if not field.is_required() else PydanticUndefined
    if value is None or value is PydanticUndefined:
        return f"# {name} ="
    return f"# {name} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, BaseModel):
        pairs = ", ".join(
            f"{key} = {_toml(item)}" for key, item in value.model_dump(mode="json").items() if item is not None
        )
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, dict):
        table = cast(dict[str, Any], value)
        return (
            "{ " + ", ".join(f"{json.dumps(str(key))} = {_toml(item)}" for key, item in table.items()) + " }"
            if table
            else "{}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in cast(list[Any], value)) + "]"
    if isinstance(value, bool | int | float | str):
        return json.dumps(value)
    return json.dumps(str(value))
