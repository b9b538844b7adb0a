"""What one vLLM server takes on one card, term by term, before the KV cache, and what the KV cache holds.

Terms: weights; the peak of activations in vLLM's profiling pass; captured CUDA graphs; libraries outside PyTorch's
allocator; the CUDA context. Weights and KV are arithmetic. The rest is fitted to logs that people published; the logs,
with their sources, and the error against them are in `tests/unit/gpu/published.json`. The model aims to be a little
high: a plan that starts beats one that uses the last 2 %. Activations differ by vLLM version more than by model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from onecopy.core.units import GiB, MiB
from onecopy.gpu.shape import Attention, ModelShape

KvDtype = Literal["auto", "fp8"]

BLOCK_TOKENS = 16
"""vLLM's block on CUDA: caches grow in steps of this many tokens."""
CONTEXT_BYTES = 512 * MiB
"""A process's CUDA context and loaded kernels: 0.41 GiB gone when vLLM first looks, more by the time it serves.

It lies outside vLLM's own budget, and each process has its own."""
LIBRARY_BYTES = 280 * MiB
"""cuBLAS and FlashInfer workspaces on one card ("non-torch memory": 0.2 to 0.35 GiB in published logs)."""
COLLECTIVE_BYTES = 1850 * MiB
"""NCCL and all-reduce buffers of a card under tensor parallelism (non-torch memory of 2.1 GiB in vLLM 0.19)."""
GRAPH_BASE_BYTES, GRAPH_LAYER_BYTES = 180 * MiB, 12 * MiB
"""Captured graphs: 0.52 GiB for 36 layers, 0.7 GiB for 80 (51 piecewise and 35 full graphs)."""
SAMPLER_BYTES = 30
"""A vocabulary entry and sequence in the sampler's rehearsal: logits in 16 and 32 bits, a sorted copy, its 64-bit
indices, probabilities. vLLM 0.11 took 39, 0.19 (FlashInfer alone) 15, from 0.30 on both ways are rehearsed: 30."""
FRAGMENT_SHARE = 0.02
"""Allocator's blocks that are split and not whole again, as a part of weights and activations."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How the server is started: what its memory depends on beside the model."""

    tensor_parallel: int = 1
    kv_dtype: KvDtype = "auto"
    batched_tokens: int = 2048
    """Tokens in one step, `--max-num-batched-tokens`."""
    sequences: int = 256
    """Sequences in one step, `--max-num-seqs`."""
    eager: bool = False
    """`--enforce-eager`: no CUDA graphs."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Bytes on one card that do not depend on the context's length."""

    weights: int
    activations: int
    graphs: int
    libraries: int
    context: int

    @property
    def in_budget(self) -> int:
        """What counts against `gpu_memory_utilization`; the context was there before vLLM looked."""
        return self.weights + self.activations + self.graphs + self.libraries

    @property
    def total(self) -> int:
        return self.in_budget + self.context


def fixed_bytes(shape: ModelShape, weights_bytes: int, serving: Serving) -> Fixed:
    """weights_bytes: the checkpoint's tensors, all cards together, as they lie in memory."""
    tp = serving.tensor_parallel
    activations = max(_layer_peak(shape, serving), _sampler_peak(shape, serving))
    weights = math.ceil(weights_bytes / tp)
    return Fixed(
        weights=weights,
        activations=activations + int((weights + activations) * FRAGMENT_SHARE),
        graphs=0 if serving.eager else GRAPH_BASE_BYTES + shape.layers * GRAPH_LAYER_BYTES,
        libraries=LIBRARY_BYTES + (COLLECTIVE_BYTES if tp > 1 else 0),
        context=CONTEXT_BYTES,
    )


def _layer_peak(shape: ModelShape, serving: Serving) -> int:
    """The widest moment of one layer over a full batch: gate and up beside their product, and the residual stream.

    Llama 3.1 8B under vLLM 0.6 grew by 109.8 kB a token between two published profiles; this gives 110.6 kB.
    """
    tp, size = serving.tensor_parallel, shape.dtype_bytes
    dense = 3 * math.ceil(shape.intermediate / tp) + 3 * shape.hidden
    mixture = 0
    if shape.experts:
        wide = math.ceil(shape.expert_intermediate / tp)
        mixture = shape.experts_active * (3 * wide + shape.hidden) + 3 * shape.hidden
    return serving.batched_tokens * size * max(dense, mixture)


def _sampler_peak(shape: ModelShape, serving: Serving) -> int:
    return serving.sequences * shape.vocab * SAMPLER_BYTES


def kv_number_bytes(shape: ModelShape, kv_dtype: KvDtype) -> int:
    return 1 if kv_dtype == "fp8" else shape.dtype_bytes


def request_bytes(shape: ModelShape, tokens: int, serving: Serving) -> int:
    """KV cache on one card that a single sequence of `tokens` can hold at most, as vLLM reserves it.

    Layers with a window keep that window and the tokens in flight (two batches, as scheduling runs one ahead). Kinds
    share one pool of blocks in groups of equally many layers, so the rarest kind sets the group and others are padded.
    """
    size = kv_number_bytes(shape, serving.kv_dtype)
    padded = _padded_layers(shape.attention)
    total = 0
    for kind, layers in zip(shape.attention, padded, strict=True):
        if kind.kind == "state":
            # Twice: prefix caching keeps an aligned copy of the state beside the running one.
            total += 2 * layers * math.ceil(kind.state_bytes / serving.tensor_parallel)
            continue
        blocks = math.ceil(_held(kind, tokens, serving) / BLOCK_TOKENS) + (1 if kind.kind == "sliding" else 0)
        total += layers * blocks * BLOCK_TOKENS * shape.layer_bytes(kind, serving.tensor_parallel, size)
    return total


def _held(kind: Attention, tokens: int, serving: Serving) -> int:
    if kind.window is None or kind.kind in ("full", "mla"):
        return tokens
    return min(tokens, kind.window - (1 if kind.kind == "sliding" else 0) + 2 * serving.batched_tokens)


def _padded_layers(kinds: tuple[Attention, ...]) -> list[int]:
    counts = [kind.layers for kind in kinds if kind.kind != "state"]
    if len(counts) < 2:
        return [kind.layers for kind in kinds]
    group = max(counts) if max(counts) < 1.5 * min(counts) else min(counts)
    return [k.layers if k.kind == "state" else math.ceil(k.layers / group) * group for k in kinds]


def longest_request(shape: ModelShape, kv_bytes: int, serving: Serving, *, limit: int) -> int:
    """The longest sequence up to `limit` tokens whose cache fits in `kv_bytes`; 0 when not even one block does."""
    low, high = 0, limit // BLOCK_TOKENS
    if request_bytes(shape, limit, serving) <= kv_bytes:
        return limit
    while low < high:
        middle = (low + high + 1) // 2
        if request_bytes(shape, middle * BLOCK_TOKENS, serving) <= kv_bytes:
            low = middle
        else:
            high = middle - 1
    return low * BLOCK_TOKENS


def format_gib(count: float) -> str:
    """Binary units, as cards and vLLM's own log have them."""
    return f"{count / GiB:.2f} GiB"
