"""Tensors that are views on mapped checkpoint files: nothing is read or copied until it is used.

Mappings are private (copy on write): pages that are only read are the page cache's own, shared by every process that
maps the file, and code that writes into a parameter gets its own page and never touches the file.
"""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import ctypes
import json
import mmap
import re
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
}
Wait = Callable[[Path, int, int], None]
"""wait(file, start, end): returns when these bytes of the file may be read."""
Open = Callable[[Path], BinaryIO]
"""open(file): the file to read from, which may still lie elsewhere. Its length is right once some of its bytes are there."""
_MAX_HEADER = 100 << 20
"""safetensors' own limit on a header."""


def no_wait(path: Path, start: int, end: int) -> None:
    """For files that are whole."""
    del path, start, end


def open_there(path: Path) -> BinaryIO:
    """For files that lie where their path says."""
    return path.open("rb")


class UnknownDtype(ValueError):
    """A dtype that this module does not know: vLLM's own reader may."""


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class MappedFile:
    """One file, mapped. `bytes` is a 1-D uint8 tensor on the mapping, which lives as long as any view on it."""

    def __init__(self, path: Path, open_file: Open = open_there) -> None:
        self.path = path
        with open_file(path) as file:
            length = file.seek(0, 2)
            # NORESERVE: copy on write is a safety net here, not memory that is going to be asked for
            flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
            self._map = mmap.mmap(file.fileno(), length, flags, mmap.PROT_READ | mmap.PROT_WRITE)
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)

    def release(self) -> None:
        """Lets go of the pages that were read so far; they come back when they are used. What was written is lost."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def view(self, start: int, shape: Iterable[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor on the bytes from `start`; their alignment must suit dtype."""
        shape = tuple(shape)
        count = torch.Size(shape).numel() * dtype.itemsize
        return self.bytes[start : start + count].view(dtype).view(shape)


def read_header(path: Path, wait: Wait = no_wait, open_file: Open = open_there) -> list[Entry]:
    """The tensors of a safetensors file in file order, offsets from the file's start. Raises UnknownDtype, ValueError."""
    wait(path, 0, 8)
    with open_file(path) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _MAX_HEADER:
            raise ValueError(f"{path}: its header says {length} bytes: not a safetensors file")
        wait(path, 8, 8 + length)
        header = json.loads(file.read(length))
    entries = []
    for name, value in header.items():
        if name == "__metadata__":
            continue
        if value["dtype"] not in DTYPES:
            raise UnknownDtype(f"{path.name}: {name} is {value['dtype']}")
        start, end = (8 + length + offset for offset in value["data_offsets"])
        entries.append(Entry(name, DTYPES[value["dtype"]], tuple(value["shape"]), start, end))
    return sorted(entries, key=lambda entry: entry.start)


class Checkpoint:
    """The safetensors files of a folder, mapped when first used: with `wait` and `open_file`, while they are written."""

    def __init__(self, files: Iterable[Path], wait: Wait = no_wait, open_file: Open = open_there) -> None:
        self._wait, self._open = wait, open_file
        self.headers = {path: read_header(path, wait, open_file) for path in sorted(files, key=_natural)}
        self._mapped: dict[Path, MappedFile] = {}
        self._starts: dict[bytes, list[tuple[Path, Entry]]] | None = None

    def release(self) -> None:
        """Lets go of all pages: see `MappedFile.release`."""
        for mapped in self._mapped.values():
            mapped.release()

    @property
    def bytes(self) -> int:
        return sum(entry.end - entry.start for entries in self.headers.values() for entry in entries)

    def map(self, path: Path) -> MappedFile:
        if path not in self._mapped:
            self._mapped[path] = MappedFile(path, self._open)
        return self._mapped[path]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor, files in their natural order and tensors in file order, each as soon as its bytes are there."""
        for path, entries in self.headers.items():
            file = self.map(path)
            for entry in entries:
                self._wait(path, entry.start, entry.end)
                if entry.start % entry.dtype.itemsize:  # a header whose length is odd: torch wants aligned views
                    raw = file.bytes[entry.start : entry.end].clone()
                    yield entry.name, raw.view(entry.dtype).view(entry.shape)
                else:
                    yield entry.name, file.view(entry.start, entry.shape, entry.dtype)

    def find(self, tensor: torch.Tensor) -> tuple[Path, int] | None:
        """Where the files hold exactly this tensor's bytes, or None.

        The region may span several tensors: a fused q/k/v is found when the file keeps the three side by side.
        """
        size = tensor.numel() * tensor.element_size()
        if not tensor.is_contiguous() or tensor.device.type != "cpu" or size < _PROBE:
            return None
        raw = tensor.detach().reshape(-1).view(torch.uint8)
        for path, entry in self._by_start().get(bytes(raw[:_PROBE].numpy()), ()):
            file = self.map(path)
            inside = entry.start + size <= file.bytes.numel() and entry.start % tensor.element_size() == 0
            if inside and _memcmp(raw.data_ptr(), file.bytes.data_ptr() + entry.start, size) == 0:
                return path, entry.start
        return None

    def _by_start(self) -> dict[bytes, list[tuple[Path, Entry]]]:
        if self._starts is None:
            self._starts = defaultdict(list)
            for path, entries in self.headers.items():
                file = self.map(path)
                for entry in entries:
                    self._starts[bytes(file.bytes[entry.start : entry.start + _PROBE].numpy())].append((path, entry))
        return self._starts


_PROBE = 64
_memcmp = ctypes.CDLL(None).memcmp
_memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]


def _natural(path: Path) -> list[tuple[int, str]]:
    """model-2 before model-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]
