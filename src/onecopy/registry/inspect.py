"""Is this a checkpoint that can be served? Read from the source's headers, before a byte is uploaded.

A safetensors file is an 8-byte little-endian header length, a JSON header, then the tensors' bytes, without holes or
overlaps and to the file's last byte (the format's own rules, safetensors 0.6 README, "Format"). A download that was cut
short still has a good header, so the end of the data is compared with the file's size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, cast

from onecopy.core.errors import ModelError
from onecopy.core.units import MiB
from onecopy.registry.sources import Source, SourceFile
from onecopy.weights.manifest import WeightsInfo

_HEADER_LIMIT = 100 * MiB  # the format's own limit
_DTYPE_BITS = {
    **{"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32},
    **{"F16": 16, "BF16": 16, "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8},
    **{"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "BOOL": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
_AGAIN = "download the file again; `sha256sum` against the hub's own digest tells whether it is whole"
Header = Mapping[str, Mapping[str, Any]]


def inspect(source: Source, pool: Executor) -> WeightsInfo:
    """Raises ModelError, naming the file, for a checkpoint that vLLM could not load whole."""
    files = {file.path: file for file in source.files}
    if "config.json" not in files:
        raise ModelError(
            f"{source.info.uri}: no config.json among its {len(files)} files", hint="give the folder that holds it"
        )
    _json(source, files["config.json"])
    shards = [file for path, file in files.items() if path.endswith(".safetensors")]
    if not shards:
        raise ModelError(
            f"{source.info.uri}: no safetensors file",
            hint="convert the checkpoint to safetensors; pickle formats run code when they are loaded",
        )
    read = pool.map(partial(read_header, source), shards)
    headers = {shard.path: header for shard, header in zip(shards, read, strict=True)}
    for path in files:
        if path.endswith(".safetensors.index.json"):
            _check_index(path, _json(source, files[path]), headers)
    return summarize(headers.values())


def read_header(source: Source, file: SourceFile) -> Header:
    """A safetensors file's tensors: name → {dtype, shape, data_offsets}. Raises ModelError."""
    if file.size < 8:
        raise ModelError(f"{file.path}: {file.size} bytes is no safetensors file", hint=_AGAIN)
    length = int.from_bytes(source.read(file, 0, 8), "little")
    if length > min(_HEADER_LIMIT, file.size - 8):
        raise ModelError(
            f"{file.path}: torn or no safetensors file: a header of {length} bytes in {file.size}", hint=_AGAIN
        )
    try:
        header = json.loads(bytes(source.read(file, 8, 8 + length)))
        header.pop("__metadata__", None)
        spans = sorted((t["data_offsets"][0], t["data_offsets"][1], name) for name, t in header.items())
        sizes = {name: math.prod(t["shape"]) * _DTYPE_BITS.get(t["dtype"], 0) for name, t in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{file.path}: the safetensors header cannot be read: {error}") from error
    at = 0
    for begin, end, name in spans:
        if begin != at or end < begin:
            raise ModelError(
                f"{file.path}: tensor {name} is at bytes {begin}–{end}, where byte {at} was to follow", hint=_AGAIN
            )
        if sizes[name] and (end - begin) * 8 != sizes[name]:
            raise ModelError(
                f"{file.path}: tensor {name} has {end - begin} bytes, its shape says {sizes[name] // 8}", hint=_AGAIN
            )
        at = end
    if 8 + length + at != file.size:
        raise ModelError(
            f"{file.path}: torn: its tensors end at byte {8 + length + at}, the file at {file.size}",
            hint=_AGAIN,
        )
    return cast(Header, header)


def summarize(headers: Sequence[Header] | Any) -> WeightsInfo:
    tensors = parameters = 0
    dtypes: dict[str, int] = {}
    for header in headers:
        for tensor in header.values():
            tensors += 1
            parameters += math.prod(tensor["shape"])
            begin, end = tensor["data_offsets"]
            dtypes[tensor["dtype"]] = dtypes.get(tensor["dtype"], 0) + end - begin
    return WeightsInfo(tensors=tensors, parameters=parameters, bytes=sum(dtypes.values()), dtypes=dtypes)


def _check_index(path: str, index: Any, headers: Mapping[str, Header]) -> None:
    folder = path.rpartition("/")[0]
    try:
        weight_map = dict[str, str](index["weight_map"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: no weight_map in it") from error
    for tensor, shard in weight_map.items():
        where = f"{folder}/{shard}" if folder else shard
        if where not in headers:
            raise ModelError(f"{path} names {shard}, which is not there", hint="download the checkpoint again")
        if tensor not in headers[where]:
            raise ModelError(f"{path} says {tensor} is in {shard}, which does not have it")


def _json(source: Source, file: SourceFile) -> Any:
    try:
        return json.loads(bytes(source.read(file, 0, file.size)))
    except ValueError as error:
        raise ModelError(f"{file.path}: not JSON: {error}") from error
