"""Which revision of each model is meant: a pinned id, what the store's ref says, or what the stack remembers.

The store is asked first, when it can be reached from here; without access the last known revision stands, and on a
first apply the publish job tells it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onecopy.config.schema import StackConfig
from onecopy.core.errors import ModelError, ObjectMissing, StoreError
from onecopy.registry import catalogue
from onecopy.storage.objectstore import StoreOptions, open_store
from onecopy.storage.uri import StoreUri
from onecopy.targets.kubernetes import gpus
from onecopy.targets.kubernetes.stack import ServedModel, is_revision, model_name, slug


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the stack's record in the cluster says of a model."""

    revision: str
    bytes: int | None = None
    previous: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    models: tuple[ServedModel, ...]
    warnings: tuple[str, ...] = ()


def find(
    config: StackConfig,
    store: StoreUri,
    remembered: Mapping[str, Remembered],
    *,
    ask_store: bool,
    rollback: bool = False,
) -> Found:
    """rollback: each model's previous revision, where there is one. Raises ModelError for a pinned one that is not there."""
    models: list[ServedModel] = []
    warnings: list[str] = []
    release = slug(config.name, 30)
    for model in config.models:
        name = model_name(model)
        known = remembered.get(name)
        served = ServedModel(model, name, slug(name, 63 - len(release) - len("--vllm-stack")))
        revision, size = _revision(model.revision, known)
        if rollback and known and known.previous:
            revision, size = known.previous, None
        elif rollback:
            warnings.append(f"{name}: no previous revision to go back to")
        gpu = None
        if ask_store:
            try:
                opened = open_store(store, store_options(config))
                manifest = catalogue.resolve(opened, name, revision if rollback and revision else model.revision)
                revision, size = manifest.revision, manifest.total_bytes
            except (ObjectMissing, ModelError) as error:
                if is_revision(model.revision) or not served.publishable:
                    raise ModelError(
                        f"{name}@{model.revision} is not in {store}",
                        hint=f"`onecopy model publish {model.source} --name {name} --store {store}`",
                    ) from error
            except StoreError as error:
                warnings.append(f"{name}: the store cannot be asked from here ({error.message})")
            else:
                gpu = gpus.planned(config.kubernetes.gpu, model, opened, manifest)
        previous = known.previous if known else None
        if known and revision and known.revision != revision:
            previous = known.revision
        models.append(
            ServedModel(
                model,
                name,
                served.slug,
                revision=revision,
                bytes=size or (known.bytes if known else None),
                previous=previous,
                gpu=gpu,
            )
        )
    return Found(tuple(models), tuple(warnings))


def _revision(wanted: str, known: Remembered | None) -> tuple[str | None, int | None]:
    if is_revision(wanted):
        return wanted, known.bytes if known and known.revision == wanted else None
    return (known.revision, known.bytes) if known else (None, None)


def store_options(config: StackConfig) -> StoreOptions:
    """Short waits: a plan must not hang on a store that this machine cannot see."""
    return StoreOptions(
        endpoint=config.store.endpoint,
        region=config.store.region,
        ca_file=config.store.ca_file,
        connect_timeout=3,
        request_timeout=10,
        retries=1,
    )
