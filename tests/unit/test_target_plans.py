"""Plans: what is shown, what is stale, what is a difference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onecopy.core.errors import StackError, UsageError
from onecopy.targets.base import Change, Plan, diff_fields, fingerprint


def plan(**more: object) -> Plan:
    changes = (
        Change(group="delivery", kind="DaemonSet", name="x/agent", action="create"),
        Change(group="serving", kind="Release", name="x/chat", action="no-op"),
    )
    return Plan.model_validate({"target": "kubernetes", "stack": "chat", "changes": changes, "seen": "1", **more})


def test_text_lists_what_changes_and_counts_the_rest() -> None:
    assert plan().text().splitlines() == ["delivery:", "  + DaemonSet x/agent", "plan: create 1, leave 1"]
    assert Plan(target="kubernetes", stack="chat", changes=plan().changes[1:], seen="1").text() == (
        "plan: no changes: 1 parts are as configured"
    )


def test_saved_plan_is_the_plan(tmp_path: Path) -> None:
    plan().save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan()
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UsageError, match="not a plan"):
        Plan.load(tmp_path / "plan.json")


def test_stale_plan_is_refused() -> None:
    plan().check_current(plan())
    for moved in ({"seen": "2"}, {"destroy": True}, {"stack": "other"}, {"rollback": True}):
        with pytest.raises(StackError, match="stale"):
            plan().check_current(plan(**moved))


def test_differences_are_leaves() -> None:
    before = {"spec": {"args": ["a", "b"], "replicas": 1, "gone": True}}
    after = {"spec": {"args": ["a", "c"], "replicas": 1, "new": {"x": 1}}}
    changes = [(c.path, c.before, c.after) for c in diff_fields(before, after)]
    assert changes == [("spec.args[1]", "b", "c"), ("spec.gone", True, None), ("spec.new", None, {"x": 1})]


def test_fingerprint_ignores_key_order_only() -> None:
    assert fingerprint([{"a": 1, "b": 2}]) == fingerprint([{"b": 2, "a": 1}])
    assert fingerprint([{"a": 1}]) != fingerprint([{"a": 2}])
    assert fingerprint(["a", "b"]) != fingerprint(["b", "a"])


@pytest.mark.parametrize(
    ("verb", "code", "says"),
    [
        (["plan", "--detailed-exitcode"], 3, "+ Router"),
        (["apply", "--rollback", "--yes"], 2, "--revision"),
        (["destroy", "--yes"], 0, "destroyed"),
        (["destroy", "--yes", "--delete-models", "x"], 2, "onecopy down --purge"),
        (["outputs"], 1, "onecopy up"),
        (["render", "--out", "x"], 2, "--target kubernetes"),
    ],
)
def test_local_target_with_nothing_running(verb: list[str], code: int, says: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onecopy", *verb],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "ONECOPY_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == code, done.stderr
    assert says in done.stdout + done.stderr
    assert not (tmp_path / "home").exists()
