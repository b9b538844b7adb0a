"""The GPU planner: what fits on which card, and with which settings vLLM starts.

Replicas that share a card get equal shares. Each is told its share (`gpu_memory_utilization`) and, which counts more,
the exact size of its KV cache (`kv_cache_memory_bytes`): a replica that measures for itself charges its neighbours' use
to its own account. They are started one after another and rolled by Recreate, because two that load at once, or an old
and a new one side by side, ask for memory that is not there. What does not fit is refused with what would.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from onecopy.core.errors import UsageError
from onecopy.core.units import GiB, MiB
from onecopy.gpu.cards import Card, cards
from onecopy.gpu.memory import (
    CONTEXT_BYTES,
    Fixed,
    KvDtype,
    Serving,
    fixed_bytes,
    format_gib,
    longest_request,
    request_bytes,
)
from onecopy.gpu.shape import ModelShape

RESERVE_SHARE = 0.03
"""Of the card left to nobody: driver growth, allocator fragments, a neighbour's late kernel."""
SMALLEST_CONTEXT = 2048
"""Tokens. A server that cannot hold one conversation of this length is not worth its start."""
UTILIZATION_STEP = 0.01
MARGIN_BYTES = 150 * MiB
"""vLLM's own advice for kv_cache_memory_bytes leaves as much (its log after warm-up)."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A change that makes it fit, checked by planning it."""

    change: str
    gpu: str
    replicas: int
    tensor_parallel: int
    kv_cache_dtype: KvDtype
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Start:
    """How replicas that share cards have to be started and replaced."""

    order: str
    rollout: str
    why: str


@dataclass(frozen=True, slots=True)
class GpuPlan:
    """Sizes in bytes, on one card and for one replica unless the name says otherwise; lengths in tokens.

    When `fits` is false the settings are None, `reason` says what is short, and `suggestions` what would do.
    """

    fits: bool
    reason: str
    gpu: str
    cards: int
    replicas: int
    replicas_per_card: int
    max_replicas_per_card: int
    tensor_parallel: int
    gpu_memory_utilization: float | None
    kv_cache_memory_bytes: int | None
    kv_cache_dtype: KvDtype
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    concurrency: float | None
    """Requests of the full `max_model_len` that the KV cache of one replica holds at once."""
    kv_cache_tokens: int | None
    """concurrency × max_model_len: the figure that vLLM logs as "GPU KV cache size"."""
    kv_bytes_per_token: int
    memory: dict[str, int]
    """Term → bytes: card, share, weights, activations, graphs, libraries, context, kv_cache, spare."""
    start: Start
    notes: tuple[str, ...] = ()
    suggestions: tuple[Suggestion, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def vllm_args(self) -> list[str]:
        """The arguments of `vllm serve` that this plan stands for."""
        if not self.fits:
            return []
        args = [
            f"--gpu-memory-utilization={self.gpu_memory_utilization}",
            f"--kv-cache-memory-bytes={self.kv_cache_memory_bytes}",
            f"--max-model-len={self.max_model_len}",
            f"--max-num-seqs={self.max_num_seqs}",
            f"--max-num-batched-tokens={self.max_num_batched_tokens}",
        ]
        if self.tensor_parallel > 1:
            args.append(f"--tensor-parallel-size={self.tensor_parallel}")
        if self.kv_cache_dtype != "auto":
            args.append(f"--kv-cache-dtype={self.kv_cache_dtype}")
        return args


def plan_gpu(
    shape: ModelShape,
    *,
    card: Card,
    weights_bytes: int | None = None,
    replicas: int = 1,
    gpus: int | None = None,
    tensor_parallel: int = 1,
    kv_cache_dtype: KvDtype = "auto",
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int | None = None,
    eager: bool = False,
    suggest: bool = True,
) -> GpuPlan:
    """Plans `replicas` servers of one model over `gpus` cards (default: as few as `tensor_parallel` needs).

    weights_bytes: the checkpoint's tensors; estimated from the configuration when None. max_model_len: exactly this
    long, or refused; by default the longest that fits, up to the model's own. Raises UsageError for a question that
    makes no sense; what does not fit is an answer, not an error.
    """
    gpus = tensor_parallel if gpus is None else gpus
    _check(shape, replicas, gpus, tensor_parallel, max_model_len)
    small = card.batched_tokens if max_num_batched_tokens is None else max_num_batched_tokens
    serving = Serving(
        tensor_parallel=tensor_parallel,
        kv_dtype=kv_cache_dtype,
        batched_tokens=small,
        sequences=card.sequences if max_num_seqs is None else max_num_seqs,
        eager=eager,
    )
    question = _Question(shape, card, _weights(shape, weights_bytes), replicas, gpus, serving, max_model_len)
    answer = _answer(question)
    notes = list(shape.notes)
    if weights_bytes is None:
        notes.append(f"weights estimated from the configuration: {shape.estimated_parameters / 1e9:.2f} G parameters")
    if not card.bf16:
        notes.append(f"{card.name} has no bfloat16: start vLLM with --dtype half")
    if kv_cache_dtype == "fp8" and not card.fp8:
        notes.append(f"{card.name} has no FP8 arithmetic: the cache is converted at each read, which costs speed")
    if max_model_len is not None and max_model_len > shape.max_positions:
        notes.append(f"the model was made for {shape.max_positions} tokens; {max_model_len} need rope scaling")
    suggestions = _suggestions(question) if suggest and not answer.fits else ()
    return replace(answer, notes=tuple(notes), suggestions=suggestions)


@dataclass(frozen=True, slots=True)
class _Question:
    shape: ModelShape
    card: Card
    weights: int
    replicas: int
    gpus: int
    serving: Serving
    max_model_len: int | None

    @property
    def per_card(self) -> int:
        """Replicas on the fullest card: cards work in groups of `tensor_parallel`."""
        return math.ceil(self.replicas / (self.gpus // self.serving.tensor_parallel))

    @property
    def floor(self) -> int:
        """Tokens that one replica must be able to hold."""
        return self.max_model_len or min(SMALLEST_CONTEXT, self.shape.max_positions)


def _answer(question: _Question) -> GpuPlan:
    shape, card, serving = question.shape, question.card, question.serving
    fixed = fixed_bytes(shape, question.weights, serving)
    budget = _share(card, question.per_card)
    utilization = _utilization(card, question.per_card)
    pool = max(0, budget - fixed.total - MARGIN_BYTES) // MiB * MiB
    longest = longest_request(shape, pool, serving, limit=question.max_model_len or shape.max_positions)
    fits = pool > 0 and longest >= question.floor and utilization > 0
    most = _most(question, fixed)
    length = longest if fits else None
    concurrency = pool / request_bytes(shape, length, serving) if length else None
    if fits:
        reason = (
            f"{question.per_card} replica(s) a card: each has {format_gib(budget)} of {format_gib(card.usable)}, "
            f"{format_gib(pool)} of it for KV cache"
        )
    else:
        reason = _shortage(question, fixed, budget, pool, longest)
    sharing = question.per_card > 1
    return GpuPlan(
        fits=fits,
        reason=reason,
        gpu=card.name,
        cards=question.gpus,
        replicas=question.replicas,
        replicas_per_card=question.per_card,
        max_replicas_per_card=most,
        tensor_parallel=serving.tensor_parallel,
        gpu_memory_utilization=utilization if fits else None,
        kv_cache_memory_bytes=pool if fits else None,
        kv_cache_dtype=serving.kv_dtype,
        max_model_len=length,
        max_num_seqs=serving.sequences,
        max_num_batched_tokens=serving.batched_tokens,
        concurrency=round(concurrency, 2) if concurrency else None,
        kv_cache_tokens=int(concurrency * length) if concurrency and length else None,
        kv_bytes_per_token=shape.kv_bytes_per_token(
            tensor_parallel=serving.tensor_parallel, kv_bytes=1 if serving.kv_dtype == "fp8" else None
        ),
        memory={
            "card": card.usable,
            "share": budget,
            "weights": fixed.weights,
            "activations": fixed.activations,
            "graphs": fixed.graphs,
            "libraries": fixed.libraries,
            "context": fixed.context,
            "kv_cache": max(0, pool),
            "spare": budget - fixed.total - max(0, pool),
        },
        start=Start(
            order="one after another" if sharing else "any",
            rollout="Recreate",
            why="replicas that share a card measure each other's memory while they load; a surge would need it twice"
            if sharing
            else "a surge would need a second free card",
        ),
    )


def _share(card: Card, per_card: int) -> int:
    """Bytes of the card for one replica, its context included."""
    return int(card.usable * (1 - RESERVE_SHARE)) // per_card


def _utilization(card: Card, per_card: int) -> float:
    """vLLM refuses to start when less than this part of the card is free, so it counts from after its own context."""
    free = (_share(card, per_card) - CONTEXT_BYTES) / card.usable
    return max(0.0, round(math.floor(free / UTILIZATION_STEP) * UTILIZATION_STEP, 2))


def _most(question: _Question, fixed: Fixed) -> int:
    """Replicas that fit on one card (or one tensor-parallel group of cards) at the least context asked for."""
    need = fixed.total + MARGIN_BYTES + request_bytes(question.shape, question.floor, question.serving) + MiB
    return int(question.card.usable * (1 - RESERVE_SHARE)) // need


def _shortage(question: _Question, fixed: Fixed, budget: int, pool: int, longest: int) -> str:
    card, floor = question.card, question.floor
    who = "one replica" if question.per_card == 1 else f"each of {question.per_card} replicas on one card"
    if pool <= 0:
        return (
            f"{who} needs {format_gib(fixed.total + MARGIN_BYTES)} before any KV cache (weights "
            f"{format_gib(fixed.weights)}) and has {format_gib(budget)} of the {card.name}'s {format_gib(card.usable)}"
        )
    return (
        f"{who} has {format_gib(pool)} for KV cache: {longest} tokens, and {floor} are needed "
        f"({format_gib(request_bytes(question.shape, floor, question.serving))})"
    )


def _suggestions(question: _Question) -> tuple[Suggestion, ...]:
    """Single changes first, from the cheapest; each has been planned and fits."""
    found: list[Suggestion] = []

    def offer(change: str, other: _Question) -> bool:
        answer = _answer(other)
        if not answer.fits or answer.max_model_len is None:
            return False
        found.append(
            Suggestion(
                change,
                other.card.name,
                other.replicas,
                other.serving.tensor_parallel,
                other.serving.kv_dtype,
                answer.max_model_len,
            )
        )
        return True

    if question.max_model_len:
        shorter = replace(question, max_model_len=None)
        length = _answer(shorter).max_model_len
        if length:
            offer(f"a context of {length} tokens", replace(question, max_model_len=length))
    if question.serving.kv_dtype == "auto":
        offer("an FP8 KV cache", replace(question, serving=replace(question.serving, kv_dtype="fp8")))
    for count in range(question.replicas - 1, 0, -1):
        if offer(f"{count} replica(s) instead of {question.replicas}", replace(question, replicas=count)):
            break
    for tp in (2, 4, 8, 16):
        if tp > question.serving.tensor_parallel and question.shape.heads % tp == 0:
            wide = replace(question, gpus=tp, replicas=1, serving=replace(question.serving, tensor_parallel=tp))
            if offer(f"tensor parallel over {tp} × {question.card.name}, one replica", wide):
                break
    for bigger in cards():
        if bigger.usable > question.card.usable:
            other = replace(question, card=bigger)
            if offer(f"a bigger card: {bigger.name} ({bigger.usable / GiB:.0f} GiB)", other):
                break
    return tuple(found)


def _weights(shape: ModelShape, given: int | None) -> int:
    if given is not None:
        return given
    return int(shape.estimated_parameters * shape.stored_bytes)


def _check(shape: ModelShape, replicas: int, gpus: int, tp: int, length: int | None) -> None:
    if min(replicas, gpus, tp) < 1:
        raise UsageError(f"replicas, cards and tensor parallel must be 1 or more, got {replicas}, {gpus} and {tp}")
    if shape.heads % tp:
        raise UsageError(
            f"{shape.heads} attention heads cannot be split over {tp} cards",
            hint=f"tensor parallel sizes for this model: {', '.join(str(n) for n in (1, 2, 4, 8, 16) if shape.heads % n == 0)}",
        )
    if gpus % tp:
        raise UsageError(f"{gpus} card(s) cannot be divided into groups of {tp}", hint=f"--gpus {tp}")
    if length is not None and length < 1:
        raise UsageError(f"max_model_len must be positive, got {length}")
