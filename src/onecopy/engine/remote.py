"""Weights of a replica that has no node cache: from the store, by the same fetch engine, every range checked.

vLLM refuses an s3:// model for load formats of others, so `--model` names a folder with config and tokenizer
(`write_head` makes one), and `--model-loader-extra-config` says where the weights are.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from onecopy.core.errors import NoSpace
from onecopy.core.events import ByteCounter, silent
from onecopy.core.units import format_bytes
from onecopy.storage.layout import manifest_key
from onecopy.storage.objectstore import StoreOptions, open_store
from onecopy.storage.store import Store
from onecopy.weights.fetch import fetch
from onecopy.weights.manifest import Manifest

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_MARGIN = 1.05
"""Space asked for, over the bytes that will be written: pages and directories."""


def open_revision(uri: str, model: str, revision: str, options: StoreOptions | None = None) -> tuple[Store, Manifest]:
    """The store and the manifest. Credentials come from the environment, never from an argument. Raises StoreError."""
    store = open_store(uri, options)
    key = manifest_key(model, revision)
    data, _ = store.get(key)
    return store, Manifest.from_json(data, where=str(store.uri.child(key)))


def write_head(store: Store, manifest: Manifest, folder: Path) -> Path:
    """Everything of a revision but its weights, for `--model`. Raises StoreError, IntegrityError."""
    folder.mkdir(parents=True)
    head = only(manifest, weights=False)
    fetch(store, head, folder, ByteCounter(silent, "head", head.total_bytes))
    return folder


def only(manifest: Manifest, *, weights: bool) -> Manifest:
    """The same revision, of its files the weights or all others."""
    files = tuple(entry for entry in manifest.files if entry.path.endswith(_WEIGHTS) == weights)
    return manifest.model_copy(update={"files": files})


def roomy(needed: int) -> Path:
    """Memory where it fits, else the temporary folder. Raises NoSpace."""
    bases = [Path("/dev/shm"), Path(tempfile.gettempdir())]  # noqa: S108 - a private folder is made in it
    free = {base: shutil.disk_usage(base).free for base in bases if base.is_dir()}
    for base, room in free.items():
        if room >= needed * _MARGIN:
            return base
    rooms = ", ".join(f"{format_bytes(room)} free in {base}" for base, room in free.items())
    raise NoSpace(
        f"a private copy of the weights needs {format_bytes(needed * _MARGIN)}; {rooms}",
        hint="raise the size of /dev/shm, or give the replica a node cache",
    )
