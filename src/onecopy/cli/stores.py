"""The store that a command works on: `--store`, else the environment, else the configuration file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from onecopy.config.resolve import resolve
from onecopy.config.schema import StoreConfig
from onecopy.core.errors import UsageError
from onecopy.storage.objectstore import StoreOptions, configured_options, open_configured
from onecopy.storage.store import Store


def from_flags(store: str | None, config: Path | None) -> Store:
    """Raises UsageError when no store is named anywhere."""
    return open_configured(section_of(store, config))


def beside(section: StoreConfig, source: str, endpoint: str | None) -> StoreOptions:
    """How the store of a source is reached: as the one that is configured, if it is of the same kind."""
    same = section.uri is not None and source.partition("://")[0] == section.uri.partition("://")[0]
    found = configured_options(section) if same else StoreOptions()
    return replace(found, endpoint=endpoint) if endpoint else found


def section_of(store: str | None, config: Path | None) -> StoreConfig:
    """Raises UsageError when it names no store."""
    section = resolve(file=config, flags={"store.uri": store}).config.store
    if section.uri is None:
        raise UsageError(
            "no store is named",
            hint="give --store s3://bucket/prefix (or gs://, az://, file:///folder), or set it in onecopy.toml",
        )
    return section
