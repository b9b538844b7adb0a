"""Doing a plan: stage after stage, each waited for with a deadline, a reason, and the last events of what is stuck.

Everything is idempotent: stopped anywhere and run again, it goes on where it was. Nothing is undone on failure; what
runs keeps running.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from onecopy.core.errors import StackError
from onecopy.core.events import Event, Reporter
from onecopy.core.units import format_seconds
from onecopy.targets.kubernetes import monitoring
from onecopy.targets.kubernetes.build import Stage
from onecopy.targets.kubernetes.cluster import Cluster, Immutable
from onecopy.targets.kubernetes.health import Verdict, judge
from onecopy.targets.kubernetes.helm import Helm
from onecopy.targets.kubernetes.live import label
from onecopy.targets.kubernetes.releases import MONITORING_RELEASE, Release
from onecopy.targets.kubernetes.stack import Object, dig_list

POLL = 1.0
"""Seconds between two looks: a few objects each, cheap for any API server."""
REPLACE_DEADLINE = 120


class Rollout:
    def __init__(self, cluster: Cluster, helm: Callable[[], Helm], report: Reporter) -> None:
        self.cluster, self._helm, self.report = cluster, helm, report

    def stage(self, stage: Stage, changed: set[tuple[str, str]]) -> None:
        """Sends what changed of a stage, and waits until all of it is ready. changed: (kind, name) as in the plan."""
        self.report(Event(stage.name, "started"))
        for obj in stage.objects:
            if (obj["kind"], label(obj)) in changed:
                self.send(obj)
        watched = list(stage.objects)
        for release in stage.releases:
            if ("Release", f"{release.namespace}/{release.name}") in changed:
                if release.name == MONITORING_RELEASE:
                    monitoring.prepare(self.cluster, release)
                self._helm().apply(release)
                self.cluster.refresh_kinds()
            watched += self._workloads(release)
        self.wait(stage.name, watched, stage.deadline)
        self.report(Event(stage.name, "done"))

    def send(self, obj: Object) -> None:
        try:
            self.cluster.apply(obj)
        except Immutable:
            self.cluster.delete(obj)
            self.gone([obj], REPLACE_DEADLINE, f"replacing {obj['kind']} {label(obj)}")
            self.cluster.apply(obj)

    def wait(self, step: str, objects: Iterable[Object], deadline: float) -> None:
        """Raises StackError when something failed, or is not ready in time."""
        left = {(obj["kind"], label(obj)): obj for obj in objects}
        end = time.monotonic() + deadline
        told = ""
        while left:
            verdicts = {what: judge(self.cluster, obj) for what, obj in left.items()}
            for (kind, name), verdict in verdicts.items():
                if verdict.health == "ready":
                    del left[kind, name]
                    if verdict.reason:
                        self.report(Event(step, "warning", message=f"{kind} {name}: {verdict.reason}"))
                elif verdict.health == "failed":
                    raise StackError(
                        f"{kind} {name} failed: {verdict.reason}",
                        hint="when it is mended, apply again: it goes on from here",
                    )
            if not left:
                return
            text = "; ".join(_waiting(kind, name, verdicts[kind, name]) for kind, name in left)
            if text != told:
                told = text
                self.report(Event(step, "progress", message=f"waiting for {text}"))
            if time.monotonic() >= end:
                raise StackError(
                    f"not ready after {format_seconds(deadline)}: {text}",
                    hint="apply again goes on from here; `onecopy status` shows every part",
                )
            time.sleep(POLL)

    def gone(self, objects: Iterable[Object], deadline: float, step: str) -> None:
        """Waits until they are really gone, finalizers and all. Raises StackError with what is still there and why."""
        left = list(objects)
        end = time.monotonic() + deadline
        while True:
            left = [obj for obj in left if self.cluster.get_like(obj) is not None]
            if not left:
                return
            names = ", ".join(f"{obj['kind']} {label(obj)}" for obj in left)
            self.report(Event(step, "progress", message=f"waiting for {names} to go"))
            if time.monotonic() >= end:
                held = {
                    str(finalizer)
                    for obj in left
                    for finalizer in dig_list(self.cluster.get_like(obj) or obj, "metadata", "finalizers")
                }
                raise StackError(
                    f"still there after {format_seconds(deadline)}: {names}"
                    + (f" (held by {', '.join(sorted(held))})" if held else ""),
                    hint="destroy again goes on from here; see that the controller of that finalizer runs",
                )
            time.sleep(POLL)

    def _workloads(self, release: Release) -> list[Object]:
        """The release's Deployments and the like: what has a readiness."""
        return [
            {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}}
            for kind, name, namespace in sorted(self._helm().objects(release), key=str)
            if kind in ("Deployment", "DaemonSet")
        ]


def _waiting(kind: str, name: str, verdict: Verdict) -> str:
    count = f" {verdict.ready}/{verdict.desired}" if verdict.desired is not None else ""
    return f"{kind} {name}{count}" + (f" ({verdict.reason})" if verdict.reason else f" ({verdict.health})")
