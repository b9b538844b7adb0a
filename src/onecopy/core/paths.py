"""Where onecopy keeps things on a machine. The XDG base directory convention, one override each."""

from __future__ import annotations

from pathlib import Path

from onecopy.core.environment import read


def default_home() -> Path:
    """State of the local stacks: store data, credentials (0600), logs, state. `ONECOPY_HOME` overrides."""
    override = read("ONECOPY_HOME")
    if override:
        return Path(override).expanduser().resolve()
    base = read("XDG_DATA_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".local/share") / "onecopy"


def environments_dir() -> Path:
    """Python environments that `up` makes once (engine, tools). Shared by all homes. `ONECOPY_ENVIRONMENTS` overrides."""
    override = read("ONECOPY_ENVIRONMENTS")
    if override:
        return Path(override).expanduser().resolve()
    return _cache_home() / "environments"


def heads_dir() -> Path:
    """Config and tokenizer of models whose weights lie elsewhere, by model and revision."""
    return _cache_home() / "heads"


def _cache_home() -> Path:
    base = read("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "onecopy"
