"""What a replica takes from a store: the manifest, and a head (all but the weights) for `--model`.

Run as a module, for a server that starts, it makes the head, says so, and fills the node cache if there is one: STORE MODEL
REVISION CACHE HEAD PARENT. Without a STORE others fill the cache, and only the head is taken from there. It answers one
line of JSON: {} when the head is there, else the error. What goes wrong later is met and said by who waits for the weights.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from onecopy.core.errors import CacheError, ObjectMissing, OnecopyError, UsageError
from onecopy.core.events import ByteCounter, silent
from onecopy.engine.lifetime import die_with_parent
from onecopy.storage.layout import manifest_key, ref_key, revision_prefix
from onecopy.storage.objectstore import open_store
from onecopy.storage.store import Store
from onecopy.weights.cache import NodeCache, staged_manifest
from onecopy.weights.fetch import fetch
from onecopy.weights.follow import Follower, published
from onecopy.weights.manifest import Manifest

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_HEAD_DEADLINE = 600.0
"""Seconds for config and tokenizer to come where others fill: they are fetched first."""


def open_revision(uri: str, model: str, revision: str) -> tuple[Store, Manifest]:
    """The store and the manifest. Credentials come from the environment, never from an argument.

    Raises StoreError; UsageError for a ref, with what it points at now: what runs must not change with it.
    """
    store = open_store(uri, None)
    if not re.fullmatch("[0-9a-f]{16}", revision):
        place = store.uri.child(model)
        try:
            now = json.loads(store.get(ref_key(model, revision or "main"))[0])["revision"]
            hint = f"{revision or 'main'} is now {store.uri.child(revision_prefix(model, now))}"
        except ObjectMissing:
            hint = f"`onecopy model list` shows what there is; write {place}/revisions/<revision>"
        raise UsageError(f"{place} with {revision or 'nothing'!r} names no revision, which never changes", hint=hint)
    key = manifest_key(model, revision)
    data, _ = store.get(key)
    return store, Manifest.from_json(data, where=str(store.uri.child(key)))


def head_of(manifest: Manifest) -> Manifest:
    """The same revision without its weights."""
    return _only(manifest, lambda path: not path.endswith(WEIGHTS))


def weights_of(manifest: Manifest) -> Manifest:
    return _only(manifest, lambda path: path.endswith(WEIGHTS))


def write_head(store: Store, manifest: Manifest, folder: Path) -> Path:
    """Raises StoreError, IntegrityError."""
    head = head_of(manifest)

    def write(new: Path) -> None:
        fetch(store, head, new, ByteCounter(silent, "head", head.total_bytes))

    return _publish(folder, write)


def copy_head(final: Path, manifest: Manifest, folder: Path) -> Path:
    """From a node cache that others fill, as soon as it is there. Raises CacheError."""

    def write(new: Path) -> None:
        with (
            suppress(_Enough),
            Follower(final, manifest, lambda: published(final, _HEAD_DEADLINE), _HEAD_DEADLINE) as it,
        ):
            for entry in head_of(manifest).files:
                it.wait(entry.path, 0, entry.size)
                target = new / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                with it.open(entry.path) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file)
            raise _Enough

    return _publish(folder, write)


class _Enough(Exception):
    """Ends the following of a fill without waiting for its end."""


def _publish(folder: Path, write: Callable[[Path], None]) -> Path:
    """By rename: servers that start together write the same."""
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as temporary:
            new = Path(temporary) / folder.name
            new.mkdir()
            write(new)
            with suppress(FileExistsError):
                new.rename(folder)
    except OSError as error:
        if not folder.exists():
            raise CacheError(
                f"cannot write {folder}: {error.strerror or error}",
                hint="set XDG_CACHE_HOME to a folder that can be written",
            ) from error
    return folder


def _only(manifest: Manifest, wanted: Callable[[str], bool]) -> Manifest:
    return manifest.model_copy(update={"files": tuple(entry for entry in manifest.files if wanted(entry.path))})


def main(uri: str, model: str, revision: str, cache: str, head: str, parent: str) -> None:
    die_with_parent(int(parent))
    try:
        if not uri:
            final = Path(cache) / model / revision
            copy_head(final, staged_manifest(final), Path(head))
            print("{}", flush=True)
            return
        store, manifest = open_revision(uri, model, revision)
        write_head(store, manifest, Path(head))
    except OnecopyError as error:
        print(json.dumps({"kind": type(error).__name__, "message": error.message, "hint": error.hint}), flush=True)
        sys.exit(1)
    print("{}", flush=True)
    if cache:
        with suppress(OnecopyError, OSError):
            NodeCache(Path(cache)).fill(store, manifest)


if __name__ == "__main__":
    main(*sys.argv[1:])
