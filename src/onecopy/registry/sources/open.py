"""From the text that a person writes to a source."""

from __future__ import annotations

import re
from pathlib import Path

from onecopy.core.errors import UsageError
from onecopy.registry.sources.base import Source
from onecopy.registry.sources.folder import FolderSource
from onecopy.registry.sources.selection import Selection


def open_source(text: str, selection: Selection | None = None) -> Source:
    """`hf://org/name[@revision]` or a folder. Raises UsageError, and SourceError for what is not there."""
    scheme, found, _ = text.partition("://")
    if not found:
        return FolderSource(Path(text).expanduser(), selection)
    raise UsageError(f"not a source: {text}", hint=f"a folder or hf://org/name[@revision]; no such scheme: {scheme}")


def default_name(text: str) -> str:
    """A model name out of a source: `hf://Qwen/Qwen3-0.6B@main` → `qwen3-0.6b`."""
    last = text.partition("://")[2].partition("@")[0] if "://" in text else Path(text).expanduser().resolve().name
    name = re.sub(r"[^a-z0-9.-]+", "-", last.rstrip("/").rpartition("/")[2].lower()).strip("-.")[:63]
    if not name:
        raise UsageError(f"no name can be made from {text}", hint="give one with --name")
    return name
