"""What every target that is planned has in common: plan → show → confirm → apply.

A `Plan` is what would change and a fingerprint of the state that it saw (`seen`): apply plans again and refuses when
that moved in between. The same model is printed, written with `--out`, and read back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from onecopy.core.errors import StackError, UsageError
from onecopy.core.events import Reporter
from onecopy.cost.stack import MonthlyCost

Action = Literal["create", "update", "replace", "delete", "no-op"]
Health = Literal["ready", "progressing", "failed", "missing"]

MARKS: dict[Action, str] = {"create": "+", "update": "~", "replace": "±", "delete": "-", "no-op": " "}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class FieldChange(_Model):
    path: str
    """Dotted path in the object, list indices in brackets."""
    before: Any = None
    after: Any = None

    def text(self) -> str:
        return f"{self.path}: {_short(self.before)} → {_short(self.after)}"


class Change(_Model):
    group: str
    """Stage that it belongs to; stages are applied in the order in which they first appear."""
    kind: str
    name: str
    """Unique within kind and group, e.g. `namespace/name`."""
    action: Action
    fields: tuple[FieldChange, ...] = ()
    note: str | None = None
    """What people should know before they say yes: a restart, a replacement, a value known only later."""


class Plan(_Model):
    target: str
    stack: str
    changes: tuple[Change, ...]
    seen: str
    """Fingerprint of the live state and of the configuration that this plan was made from."""
    destroy: bool = False
    rollback: bool = False
    warnings: tuple[str, ...] = ()
    cost: MonthlyCost | None = None
    """What the stack would cost a month, where the target knows prices."""
    duration: str | None = None
    """Roughly how long it takes, and where that is from."""

    @property
    def has_changes(self) -> bool:
        return any(change.action != "no-op" for change in self.changes)

    def count(self, action: Action) -> int:
        return sum(change.action == action for change in self.changes)

    def summary(self) -> str:
        if not self.has_changes:
            return f"no changes: {len(self.changes)} parts are as configured"
        words: tuple[tuple[Action, str], ...] = (
            ("create", "create"),
            ("update", "update"),
            ("replace", "replace"),
            ("delete", "delete"),
            ("no-op", "leave"),
        )
        return ", ".join(f"{word} {n}" for action, word in words if (n := self.count(action)))

    def text(self) -> str:
        """Grouped and short: unchanged parts are counted, not listed."""
        lines: list[str] = []
        for group in dict.fromkeys(change.group for change in self.changes):
            changed = [c for c in self.changes if c.group == group and c.action != "no-op"]
            if changed:
                lines.append(f"{group}:")
            for change in changed:
                note = f"  ({change.note})" if change.note else ""
                lines.append(f"  {MARKS[change.action]} {change.kind} {change.name}{note}")
                lines += [f"      {field.text()}" for field in change.fields[:12]]
                if len(change.fields) > 12:
                    lines.append(f"      … and {len(change.fields) - 12} more fields (--json has all)")
        lines.append(f"plan: {self.summary()}")
        lines += [f"time: {self.duration}"] if self.duration else []
        return "\n".join([*lines, *([self.cost.text()] if self.cost else [])])

    def as_dict(self) -> dict[str, Any]:
        return {**self.model_dump(mode="json"), "has_changes": self.has_changes, "summary": self.summary()}

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Raises UsageError when the file is not a plan."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise UsageError(f"not a plan: {path}", hint="`onecopy plan --out FILE` writes one") from error

    def check_current(self, now: Plan) -> None:
        """Raises StackError when `now`, made by apply itself, saw another state than this plan."""
        mine = (self.seen, self.destroy, self.rollback, self.target, self.stack)
        if mine != (now.seen, now.destroy, now.rollback, now.target, now.stack):
            raise StackError(
                f"the plan is stale: {self.stack} on {self.target} changed since it was made",
                hint="make it again: `onecopy plan`",
            )


class PartStatus(_Model):
    """Health of one part of a stack."""

    kind: str
    name: str
    health: Health
    ready: int | None = None
    desired: int | None = None
    reason: str | None = None
    """Why it is not ready, in the platform's own words, with the last events of what is stuck."""


class CachedRevision(_Model):
    node: str
    model: str
    revision: str
    state: str
    """`ready`, `filling`, or what is wrong."""
    bytes_fetched: int | None = None


class Drift(_Model):
    """A resource that was changed behind its stack's back."""

    kind: str
    name: str
    status: str
    fields: tuple[FieldChange, ...] = ()


class Status(_Model):
    target: str
    stack: str
    parts: tuple[PartStatus, ...] = ()
    weights: tuple[CachedRevision, ...] = ()
    endpoints: dict[str, str] = {}
    drift: tuple[Drift, ...] | None = None
    """None when it was not asked for."""

    @property
    def healthy(self) -> bool:
        return bool(self.parts) and all(part.health == "ready" for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        return {**self.model_dump(mode="json"), "healthy": self.healthy}


class Rendered(_Model):
    files: tuple[Path, ...]
    warnings: tuple[str, ...] = ()


class Target(Protocol):
    """Where a stack runs. Every call raises from the OnecopyError tree and nothing else."""

    @property
    def name(self) -> str: ...

    def plan(self, *, destroy: bool = False, rollback: bool = False) -> Plan:
        """What `apply` (or `destroy`) would do now. Changes nothing. `rollback`: with each model's previous revision."""
        ...

    def apply(self, plan: Plan, *, report: Reporter = ...) -> None:
        """Does the plan. Raises StackError when it is stale; may be stopped anywhere and run again."""
        ...

    def destroy(self, plan: Plan, *, delete_models: frozenset[str] = frozenset(), report: Reporter = ...) -> None:
        """Does a plan made with `destroy=True`. The store stays but for `delete_models`, whose revisions are deleted."""
        ...

    def status(self) -> Status: ...

    def outputs(self) -> dict[str, Any]:
        """What other tools need: endpoints, namespace, store, models with their revisions. No secrets."""
        ...

    def render(self, out: Path) -> Rendered:
        """Writes what apply would send as files below `out`, for GitOps. Needs no access to the platform."""
        ...


def fingerprint(parts: Iterable[Any]) -> str:
    """Stable digest of JSON-able state."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:32]


def diff_fields(before: Any, after: Any, path: str = "") -> list[FieldChange]:
    """Leaves that differ between two JSON trees."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        old: dict[str, Any] = before  # pyright: ignore[reportUnknownVariableType]
        new: dict[str, Any] = after  # pyright: ignore[reportUnknownVariableType]
        return [
            change
            for key in sorted(old.keys() | new.keys())
            for change in diff_fields(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):  # pyright: ignore[reportUnknownArgumentType]
        pairs: list[tuple[Any, Any]] = list(zip(before, after, strict=True))  # pyright: ignore[reportUnknownArgumentType]
        return [c for i, (old, new) in enumerate(pairs) for c in diff_fields(old, new, f"{path}[{i}]")]
    return [FieldChange(path=path, before=before, after=after)]


def _short(value: Any) -> str:
    if value is None:
        return "(none)"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 80 else text[:77] + "…"
