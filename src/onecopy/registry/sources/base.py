"""The protocol of a source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from onecopy.weights.manifest import SourceInfo

if TYPE_CHECKING:
    from typing_extensions import Buffer


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source. size in bytes. sha256: hex, where the source itself knows it."""

    path: str
    size: int
    sha256: str | None = None


class Source(Protocol):
    """Pinned, and safe to read from many threads. Calls raise from the SourceError branch (a store: StoreError)."""

    @property
    def info(self) -> SourceInfo: ...

    @property
    def files(self) -> Sequence[SourceFile]:
        """What is to be published, by path."""
        ...

    def read(self, file: SourceFile, start: int, end: int) -> Buffer:
        """Bytes [start, end) of one of `files`. Raises SourceChanged when it is not what was listed any more."""
        ...

    def close(self) -> None: ...
