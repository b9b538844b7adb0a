"""What a store holds: models, revisions, refs. Every reader starts at `resolve`.

A ref is a small JSON object that is moved by conditional put only, so two movers cannot overwrite each other unseen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from onecopy.core.errors import IntegrityError, ObjectMissing, PreconditionFailed, UsageError
from onecopy.storage import layout
from onecopy.storage.store import Store
from onecopy.weights.manifest import Manifest

_REVISION = re.compile(r"[0-9a-f]{16}")
# The same shape as config.schema.Name: what a store key, a Kubernetes label and a served model name all allow
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_REF = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


class Ref(BaseModel):
    """A movable name of a model. `etag` is the store's, for the next conditional put."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    revision: str
    updated: datetime
    name: str = ""
    etag: str | None = None


class Lease(BaseModel):
    """Somebody's claim on a revision."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    revision: str
    until: AwareDatetime
    holder: str


@dataclass(frozen=True, slots=True)
class RevisionInfo:
    """One revision that exists (its manifest is there). refs: names that point at it now."""

    model: str
    revision: str
    refs: tuple[str, ...]
    created: datetime
    files: int
    bytes: int
    source: str


def is_revision(text: str) -> bool:
    return _REVISION.fullmatch(text) is not None


def check_model_name(name: str) -> str:
    """Raises UsageError for a name that no store key, label or URL would take."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"not a model name: {name!r}", hint="use lower-case letters, digits, dots and dashes, at most 63"
        )
    return name


def check_ref_name(name: str) -> str:
    """Raises UsageError; also for a name that could be taken for a revision."""
    if not _REF.fullmatch(name) or is_revision(name):
        raise UsageError(
            f"not a ref name: {name!r}", hint="use letters, digits, dots, dashes; not 16 hexadecimal digits"
        )
    return name


def split(text: str) -> tuple[str, str]:
    """`NAME[@REF-OR-REVISION]` → (name, ref or revision); `main` when it is left out."""
    name, _, wanted = text.partition("@")
    return check_model_name(name), wanted or "main"


def resolve(store: Store, model: str, wanted: str = "main") -> Manifest:
    """The manifest that a ref or a revision names. Raises ObjectMissing, IntegrityError, and the store's own errors."""
    if is_revision(wanted):
        return read_manifest(store, model, wanted)
    ref = read_ref(store, model, wanted)
    if ref is None:
        known = ", ".join(store.list_folders()) or "none"
        raise ObjectMissing(
            f"no ref {wanted} of model {model} in {store.uri} (models there: {known})",
            hint=f"`onecopy model publish SOURCE --name {model} --store {store.uri}` makes it",
        )
    return read_manifest(store, model, ref.revision)


def read_manifest(store: Store, model: str, revision: str) -> Manifest:
    """Raises ObjectMissing (no such revision: never published, or not to its end) and IntegrityError."""
    key = layout.manifest_key(model, revision)
    try:
        data, _ = store.get(key)
    except ObjectMissing as error:
        raise ObjectMissing(
            f"no revision {revision} of model {model} in {store.uri}",
            hint=f"`onecopy model show {model} --store {store.uri}` lists what is there",
        ) from error
    manifest = Manifest.from_json(data, where=str(store.uri.child(key)))
    if (manifest.model, manifest.revision) != (model, revision):
        raise IntegrityError(
            f"{store.uri.child(key)} is the manifest of {manifest.model}@{manifest.revision}",
            hint="publish the model again",
        )
    return manifest


def read_ref(store: Store, model: str, name: str) -> Ref | None:
    """None when there is none. Raises IntegrityError for an object that is no ref."""
    key = layout.ref_key(check_model_name(model), check_ref_name(name))
    try:
        data, info = store.get(key)
    except ObjectMissing:
        return None
    try:
        return Ref.model_validate_json(data).model_copy(update={"name": name, "etag": info.etag})
    except ValidationError as error:
        raise IntegrityError(
            f"{store.uri.child(key)} is not a ref", hint=f"`onecopy model refs {model} --set {name}=REVISION` mends it"
        ) from error


def write_ref(store: Store, model: str, name: str, revision: str, *, expected: Ref | None) -> None:
    """Moves a ref from what it was seen to be (`expected`; None: it was absent).

    Raises PreconditionFailed when somebody else moved it meanwhile, ObjectMissing when the revision does not exist.
    """
    _must_exist(store, model, revision)
    body = Ref(revision=revision, updated=datetime.now(UTC))
    data = body.model_dump_json(include={"revision", "updated"}).encode()
    key = layout.ref_key(model, check_ref_name(name))
    try:
        if expected is None:
            store.put(key, data, create=True)
        else:
            store.put(key, data, if_match=expected.etag)
    except PreconditionFailed as error:
        now = read_ref(store, model, name)
        if now is not None and now.revision == revision:
            return  # somebody moved it to the same revision, or our own first try was answered too late
        raise PreconditionFailed(
            f"ref {name} of {model} was moved by somebody else: it was at {expected.revision if expected else 'nothing'}, "
            f"it is at {now.revision if now else 'nothing'}; it was not moved to {revision}",
            hint=f"`onecopy model refs {model} --set {name}={revision}` moves it if that is what you want",
        ) from error

    _must_exist(store, model, revision)  # a collector removes the manifest, then looks at the refs: one of us sees


def delete_ref(store: Store, model: str, name: str) -> Ref:
    """Returns what it was. Raises ObjectMissing. A ref that is moved at the same instant may be dropped at its new place."""
    ref = read_ref(store, model, name)
    if ref is None:
        raise ObjectMissing(f"no ref {name} of model {model} in {store.uri}", hint=f"`onecopy model refs {model}`")
    store.delete([layout.ref_key(model, name)])
    return ref


def _must_exist(store: Store, model: str, revision: str) -> None:
    try:
        store.head(layout.manifest_key(model, revision))
    except ObjectMissing as error:
        raise ObjectMissing(
            f"no revision {revision} of model {model} in {store.uri}", hint=f"`onecopy model list {model}`"
        ) from error


def hold(store: Store, model: str, revision: str, holder: str, *, until: datetime) -> Lease:
    """Keeps a revision from `delete` and `gc` until a time; the same holder's next call moves its lease."""
    _must_exist(store, model, revision)
    lease = Lease(revision=revision, until=until, holder=check_ref_name(holder))
    store.put(layout.lease_key(model, holder), lease.model_dump_json().encode())
    _must_exist(store, model, revision)
    return lease


def release(store: Store, model: str, holder: str) -> None:
    """Idempotent."""
    store.delete([layout.lease_key(check_model_name(model), check_ref_name(holder))])


def list_leases(store: Store, model: str) -> list[Lease]:
    """Those that hold now. Raises IntegrityError for an object that is no lease: nothing is collected on a guess."""
    found: list[Lease] = []
    for info in store.list(f"{check_model_name(model)}/leases"):
        try:
            lease = Lease.model_validate_json(store.get(info.key)[0])
        except ObjectMissing:
            continue
        except ValidationError as error:
            raise IntegrityError(f"{store.uri.child(info.key)} is not a lease", hint="delete it by hand") from error
        if lease.until > datetime.now(UTC):
            found.append(lease)
    return found


def list_refs(store: Store, model: str) -> list[Ref]:
    prefix = f"{model}/refs"
    names = [info.key.removeprefix(f"{prefix}/").removesuffix(".json") for info in store.list(prefix)]
    return [ref for name in sorted(names) if (ref := read_ref(store, model, name)) is not None]


def list_revisions(store: Store, model: str) -> Iterator[RevisionInfo]:
    """Every revision that exists, by id."""
    refs = list_refs(store, model)
    for revision in sorted(store.list_folders(f"{model}/revisions")):
        if not is_revision(revision):
            continue
        try:
            manifest = read_manifest(store, model, revision)
        except ObjectMissing:
            continue  # being published, or left behind: it does not exist
        yield RevisionInfo(
            model,
            revision,
            tuple(ref.name for ref in refs if ref.revision == revision),
            manifest.created,
            len(manifest.files),
            manifest.total_bytes,
            manifest.source.uri,
        )


def list_models(store: Store) -> list[str]:
    """Names that have anything below them, published or not."""
    return sorted(name for name in store.list_folders() if _NAME.fullmatch(name))
