"""From the text that a person writes to a source."""

from __future__ import annotations

import re
from pathlib import Path

from onecopy.config.schema import SAMPLE, SAMPLE_NAME
from onecopy.core.errors import UsageError
from onecopy.core.events import Reporter, silent
from onecopy.registry.sources.base import Source
from onecopy.registry.sources.folder import FolderSource
from onecopy.registry.sources.hub import HubSource
from onecopy.registry.sources.selection import Selection
from onecopy.registry.sources.stored import StoredSource
from onecopy.storage.objectstore import StoreOptions


def open_source(
    text: str,
    selection: Selection | None = None,
    *,
    report: Reporter = silent,
    options: StoreOptions | None = None,
) -> Source:
    """`hf://org/name[@revision]`, a folder, or a model of another store: `s3://bucket/prefix#name[@ref]`.

    options: how that other store is reached. Raises UsageError, and SourceError for what is not there.
    """
    scheme, found, _ = text.partition("://")
    if not found:
        return FolderSource(Path(text).expanduser(), selection)
    if scheme == "hf":
        return HubSource(text, selection, report=report)
    if scheme in ("s3", "gs", "az", "file"):
        return StoredSource(text, selection, options=options)
    raise UsageError(
        f"not a source: {text}", hint="give a folder, hf://org/name[@revision], or s3://bucket/prefix#name[@ref]"
    )


def default_name(text: str) -> str:
    """A model name out of a source: `hf://Qwen/Qwen3-0.6B@main` → `qwen3-0.6b`."""
    if text == SAMPLE:
        return SAMPLE_NAME
    if "#" in text:
        last = text.rpartition("#")[2].partition("@")[0]
    elif "://" in text:
        last = text.partition("://")[2].partition("@")[0]
    else:
        last = Path(text).expanduser().resolve().name
    name = re.sub(r"[^a-z0-9.-]+", "-", last.rstrip("/").rpartition("/")[2].lower()).strip("-.")[:63]
    if not name:
        raise UsageError(f"no name can be made from {text}", hint="give one with --name")
    return name
