"""From a configuration to the target that it names. A target's module is imported only when it is chosen."""

from __future__ import annotations

from onecopy.config.resolve import Resolved
from onecopy.core.errors import UsageError
from onecopy.targets.base import Target


def select(resolved: Resolved) -> Target:
    """Raises UsageError for the local target, whose life is `up` and `down`."""
    name = resolved.config.target
    if name == "local":
        raise UsageError(
            "the local target has no plan",
            hint="`onecopy up` starts it, `onecopy down` stops it; or name another with --target kubernetes",
        )
    if name == "kubernetes":
        from onecopy.targets.kubernetes.target import KubernetesTarget

        return KubernetesTarget(resolved.config)
    if name == "aws":
        from onecopy.targets.aws.target import AwsTarget

        return AwsTarget(resolved.config)
    raise UsageError(f"the {name} target is not in this version")
