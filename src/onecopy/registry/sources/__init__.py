"""Where a model is published from: `hf://org/name[@revision]`, a folder, another store.

A source is pinned when it is opened: what it lists is what it serves, or it raises SourceChanged.
"""

from __future__ import annotations

from onecopy.registry.sources.base import Source, SourceFile
from onecopy.registry.sources.open import default_name, open_source
from onecopy.registry.sources.selection import Selection

__all__ = ["Selection", "Source", "SourceFile", "default_name", "open_source"]
