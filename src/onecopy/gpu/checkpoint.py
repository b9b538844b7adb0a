"""The bytes of a checkpoint that lies beside its config.json: from safetensors headers, an index, or a manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from onecopy.core.errors import ModelError
from onecopy.storage.layout import MANIFEST
from onecopy.weights.manifest import Manifest

LARGEST_HEADER = 100_000_000
"""The format's own bound on a header, in bytes."""
SERVED_BYTES = {"F64": 2, "F32": 2}
"""vLLM serves wider floats in 16 bits; everything else as it is stored."""
STORED_BYTES = {"F64": 8, "F32": 4}


def weights_beside(path: Path) -> int | None:
    """Bytes of the tensors as they will lie in memory; None when there is no checkpoint beside `path`.

    Raises ModelError for a file that is not safetensors.
    """
    folder = path if path.is_dir() else path.parent
    manifest = folder / MANIFEST
    if manifest.is_file():
        return served_bytes(Manifest.from_json(manifest.read_bytes(), where=str(manifest)))
    index = folder / "model.safetensors.index.json"
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return sum(_tensor_bytes(file) for file in files)
    if index.is_file():
        total: Any = json.loads(index.read_text()).get("metadata", {}).get("total_size")
        return int(total) if total else None
    return None


def served_bytes(manifest: Manifest) -> int:
    """Bytes of a revision's tensors as they will lie in memory; all its files where the summary is missing."""
    weights = manifest.weights
    if weights is None:
        return manifest.total_bytes
    wide = sum(
        size - size * SERVED_BYTES[kind] // STORED_BYTES[kind]
        for kind, size in weights.dtypes.items()
        if kind in SERVED_BYTES
    )
    return weights.bytes - wide


def _tensor_bytes(file: Path) -> int:
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= LARGEST_HEADER:
            raise ModelError(f"{file} is not a safetensors file: header of {length} bytes")
        try:
            header: Any = json.loads(stream.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ModelError(f"{file} is not a safetensors file: {error}") from error
    total = 0
    for name, entry in cast(dict[str, dict[str, Any]], header).items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        kind = str(entry["dtype"])
        total += (end - start) * SERVED_BYTES.get(kind, 1) // STORED_BYTES.get(kind, 1)
    return total
