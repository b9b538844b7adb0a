"""The local stack in the words of every target: plan, apply, status, outputs, destroy. `up` and `down` are the short way.

A stack takes its settings when it starts, so a change of any of them stops it and starts it again; that is what the
plan says. Data stays: the embedded store's objects and the sample are kept until `onecopy down --purge`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onecopy.config.schema import StackConfig
from onecopy.core.errors import StackError, UsageError
from onecopy.core.events import Reporter, silent
from onecopy.core.paths import default_home
from onecopy.targets.base import (
    Action,
    CachedRevision,
    Change,
    Health,
    PartStatus,
    Plan,
    Rendered,
    Status,
    diff_fields,
    fingerprint,
)
from onecopy.targets.local import control, preflight
from onecopy.targets.local.home import Home, ReplicaState, State

_HEALTH: dict[ReplicaState, Health] = {
    "starting": "progressing",
    "ready": "ready",
    "restarting": "progressing",
    "failed": "failed",
    "stopped": "missing",
}


class LocalTarget:
    name = "local"

    def __init__(self, config: StackConfig, home: Home | None = None) -> None:
        self._config = config
        self._home = home or Home(default_home())

    def plan(self, *, destroy: bool = False, rollback: bool = False) -> Plan:
        """Raises UsageError for a rollback: a local stack serves what `models.revision` names."""
        if rollback:
            raise UsageError(
                "the local target keeps no previous revision", hint="name it: `onecopy apply --revision REVISION`"
            )
        running = self._running()
        wanted = control.local_settings(self._config)
        had = self._settings_of(running)
        changes = _destruction(running) if destroy else self._creation(running, had, wanted)
        seen = fingerprint([wanted, had, running.supervisor.model_dump() if running and running.supervisor else None])
        return Plan(target=self.name, stack=self._config.name, changes=tuple(changes), seen=seen, destroy=destroy)

    def apply(self, plan: Plan, *, report: Reporter = silent) -> None:
        plan.check_current(self.plan())
        if not plan.has_changes:
            return
        if (running := self._running()) is not None:
            preflight.check(self._home, self._config, own=running.endpoint)
            control.stop(self._home, report=report)
        control.start(self._home, self._config, foreground=False, report=report).wait_ready(report)

    def destroy(self, plan: Plan, *, delete_models: frozenset[str] = frozenset(), report: Reporter = silent) -> None:
        if delete_models:
            raise UsageError(
                "the local target deletes no single model",
                hint="`onecopy down --purge` removes the store with all of it",
            )
        plan.check_current(self.plan(destroy=True))
        control.stop(self._home, report=report)

    def status(self) -> Status:
        state = control.recover(self._home)
        if state is None:
            return Status(target=self.name, stack=self._config.name)
        return Status(
            target=self.name,
            stack=self._config.name,
            parts=tuple(
                PartStatus(kind="Replica", name=replica.name, health=_HEALTH[replica.state], reason=replica.error)
                for replica in state.replicas
            ),
            weights=(
                (
                    CachedRevision(
                        node="localhost",
                        model=state.model,
                        revision=state.revision,
                        state="ready",
                        bytes_fetched=state.store_bytes_read,
                    ),
                )
                if state.model and state.revision
                else ()
            ),
            endpoints={"openai": f"{state.endpoint}/v1"} if state.endpoint else {},
        )

    def outputs(self) -> dict[str, Any]:
        """Raises StackError when nothing runs."""
        state = self._running()
        if state is None:
            raise StackError(f"no stack runs in {self._home.root}", hint="`onecopy apply` or `onecopy up` starts one")
        return {
            "endpoint": f"{state.endpoint}/v1" if state.endpoint else None,
            "store": state.store,
            "cache": state.cache,
            "home": str(self._home.root),
            "models": {state.model or "": {"revision": state.revision, "replicas": len(state.replicas)}},
        }

    def render(self, out: Path) -> Rendered:
        del out
        raise UsageError(
            "the local target is processes on this machine: there is nothing to render",
            hint="name a cluster: --target kubernetes, or --target aws",
        )

    def _running(self) -> State | None:
        state = self._home.read_state()
        return state if state is not None and self._home.is_owned() else None

    def _settings_of(self, running: State | None) -> dict[str, Any] | None:
        if running is None:
            return None
        return control.local_settings(StackConfig.model_validate_json(self._home.settings.read_bytes()))

    def _creation(self, running: State | None, had: dict[str, Any] | None, wanted: dict[str, Any]) -> list[Change]:
        model, config = self._config.models[0], self._config
        fields = tuple(diff_fields(had, wanted)) if had is not None else ()
        action: Action = "create" if running is None else "replace" if fields else "no-op"
        note = "stopped and started again: requests in flight fail" if action == "replace" else None
        kept = "what it holds is kept" if self._home.store.exists() and running is None else None
        store = config.store.uri or "s3://onecopy/models, an S3 server on loopback"
        changes = [
            Change(group="store", kind="Store", name=store, action=action, note=kept),
            Change(
                group="weights", kind="Model", name=f"{model.source}@{model.revision}", action=action, fields=fields
            ),
        ]
        before = len(running.replicas) if running else 0
        for number in range(max(before, model.replicas)):
            one = action
            if action == "replace":
                one = "delete" if number >= model.replicas else "create" if number >= before else "replace"
            changes.append(
                Change(
                    group="serving",
                    kind="Replica",
                    name=f"replica-{number}",
                    action=one,
                    note=note if one == "replace" else None,
                )
            )
        name = f"{config.router.host}:{config.router.port or '(free port)'}"
        return [*changes, Change(group="serving", kind="Router", name=name, action=action, note=note)]


def _destruction(running: State | None) -> list[Change]:
    if running is None:
        return []
    names = [replica.name for replica in running.replicas]
    return [
        Change(group="serving", kind="Router", name=running.endpoint or "on its way", action="delete"),
        *(Change(group="serving", kind="Replica", name=name, action="delete") for name in names),
        Change(group="weights", kind="NodeCache", name=running.cache or "on its way", action="delete"),
        Change(
            group="store",
            kind="Store",
            name=running.store or "on its way",
            action="no-op",
            note="stays",
        ),
    ]
