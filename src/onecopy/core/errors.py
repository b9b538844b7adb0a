"""Every error that onecopy raises on purpose, in one tree.

    OnecopyError                  exit 1
    ├── UsageError                exit 2: the command line or a value on it
    ├── ConfigError               onecopy.toml, ONECOPY_*: a key or value that is refused
    ├── StoreError                the object store said no, or nothing
    │   ├── StoreUnreachable      no answer: DNS, refused, time-out
    │   ├── BucketMissing
    │   ├── PermissionDenied      which action on which resource
    │   ├── CredentialsInvalid    wrong, missing or expired credentials
    │   ├── WrongRegion
    │   ├── ObjectMissing
    │   ├── PreconditionFailed    a conditional put or get met another version
    │   ├── RateLimited           429/503 after every retry
    │   ├── StoreFailing          5xx: the store's own fault, after every retry
    │   └── StoreFull             quota or disk of the store
    ├── IntegrityError            bytes that are not what the manifest, or the source, says they are
    ├── ModelError                a checkpoint that cannot be served: no config, a torn safetensors file
    ├── SourceError               where a model is published from: hub, folder
    │   ├── SourceMissing
    │   ├── SourceDenied          gated, private, no token
    │   └── SourceChanged         it moved while it was read
    ├── CacheError                the node cache
    │   └── NoSpace               too little memory or disk; says how much is needed
    ├── EngineError               vLLM's environment, or a replica that would not start
    ├── StackError                a stack's life: running already, state of another version, a step that failed
    └── CloudError                a Kubernetes or AWS call that was refused

A third party's error is translated once, where it enters, with ``raise … from``.
"""

from __future__ import annotations


class OnecopyError(Exception):
    """Root of the tree.

    message: names the thing, the value seen. hint: what to do next, best a command that can be run.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(OnecopyError):
    exit_code = 2


class ConfigError(OnecopyError):
    pass


class StoreError(OnecopyError):
    pass


class StoreUnreachable(StoreError):
    pass


class BucketMissing(StoreError):
    pass


class PermissionDenied(StoreError):
    pass


class CredentialsInvalid(StoreError):
    pass


class WrongRegion(StoreError):
    pass


class ObjectMissing(StoreError):
    pass


class PreconditionFailed(StoreError):
    pass


class RateLimited(StoreError):
    retry_after: float | None = None
    """Seconds that the store asked to be left alone."""


class StoreFailing(StoreError):
    pass


class StoreFull(StoreError):
    pass


class IntegrityError(OnecopyError):
    pass


class ModelError(OnecopyError):
    pass


class SourceError(OnecopyError):
    pass


class SourceMissing(SourceError):
    pass


class SourceDenied(SourceError):
    pass


class SourceChanged(SourceError):
    pass


class CacheError(OnecopyError):
    pass


class NoSpace(CacheError):
    pass


class EngineError(OnecopyError):
    pass


class StackError(OnecopyError):
    pass


class CloudError(OnecopyError):
    pass
