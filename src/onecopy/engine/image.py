"""The packed image: a model's weights in the form that this CPU multiplies fastest, in one file that all replicas map.

vLLM on a CPU fuses q/k/v and repacks every linear layer into memory of its own, so N replicas hold N copies however the
checkpoint is read. Here the first replica loads as vLLM does, packs each linear once, and writes the result beside the
revision; the others only map it. What the checkpoint's files hold byte for byte (embeddings, norms) is mapped from them
and not written again. The image's name carries the revision, the instruction set, vLLM's version, the rank and the shapes
of all parameters, so a replica that would build another model looks for another image.
"""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onecopy.engine.mapped import Checkpoint, MappedFile

FORMAT = 1
DATA, INDEX = "image.bin", "index.json"
_ALIGN = 4096
"""A page: neighbours never share one, and every kernel's alignment is met."""
_TOLERANCE = 0.05
"""Largest difference, relative to the largest output, between the packed product and torch's: bf16 keeps 8 bits."""

Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def layout_digest(model: nn.Module) -> str:
    """Names, shapes and types of what a model keeps: 12 hex digits."""
    rows = [(name, tuple(value.shape), str(value.dtype)) for name, value in model.state_dict(keep_vars=True).items()]
    return hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()[:12]


def can_pack() -> bool:
    """Whether this CPU and this build of vLLM have the packed kernels that the image is for (AVX512 with bf16).

    Makes them ready in this process: the kernel gives the AMX registers to who asks, and kills who uses them unasked.
    """
    ops = torch.ops._C
    if not hasattr(ops, "convert_weight_packed") or not hasattr(ops, "weight_packed_linear"):
        return False
    if torch.cpu._is_amx_tile_supported() and not torch.cpu._init_amx():
        return False
    return torch.cpu._is_avx512_bf16_supported()


def isa() -> str:
    names = ("amx_tile", "avx512_bf16", "avx512", "avx2")
    for name in names:
        supported = getattr(torch.cpu, f"_is_{name}_supported", None)
        if supported is not None and supported():
            return name
    return "generic"


def linears(model: nn.Module) -> dict[str, nn.Module]:
    """Modules whose product vLLM would repack on a CPU: linears, and embeddings that serve as the output layer."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        UnquantizedEmbeddingMethod,
        VocabParallelEmbedding,
    )

    found: dict[str, nn.Module] = {}
    heads = any(isinstance(module, ParallelLMHead) for module in model.modules())
    for name, module in model.named_modules():
        method = getattr(module, "quant_method", None)
        weight = getattr(module, "weight", None)
        if weight is None or weight.is_meta or weight.ndim != 2 or getattr(module, "_cpu_skip_gemm_dispatch", False):
            continue
        only_looked_up = heads and isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
        known = type(method) in (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
        if known and not only_looked_up and packable(weight):
            found[name] = module
    return found


def packable(weight: torch.Tensor) -> bool:
    """The packed kernels take bf16, 16 rows and 32 columns at a time."""
    rows, columns = weight.shape
    return weight.dtype == torch.bfloat16 and rows % 16 == 0 and columns % 32 == 0


def packed_linear(packed: torch.Tensor, rows: int) -> Linear:
    from vllm import _custom_ops as ops

    return lambda x, _weight, bias: ops.weight_packed_linear_cpu(x, packed, rows, bias)


class ImageError(Exception):
    """The image cannot be made here; says why. The caller loads in another way."""


def build(model: nn.Module, checkpoint: Checkpoint, folder: Path) -> int:
    """Writes the image of a loaded model into `folder`, by rename. Returns its bytes.

    Raises ImageError or OSError (no space) before the model is changed; after that, weights are let go of one by one,
    so that beside the checkpoint there is never more than about one other copy.
    """
    modules, state = linears(model), model.state_dict(keep_vars=True)
    for module in {tuple(module.weight.shape): module for module in modules.values()}.values():
        _check(module.weight.detach())
    given_up = {id(module.weight) for module in modules.values() if _removable(module)}
    index: dict[str, Any] = {"format": FORMAT, "tensors": {}, "packed": {}}
    end, raw = 0, list[tuple[int, torch.Tensor]]()
    for name, value in state.items():
        if id(value) in given_up:
            continue
        if found := checkpoint.find(value):
            place: dict[str, Any] = {"file": found[0].name, "start": found[1]}
        else:
            place, end = {"start": end}, end + _pages(value)
            raw.append((place["start"], value.detach()))
        index["tensors"][name] = place | {"shape": list(value.shape), "dtype": _dtype_name(value.dtype)}
    size = end + sum(_pages(module.weight) for module in modules.values())
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as temporary:
        new = Path(temporary) / folder.name
        new.mkdir(mode=0o755)
        with (new / DATA).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(size, _ALIGN))
            for start, value in raw:
                _write(file, start, value)
            for name, module in modules.items():
                rows, _ = module.weight.shape
                packed = torch.ops._C.convert_weight_packed(module.weight.detach())
                _write(file, end, packed)
                index["packed"][name] = {
                    "start": end,
                    "shape": list(packed.shape),
                    "dtype": _dtype_name(packed.dtype),
                    "rows": rows,
                }
                end += _pages(packed)
                if _removable(module):
                    module.weight.data = torch.empty(0, dtype=module.weight.dtype)
            file.flush()
            os.fsync(file.fileno())
        (new / INDEX).write_text(json.dumps(index))
        for path in (new / DATA, new / INDEX):
            path.chmod(0o444)
        shutil.rmtree(folder, ignore_errors=True)  # one that this version could not use
        new.rename(folder)
    return size


class Image:
    """A published image, mapped. Raises ImageError when it is not one that can be used."""

    def __init__(self, folder: Path, checkpoint: Checkpoint) -> None:
        for path in (folder, folder / DATA, folder / INDEX):
            if path.stat().st_uid not in (0, os.geteuid()):
                raise ImageError(f"{path} belongs to another user")
        try:
            self._index = json.loads((folder / INDEX).read_text())
        except ValueError as error:
            raise ImageError(f"{folder / INDEX} cannot be read: {error}") from error
        if self._index.get("format") != FORMAT:
            raise ImageError(f"{folder} has another format")
        self._checkpoint = checkpoint
        self._file = MappedFile(folder / DATA)
        self._folder = folder

    @property
    def bytes(self) -> int:
        return self._file.bytes.numel()

    def attach(self, model: nn.Module) -> dict[int, Linear]:
        """Points every parameter at the shared pages. Returns the product of each packed module, by id of the module."""
        tensors, state = self._index["tensors"], model.state_dict(keep_vars=True)
        modules = {name: model.get_submodule(name) for name in self._index["packed"]}
        given_up = {id(module.weight) for module in modules.values() if _removable(module)}
        lacking = [name for name, value in state.items() if name not in tensors and id(value) not in given_up]
        if lacking:
            raise ImageError(f"{self._folder} lacks {lacking[0]}")
        for name, value in state.items():
            if id(value) in given_up:
                value.data = torch.empty(0, dtype=value.dtype)
                continue
            view = self._view(tensors[name])
            if isinstance(value, nn.Parameter):
                value.data = view
            else:
                value.copy_(view)  # a buffer: small, and other tensors may be views on it
        linear: dict[int, Linear] = {}
        for name, module in modules.items():
            place = self._index["packed"][name]
            bias = getattr(module, "bias", None)
            if bias is not None:
                bias.data = bias.data.to(torch.float32)  # the packed kernels add in float32
            linear[id(module)] = packed_linear(self._view(place), place["rows"])
        return linear

    def _view(self, place: dict[str, Any]) -> torch.Tensor:
        name = place.get("file")
        source = self._file
        if name is not None:
            path = next((path for path in self._checkpoint.headers if path.name == name), None)
            if path is None:
                raise ImageError(f"{self._folder} names {name}, which the checkpoint lacks")
            source = self._checkpoint.map(path)
        return source.view(place["start"], place["shape"], getattr(torch, place["dtype"]))


def share_views(model: nn.Module, checkpoint: Checkpoint) -> tuple[int, int]:
    """Replaces parameters by views on the checkpoint's files where these hold the same bytes.

    Returns (bytes shared, bytes that stay private).
    """
    shared = private = 0
    for value in model.parameters():
        size = value.numel() * value.element_size()
        found = checkpoint.find(value)
        if found is None:
            private += size
        else:
            value.data = checkpoint.map(found[0]).view(found[1], value.shape, value.dtype)
            shared += size
    return shared, private


def _removable(module: nn.Module) -> bool:
    """vLLM keeps an embedding's own weight (it is looked up too) and lets go of a linear's."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    return not isinstance(module, VocabParallelEmbedding)


def _pages(tensor: torch.Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // _ALIGN) * _ALIGN


def _write(file: Any, start: int, tensor: torch.Tensor) -> None:
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    file.seek(start)
    file.write(memoryview(raw.numpy()))


def _check(weight: torch.Tensor) -> None:
    """One row through both products: a kernel that computes something else for this shape must not serve."""
    packed = torch.ops._C.convert_weight_packed(weight)
    if packed.numel() != weight.numel() or packed.dtype != weight.dtype:
        raise ImageError(f"packing {tuple(weight.shape)} gives {tuple(packed.shape)} of {packed.dtype}")
    generator = torch.Generator(device="cpu").manual_seed(0)
    x = torch.randn(1, weight.shape[1], generator=generator, dtype=torch.float32).to(weight.dtype)
    want = torch.nn.functional.linear(x, weight).float()
    got = packed_linear(packed, weight.shape[0])(x, weight, None).float()
    difference = (got - want).abs().max() / want.abs().max().clamp_min(1e-6)
    if not difference <= _TOLERANCE:
        raise ImageError(f"the packed product of {tuple(weight.shape)} is off by {float(difference):.3f}")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
