"""Which files of a checkpoint are published: what serving needs, and none of the same weights in another format."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from onecopy.core.errors import UsageError
from onecopy.storage.layout import MANIFEST

SERVING = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py", "LICENSE*", "*/LICENSE*")
"""Weights, configurations, tokenizers (JSON, sentencepiece, tiktoken, merges), chat templates, custom code, licence."""
NEVER = ("original/*", "consolidated*.safetensors", "onnx/*", "openvino/*", "coreml/*", "*.onnx*", ".*", "*/.*")
"""The same weights once more (Meta's and Mistral's own layouts, exports), and hidden files (`.git`, `.cache`)."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Shell patterns on the whole path. include: empty means the default. exclude: on top of either."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def chosen(self, paths: Iterable[str]) -> list[str]:
        """The paths to publish, sorted. Raises UsageError for an `include` pattern that matches nothing."""
        everything = [path for path in paths if path != MANIFEST]
        if self.include:
            for pattern in self.include:
                if not any(fnmatchcase(path, pattern) for path in everything):
                    raise UsageError(f"--include {pattern} matches no file of the source")
            found = [path for path in everything if _any(path, self.include)]
        else:
            found = [path for path in everything if _any(path, SERVING) and not _any(path, NEVER)]
        return sorted(path for path in found if not _any(path, self.exclude))


def _any(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)
