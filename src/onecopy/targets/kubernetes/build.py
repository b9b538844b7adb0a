"""The whole stack as stages, in the order in which they are applied. The composition root of the builders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onecopy.targets.kubernetes import access, delivery, releases, serving
from onecopy.targets.kubernetes.releases import Release
from onecopy.targets.kubernetes.stack import Object, Stack


@dataclass(frozen=True, slots=True)
class Stage:
    """Objects, then releases; the next stage starts when all of them are ready.

    needs_revisions: cannot be made exactly before every model's revision is known.
    """

    name: str
    objects: Sequence[Object] = ()
    releases: Sequence[Release] = field(default=())
    deadline: int = 120
    needs_revisions: bool = False


def stages(stack: Stack, *, monitors: bool, install_monitoring: bool) -> list[Stage]:
    """monitors: the cluster has (or will have) the Prometheus operator's kinds. install_monitoring: bring it along."""
    namespaces = [stack.namespace]
    node_cache = stack.kubernetes.delivery == "node-cache"
    if node_cache:
        namespaces.append(stack.agent_namespace)
    made = [
        Stage("namespaces", access.namespaces(stack), deadline=60),
        Stage(
            "access",
            [
                *access.accounts(stack),
                *access.network_policies(stack),
                *access.ca_config(stack, namespaces),
            ],
            deadline=60,
        ),
    ]
    if install_monitoring:
        release = releases.monitoring(stack)
        made.append(Stage("monitoring", releases=[release], deadline=release.deadline))
    jobs = [delivery.publish_job(stack, model) for model in stack.models if model.publishable]
    if jobs:
        made.append(Stage("publish", jobs, deadline=stack.sizing.publish_deadline))
    volumes = delivery.volumes(stack)
    carried = [*([delivery.agent(stack)] if node_cache else []), *volumes]
    if carried:
        made.append(Stage("delivery", carried, deadline=stack.sizing.fill_deadline + 300, needs_revisions=True))
    release = releases.serving(stack)
    made.append(Stage("serving", releases=[release], deadline=release.deadline, needs_revisions=True))
    made.append(Stage("edge", [*serving.ingress(stack), *(serving.monitors(stack) if monitors else [])], deadline=600))
    return [stage for stage in made if stage.objects or stage.releases]
