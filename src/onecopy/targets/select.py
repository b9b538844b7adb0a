"""From a configuration to the target that it names. A target's module is imported only when it is chosen."""

from __future__ import annotations

from onecopy.config.resolve import Resolved
from onecopy.targets.base import Target


def select(resolved: Resolved) -> Target:
    name = resolved.config.target
    if name == "local":
        from onecopy.targets.local.target import LocalTarget

        return LocalTarget(resolved.config)
    if name == "kubernetes":
        from onecopy.targets.kubernetes.target import KubernetesTarget

        return KubernetesTarget(resolved.config)
    from onecopy.targets.aws.target import AwsTarget

    return AwsTarget(resolved.config)
