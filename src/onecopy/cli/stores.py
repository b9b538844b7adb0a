"""The store that a command works on: `--store`, else the environment, else the configuration file."""

from __future__ import annotations

from pathlib import Path

from onecopy.config.resolve import resolve
from onecopy.core.errors import UsageError
from onecopy.storage.objectstore import open_configured
from onecopy.storage.store import Store


def from_flags(store: str | None, config: Path | None) -> Store:
    """Raises UsageError when no store is named anywhere."""
    section = resolve(file=config, flags={"store.uri": store}).config.store
    if section.uri is None:
        raise UsageError(
            "no store is named",
            hint="give --store s3://bucket/prefix (or gs://, az://, file:///folder), or set it in onecopy.toml",
        )
    return open_configured(section)
