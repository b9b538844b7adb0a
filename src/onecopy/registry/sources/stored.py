"""A model of another store: `s3://bucket/prefix#name[@ref]`. Pinned to the revision that the ref named when opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onecopy.core.errors import ObjectMissing, PreconditionFailed, SourceChanged, UsageError
from onecopy.registry import catalogue
from onecopy.registry.sources.base import SourceFile
from onecopy.registry.sources.selection import Selection
from onecopy.storage import layout
from onecopy.storage.objectstore import StoreOptions, open_store
from onecopy.storage.store import Store

if TYPE_CHECKING:
    from typing_extensions import Buffer


class StoredSource:
    """selection: within what that revision holds; the whole of it by default, so that the copy is the same revision."""

    def __init__(
        self,
        text: str,
        selection: Selection | None = None,
        *,
        store: Store | None = None,
        options: StoreOptions | None = None,
    ) -> None:
        address, found, name = text.partition("#")
        if not found:
            raise UsageError(f"no model named in {text}", hint=f"write it as {address}#name or {address}#name@ref")
        self.store = store or open_store(address, options)
        self.manifest = catalogue.resolve(self.store, *catalogue.split(name))
        self.info = self.manifest.source
        paths: Sequence[str] = [file.path for file in self.manifest.files]
        if selection is not None and (selection.include or selection.exclude):
            paths = selection.chosen(paths)
        self._files = {path: self.manifest.file(path) for path in paths}
        self.files: Sequence[SourceFile] = [SourceFile(f.path, f.size, f.sha256) for f in self._files.values()]

    def key(self, path: str) -> str:
        return layout.file_key(self.manifest.model, self.manifest.revision, path)

    def read(self, file: SourceFile, start: int, end: int) -> Buffer:
        if start == end:
            return b""
        try:
            return self.store.get_range(self.key(file.path), start, end, if_match=self._files[file.path].etag)
        except (PreconditionFailed, ObjectMissing) as error:
            raise SourceChanged(
                f"{file.path} of {self.manifest.model}@{self.manifest.revision} is not what its manifest names",
                hint="`onecopy model verify` that store first",
            ) from error

    def close(self) -> None:
        """The store keeps its connections."""
