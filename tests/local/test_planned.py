"""The local stack by the verbs of every target: plan, apply, outputs, destroy, on one real stack."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.local.stack import TIMEOUT, Cli

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]


class Planned(Cli):
    def verb(self, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "onecopy", *args],
            env={**self.env, "ONECOPY_HOME": str(self.home), "ONECOPY_ROUTER_PORT": "0"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            cwd=self.home.parent,
        )
        assert done.returncode == code, done.stderr[-4000:]
        return done


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Planned]:
    made = Planned(tmp_path / "home")
    yield made
    made.run("down", "--purge")


def replicas(cli: Planned, count: int) -> None:
    (cli.home.parent / "onecopy.toml").write_text(f"[[models]]\nreplicas = {count}\n")


def test_plan_apply_change_destroy(cli: Planned) -> None:
    replicas(cli, 1)
    cli.verb("plan", "--out", "plan.json", "--detailed-exitcode", code=3)
    outputs = json.loads(cli.verb("apply", "plan.json", "--json").stdout)["outputs"]
    assert outputs["models"]["smollm2-135m-instruct"]["replicas"] == 1
    assert outputs == json.loads(cli.verb("outputs", "--json").stdout)

    cli.verb("plan", "--detailed-exitcode")
    assert not json.loads(cli.verb("apply", "--json").stdout)["applied"], "a second apply changes nothing"
    assert "stale" in cli.verb("apply", "plan.json", code=1).stderr

    replicas(cli, 2)
    changed = json.loads(cli.verb("plan", "--json").stdout)
    actions = {change["name"]: change["action"] for change in changed["changes"] if change["kind"] == "Replica"}
    assert actions == {"replica-0": "replace", "replica-1": "create"}
    assert "--yes" in cli.verb("apply", code=2).stderr, "nobody is asked off a terminal"
    applied = json.loads(cli.verb("apply", "--yes", "--json").stdout)
    assert applied["outputs"]["models"]["smollm2-135m-instruct"]["replicas"] == 2
    assert cli.ok("status")["state"] == "ready"

    cli.verb("destroy", "--yes")
    assert cli.processes() == []
    assert (cli.home / "store").is_dir(), "the store stays"
    cli.verb("plan", "--destroy", "--detailed-exitcode")
