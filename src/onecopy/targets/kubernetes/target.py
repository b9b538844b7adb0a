"""The Kubernetes target: any conformant cluster, from a configuration to plan, apply, status, outputs, destroy, render.

Revisions are known from the store, from the stack's record in the cluster, or, on a first apply, from what the publish
job says when it ends: until then a plan says `known after publish` and apply plans the rest again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onecopy.config.schema import StackConfig
from onecopy.core.errors import ConfigError, ModelError, StackError
from onecopy.core.events import Reporter, silent
from onecopy.storage.uri import StoreUri
from onecopy.targets.base import Change, Plan, Rendered, Status, fingerprint
from onecopy.targets.kubernetes import build, models, namespaces, record, removal, render, report
from onecopy.targets.kubernetes.build import Stage
from onecopy.targets.kubernetes.cluster import Cluster
from onecopy.targets.kubernetes.health import judge_live, last_message
from onecopy.targets.kubernetes.helm import Helm
from onecopy.targets.kubernetes.live import Differ
from onecopy.targets.kubernetes.rollout import Rollout
from onecopy.targets.kubernetes.sizing import ASSUMED_BYTES, quantity
from onecopy.targets.kubernetes.stack import (
    UNKNOWN_REVISION,
    Object,
    ServedModel,
    Stack,
    check_shares,
    make_stack,
    slug,
    with_placeholders,
)

OLDEST = (1, 31)
"""Oldest Kubernetes that this is made for; an older one gets a warning."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A plan with what it was made from."""

    plan: Plan
    stack: Stack
    stages: Sequence[Stage]
    pruned: Sequence[Object]
    installed_monitoring: bool


class KubernetesTarget:
    """See `onecopy.targets.base.Target`."""

    name = "kubernetes"

    def __init__(self, config: StackConfig, *, cluster: Cluster | None = None, ask_store: bool = True) -> None:
        """cluster: instead of the configured kubeconfig's. ask_store: False never contacts the store from this machine."""
        self.config, self.ask_store = config, ask_store
        self._given = cluster

    @functools.cached_property
    def cluster(self) -> Cluster:
        settings = self.config.kubernetes
        return self._given or Cluster(settings.kubeconfig, settings.context)

    @functools.cached_property
    def _helm(self) -> Helm:
        return Helm(self.cluster.kubeconfig, self.cluster.context)

    @property
    def _names(self) -> tuple[str, str]:
        """Namespace and release."""
        return self.config.kubernetes.namespace or slug(self.config.name, 50), slug(self.config.name, 30)

    def plan(self, *, destroy: bool = False, rollback: bool = False) -> Plan:
        if destroy:
            return removal.plan(self.known_stack(), self.cluster, self._helm)
        return self._read(rollback=rollback).plan

    def apply(self, plan: Plan, *, report: Reporter = silent) -> None:
        reading = self._read(rollback=plan.rollback)
        plan.check_current(reading.plan)
        rollout = Rollout(self.cluster, lambda: self._helm, report)
        if any(model.revision is None for model in reading.stack.models):
            for stage in reading.stages:
                if not stage.needs_revisions:
                    rollout.stage(stage, _changed(reading.plan, stage))
                if stage.name == "publish":
                    break
            # The rest can be said exactly only now
            reading = self._read(rollback=plan.rollback)
            unknown = [model.name for model in reading.stack.models if model.revision is None]
            if unknown:
                raise StackError(
                    f"no revision of {', '.join(unknown)} is known",
                    hint="publish it: `onecopy model publish`; or give this machine access to the store",
                )
        for stage in reading.stages:
            rollout.stage(stage, _changed(reading.plan, stage))
        self.cluster.apply(record.config_map(reading.stack, installed_monitoring=reading.installed_monitoring))
        removal.prune(self.cluster, reading.pruned, rollout, report)

    def destroy(self, plan: Plan, *, delete_models: frozenset[str] = frozenset(), report: Reporter = silent) -> None:
        stack = self.known_stack()
        plan.check_current(removal.plan(stack, self.cluster, self._helm))
        removal.check_models(stack, delete_models)
        _, installed = record.read(self.cluster, *self._names)
        removal.run(stack, self.cluster, self._helm, report, with_monitoring=installed)
        removal.delete_models(stack, delete_models, report)

    def status(self) -> Status:
        return report.status(self.known_stack(), self.cluster)

    def outputs(self) -> dict[str, Any]:
        return report.outputs(self.known_stack())

    def render(self, out: Path) -> Rendered:
        config, warnings = with_placeholders(self.config)
        store = StoreUri.parse(config.store.uri or "")
        asks = self.ask_store and self.config.store.uri is not None
        try:
            found = models.find(config, store, {}, ask_store=asks)
        except ModelError as error:
            warnings.append(error.message)
            found = models.find(config, store, {}, ask_store=False)
        warnings += [*found.warnings, *_guesses(config, found.models)]
        stack = make_stack(config, store, found.models)
        check_shares(stack)
        mode = config.kubernetes.observability.mode
        made = build.stages(stack, monitors=mode != "none", install_monitoring=mode in ("auto", "install"))
        return Rendered(files=tuple(render.write(made, out)), warnings=tuple(warnings))

    def _store(self) -> StoreUri:
        if self.config.store.uri is None:
            raise ConfigError("store.uri is not set", hint="a cluster needs a store: s3://, gs:// or az://")
        return StoreUri.parse(self.config.store.uri)

    def known_stack(self) -> Stack:
        """By the record alone: what status, outputs and destroy speak of is what was applied."""
        remembered, _ = record.read(self.cluster, *self._names)
        return make_stack(
            self.config, self._store(), models.find(self.config, self._store(), remembered, ask_store=False).models
        )

    def _read(self, *, rollback: bool) -> Reading:
        store = self._store()
        remembered, installed = record.read(self.cluster, *self._names)
        found = models.find(self.config, store, remembered, ask_store=self.ask_store, rollback=rollback)
        stack = make_stack(self.config, store, tuple(self._published(store, model) for model in found.models))
        check_shares(stack)
        monitors, install = self._monitoring(installed)
        stages, shared = namespaces.without_foreign(
            build.stages(stack, monitors=monitors, install_monitoring=install), self.cluster, stack
        )
        differ = Differ(self.cluster)
        changes: list[Change] = []
        known = all(model.revision for model in stack.models)
        for stage in stages:
            for obj in stage.objects:
                if stage.needs_revisions and not known:
                    changes.append(_later(stage.name, obj["kind"], str(obj["metadata"]["name"])))
                else:
                    changes.append(differ.compare(stage.name, obj))
            for release in stage.releases:
                name = f"{release.namespace}/{release.name}"
                if stage.needs_revisions and not known:
                    changes.append(_later(stage.name, "Release", name))
                else:
                    changes.append(differ.compare_release(stage.name, self._helm, release))
        pruned = differ.prune(stack, [obj for stage in stages for obj in stage.objects]) if known else []
        made = Plan(
            target=self.name,
            stack=self.config.name,
            changes=(*changes, *(change for change, _ in pruned)),
            seen=fingerprint(
                [self.config.model_dump(mode="json"), [m.known_revision for m in stack.models], differ.seen]
            ),
            rollback=rollback,
            warnings=(*found.warnings, *_guesses(self.config, stack.models), *shared, *self._version_warning()),
        )
        return Reading(made, stack, stages, [obj for _, obj in pruned], installed or install)

    def _published(self, store: StoreUri, model: ServedModel) -> ServedModel:
        """Takes the revision from a publish job of this very configuration that has ended well."""
        if model.revision is not None or not model.publishable:
            return model
        from onecopy.targets.kubernetes.delivery import publish_job

        job = self.cluster.get_like(publish_job(make_stack(self.config, store, (model,)), model))
        if job is None or judge_live(self.cluster, job).health != "ready":
            return model
        said = last_message(self.cluster, job)
        try:
            result = json.loads(said or "")
            return replace(model, revision=str(result["revision"]), bytes=int(result["bytes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise StackError(
                f"publish job {job['metadata']['name']} of {model.name} ended without saying its revision: {said!r}",
                hint="give this machine access to the store, or set models.revision",
            ) from error

    def _monitoring(self, installed: bool) -> tuple[bool, bool]:
        """(monitors are made, the monitoring chart is ours). `auto` uses what is there, and brings it else."""
        mode = self.config.kubernetes.observability.mode
        if mode == "none":
            return False, False
        there = self.cluster.has_kind("monitoring.coreos.com/v1", "PodMonitor")
        install = mode == "install" or (mode == "auto" and (installed or not there))
        return there or install, install

    def _version_warning(self) -> list[str]:
        version = self.cluster.version()
        if version >= OLDEST:
            return []
        return [f"the cluster is Kubernetes {version[0]}.{version[1]}: made for {OLDEST[0]}.{OLDEST[1]} and newer"]


def _changed(plan: Plan, stage: Stage) -> set[tuple[str, str]]:
    return {(c.kind, c.name) for c in plan.changes if c.group == stage.name and c.action != "no-op"}


def _later(group: str, kind: str, name: str) -> Change:
    shown = name.replace(UNKNOWN_REVISION, "…")
    return Change(group=group, kind=kind, name=shown, action="create", note="known after publish")


def _guesses(config: StackConfig, found: Sequence[ServedModel]) -> list[str]:
    made: list[str] = []
    for model in found:
        if model.revision is None:
            made.append(f"{model.name}: no revision is known yet: {UNKNOWN_REVISION} stands for it")
        if model.bytes is None and config.kubernetes.model_bytes is None:
            made.append(f"{model.name}: size not known: sized for {quantity(ASSUMED_BYTES)} (kubernetes.model_bytes)")
    return made
