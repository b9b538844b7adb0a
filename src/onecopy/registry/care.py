"""What may go: deleting a revision, and collecting what nobody names any more.

A revision goes manifest first: from then on it does not exist. Only then, and only if no ref or lease names it now, do
its files go; a mover of refs looks for the manifest after its move, so one of the two always sees the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from onecopy.core.errors import ObjectMissing, PreconditionFailed, UsageError
from onecopy.core.events import Event, Reporter, silent
from onecopy.registry import catalogue
from onecopy.storage import layout
from onecopy.storage.store import ObjectInfo, Store, Upload

GRACE = 7 * 86400.0
"""Seconds: longer than any publishing takes, and than anybody needs to notice that a ref was moved by mistake."""
_BATCH = 1000  # keys in one delete request of S3

Kind = Literal["revision", "leftover", "record", "extra", "upload"]


@dataclass(frozen=True, slots=True)
class Removal:
    """kind: revision (nothing names it); leftover (files without a manifest); record (of a publishing that ended);
    extra (a file that the manifest does not name); upload (a multipart upload that was never completed)."""

    kind: Kind
    model: str
    revision: str
    keys: tuple[str, ...]
    bytes: int
    age: float
    upload_id: str = ""


def delete_revision(store: Store, model: str, revision: str, *, report: Reporter = silent) -> int:
    """Removes a revision that no ref and no lease names; returns the bytes freed.

    Raises PreconditionFailed, naming what holds it, and ObjectMissing.
    """
    manifest = catalogue.read_manifest(store, model, revision)
    _refuse_if_named(store, model, revision)
    key = layout.manifest_key(model, revision)
    data, _ = store.get(key)
    store.delete([key])
    try:
        _refuse_if_named(store, model, revision)
    except PreconditionFailed:
        store.put(key, data, create=True)  # named between the two looks: it stays
        raise
    prefix = layout.revision_prefix(model, revision)
    _delete(store, [info.key for info in store.list(prefix)])
    _delete(store, [info.key for info in store.list(layout.uploads_prefix(model, revision))])
    report(Event("delete", "done", item=f"{model}@{revision}", done=manifest.total_bytes))
    return manifest.total_bytes


def delete_model(store: Store, model: str, *, report: Reporter = silent) -> int:
    """Removes refs, then every revision and whatever else lies below the model's name.

    Raises PreconditionFailed while a lease holds one of its revisions.
    """
    held = catalogue.list_leases(store, model)
    if held:
        raise PreconditionFailed(
            f"{model}@{held[0].revision} is held by {held[0].holder} until {held[0].until:%Y-%m-%d %H:%M}",
            hint=f"`onecopy model hold {model}@{held[0].revision} --as {held[0].holder} --release`",
        )
    infos = list(store.list(model))
    if not infos:
        raise ObjectMissing(f"no model {model} in {store.uri}", hint="`onecopy model list` shows what is there")
    _delete(store, [info.key for info in infos if info.key.startswith(f"{model}/refs/")])
    _delete(store, [info.key for info in infos if info.key.endswith(f"/{layout.MANIFEST}")])
    _delete(store, [info.key for info in infos])
    report(Event("delete", "done", item=model))
    return sum(info.size for info in infos)


def plan_gc(store: Store, *, grace: float = GRACE, models: Iterable[str] | None = None) -> list[Removal]:
    """What `collect` would remove. grace: seconds that a thing must have been untouched, by the store's clock."""
    if grace < 0:
        raise UsageError(f"a grace of {grace:g} s lies in the future")
    now = time.time()
    found: list[Removal] = []
    chosen = list(models) if models is not None else catalogue.list_models(store)
    for model in chosen:
        found.extend(_plan_model(store, model, now, grace))
    prefixes = [f"{model}/" for model in chosen] if models is not None else [""]
    for upload in (upload for prefix in prefixes for upload in store.list_uploads(prefix)):
        age = now - upload.initiated
        if age >= grace:
            parts = upload.key.split("/")
            revision = parts[2] if len(parts) > 3 and parts[1] == "revisions" else ""
            found.append(Removal("upload", parts[0], revision, (upload.key,), 0, age, upload.upload_id))
    return found


def collect(store: Store, plan: Iterable[Removal], *, report: Reporter = silent) -> list[Removal]:
    """Does what was planned, looking again before each; returns what was really removed."""
    done: list[Removal] = []
    for item in plan:
        what = f"{item.model}@{item.revision}"
        if item.kind == "upload":
            store.abort_upload(Upload(item.keys[0], item.upload_id, 0))
        elif item.kind == "revision":
            try:
                delete_revision(store, item.model, item.revision)
            except (PreconditionFailed, ObjectMissing) as error:
                report(Event("gc", "skipped", item=what, message=error.message))
                continue
        else:
            now = {info.key: info for key in item.keys for info in _there(store, key)}
            committed = item.kind == "leftover" and _exists(store, item.model, item.revision)
            if committed or any(time.time() - info.modified < item.age for info in now.values()):
                report(Event("gc", "skipped", item=what, message=f"{what} was touched since it was planned"))
                continue
            _delete(store, item.keys)
        report(Event("gc", "done", item=what, message=f"{item.kind} {what}", done=item.bytes))
        done.append(item)
    return done


def _plan_model(store: Store, model: str, now: float, grace: float) -> Iterable[Removal]:
    named = {ref.revision for ref in catalogue.list_refs(store, model)}
    named |= {lease.revision for lease in catalogue.list_leases(store, model)}
    records: dict[str, list[ObjectInfo]] = {}
    for info in store.list(f"{model}/uploads"):
        records.setdefault(info.key.split("/")[2], []).append(info)
    for revision in store.list_folders(f"{model}/revisions"):
        infos = list(store.list(layout.revision_prefix(model, revision)))
        infos += records.get(revision, []) if not _manifest_of(infos) else []
        if not infos:
            continue
        age = now - max(info.modified for info in infos)
        if _manifest_of(infos) is None:
            if age >= grace:
                yield _removal("leftover", model, revision, infos, age)
                records.pop(revision, None)
            continue
        if revision not in named and age >= grace:
            yield _removal("revision", model, revision, infos, age)
            continue
        manifest = catalogue.read_manifest(store, model, revision)
        known = {layout.file_key(model, revision, file.path) for file in manifest.files}
        known.add(layout.manifest_key(model, revision))
        extra = [info for info in infos if info.key not in known and now - info.modified >= grace]
        if extra:
            yield _removal("extra", model, revision, extra, now - max(info.modified for info in extra))
    for revision, infos in records.items():
        age = now - max(info.modified for info in infos)
        if age >= grace:
            yield _removal("record", model, revision, infos, age)


def _removal(kind: Kind, model: str, revision: str, infos: list[ObjectInfo], age: float) -> Removal:
    return Removal(kind, model, revision, tuple(i.key for i in infos), sum(i.size for i in infos), age)


def _manifest_of(infos: Iterable[ObjectInfo]) -> ObjectInfo | None:
    return next((info for info in infos if info.key.endswith(f"/{layout.MANIFEST}") and info.key.count("/") == 3), None)


def _refuse_if_named(store: Store, model: str, revision: str) -> None:
    for ref in catalogue.list_refs(store, model):
        if ref.revision == revision:
            raise PreconditionFailed(
                f"{model}@{revision} is named by the ref {ref.name}",
                hint=f"move it (`onecopy model refs {model} --set {ref.name}=OTHER`) or drop it (`--delete {ref.name}`)",
            )
    for lease in catalogue.list_leases(store, model):
        if lease.revision == revision:
            raise PreconditionFailed(
                f"{model}@{revision} is held by {lease.holder} until {lease.until:%Y-%m-%d %H:%M}",
                hint=f"`onecopy model hold {model}@{revision} --as {lease.holder} --release`",
            )


def _exists(store: Store, model: str, revision: str) -> bool:
    return bool(_there(store, layout.manifest_key(model, revision)))


def _there(store: Store, key: str) -> list[ObjectInfo]:
    try:
        return [store.head(key)]
    except ObjectMissing:
        return []


def _delete(store: Store, keys: Iterable[str]) -> None:
    rest = list(keys)
    while rest:
        batch, rest = rest[:_BATCH], rest[_BATCH:]
        store.delete(batch)
