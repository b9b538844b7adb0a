"""What of a model's config.json decides its memory: its layers, by the kind of attention cache each keeps.

A `ModelShape` is read from any Hugging Face config (nested `text_config` too) without importing transformers. Layers
fall into kinds: full attention (MHA, GQA, MQA), sliding window, chunked, multi-head latent attention (MLA), and
constant state (Mamba, linear attention). A checkpoint's own headers tell its bytes; `estimated_parameters` is what is
left when nobody has them. Field names and defaults follow the models' own configuration classes.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from onecopy.core.errors import ModelError

Kind = Literal["full", "sliding", "chunked", "mla", "state"]

DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "int8": 1}
DSA_INDEX_SCALE_BYTES = 4
"""Sparse MLA (DeepSeek V3.2) keeps an FP8 index key and one FP32 scale a token beside the latent."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Layers of one kind that cache alike.

    heads: KV heads over all cards. elements: numbers cached a token and head, keys and values together.
    window: tokens, for sliding and chunked. state_bytes: a sequence's whole state in one layer, over all cards.
    extra_bytes: further bytes a token and layer that do not follow the cache's dtype and are not split over cards.
    """

    kind: Kind
    layers: int
    heads: int = 1
    elements: int = 0
    window: int | None = None
    state_bytes: int = 0
    extra_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Lengths in tokens, sizes in elements unless the name says bytes."""

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    vocab: int
    heads: int
    max_positions: int
    dtype_bytes: int
    """Of activations and of an unquantised KV cache. vLLM serves float32 checkpoints in 16 bits."""
    attention: tuple[Attention, ...]
    stored_bytes: float = 2.0
    """A parameter in the checkpoint, as far as the config says (quantisation)."""
    experts: int = 0
    experts_active: int = 0
    expert_intermediate: int = 0
    estimated_parameters: int = 0
    notes: tuple[str, ...] = field(default=())

    def kv_bytes_per_token(self, *, tensor_parallel: int = 1, kv_bytes: int | None = None) -> int:
        """Bytes one more token of a long sequence takes on each card; layers with a window no longer grow.

        kv_bytes: of one cached number, 1 under an FP8 cache; by default the model's dtype.
        """
        growing = [a for a in self.attention if a.kind in ("full", "mla")] or [
            a for a in self.attention if a.kind != "state"
        ]
        return sum(a.layers * self.layer_bytes(a, tensor_parallel, kv_bytes) for a in growing)

    def layer_bytes(self, kind: Attention, tensor_parallel: int, kv_bytes: int | None) -> int:
        """Bytes a token in one layer on one card. KV heads are split over cards, and copied when there are too few."""
        per_head = kind.elements * (kv_bytes or self.dtype_bytes)
        return max(1, math.ceil(kind.heads / tensor_parallel)) * per_head + kind.extra_bytes


def read_shape(path: Path) -> ModelShape:
    """From a config.json, or the folder it is in. Raises ModelError."""
    file = path / "config.json" if path.is_dir() else path
    try:
        config: Any = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise ModelError(f"no config.json at {file}", hint="pass --config PATH/config.json") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{file} is not a model's config.json: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} is not a model's config.json: it holds a {type(config).__name__}, not an object")
    return shape_of(cast(dict[str, Any], config))


def shape_of(config: dict[str, Any]) -> ModelShape:
    """Raises ModelError when a number that the memory depends on is missing or makes no sense."""
    notes: list[str] = []
    text = config
    for key in ("text_config", "language_config", "llm_config", "thinker_config"):
        if isinstance(text.get(key), dict):
            # An outer value (dtype, quantisation) holds for the inner model unless that one says otherwise.
            text = {**text, **cast(dict[str, Any], text[key])}
    if "vision_config" in config or "audio_config" in config:
        notes.append("multimodal: activations of the image or audio tower are not counted; leave more reserve")
    layers = _number(text, "num_hidden_layers", "n_layer", "n_layers", "num_layers")
    hidden = _number(text, "hidden_size", "n_embd", "d_model", "n_embed")
    heads = _number(text, "num_attention_heads", "n_head", "n_heads", "num_heads")
    head_dim = _optional(text, "head_dim") or hidden // heads
    intermediate = _optional(text, "intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim") or 4 * hidden
    experts = _optional(text, "n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts") or 0
    active = _optional(text, "num_experts_per_tok", "moe_topk", "num_experts_per_token") or (1 if experts else 0)
    dtype = str(text.get("torch_dtype") or text.get("dtype") or "bfloat16").removeprefix("torch.")
    stored, quantisation = _stored_bytes(config, text, dtype)
    if quantisation:
        notes.append(f"quantised ({quantisation}): weights counted as stored")
    attention = _attention(text, layers, hidden, heads, head_dim)
    if any(a.kind == "state" for a in attention):
        notes.append("constant-state layers: one state a running sequence, twice that with prefix caching")
    shape = ModelShape(
        architecture=str((config.get("architectures") or [text.get("model_type", "unknown")])[0]),
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        vocab=_optional(text, "vocab_size", "padded_vocab_size") or 0,
        heads=heads,
        max_positions=_max_positions(text),
        dtype_bytes=2,
        attention=attention,
        stored_bytes=stored,
        experts=experts,
        experts_active=active,
        expert_intermediate=(_optional(text, "moe_intermediate_size") or intermediate) if experts else 0,
        notes=tuple(notes),
    )
    return _with_parameters(shape, text, head_dim)


def _attention(text: dict[str, Any], layers: int, hidden: int, heads: int, head_dim: int) -> tuple[Attention, ...]:
    kv_heads = _kv_heads(text, heads)
    if rank := _optional(text, "kv_lora_rank"):
        index = _optional(text, "index_head_dim") if _optional(text, "index_topk") else None
        elements = rank + (_optional(text, "qk_rope_head_dim") or 0)
        extra = index + DSA_INDEX_SCALE_BYTES if index else 0
        latent = Attention("mla", layers, 1, elements, extra_bytes=extra)
        kinds = _layer_kinds(text, layers)
        if "state" not in kinds:
            return (latent,)
        count = Counter(kinds)
        state = Attention("state", count["state"], state_bytes=_state_bytes(text, hidden))
        return (Attention("mla", layers - count["state"], 1, elements), state)
    window = _optional(text, "sliding_window", "attention_chunk_size")
    kinds = _layer_kinds(text, layers)
    if shared := _optional(text, "num_kv_shared_layers"):
        kinds = kinds[: layers - shared]  # the last layers read the cache of earlier ones (Gemma 3n, Gemma 4)
    count = Counter(kinds)
    found: list[Attention] = []
    value_dim = _optional(text, "v_head_dim") or head_dim
    if count["full"]:
        # Gemma 4 gives its global layers heads of their own.
        own_dim, own_heads = _optional(text, "global_head_dim"), _optional(text, "num_global_key_value_heads")
        mixed = bool(own_dim) and len(count) > 1
        elements = 2 * own_dim if mixed and own_dim else head_dim + value_dim
        found.append(Attention("full", count["full"], own_heads if mixed and own_heads else kv_heads, elements))
    for kind in ("sliding", "chunked"):
        if count[kind]:
            size = _optional(text, "attention_chunk_size") if kind == "chunked" else window
            found.append(Attention(kind, count[kind], kv_heads, head_dim + value_dim, window=size))
    if count["state"]:
        found.append(Attention("state", count["state"], state_bytes=_state_bytes(text, hidden)))
    return tuple(found)


_LAYER_NAMES: dict[str, Kind | None] = {
    "full_attention": "full",
    "attention": "full",
    "hybrid": "full",
    "sliding_attention": "sliding",
    "sliding_window_attention": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": "state",
    "mamba": "state",
    "mamba2": "state",
    "recurrent": "state",
    "conv": "state",
    "moe": None,
    "mlp": None,
}


def _layer_kinds(text: dict[str, Any], layers: int) -> list[Kind]:
    """The cache of each layer, in order; layers without one are left out."""
    names = text.get("layer_types") or text.get("layers_block_type")
    if isinstance(names, list):
        listed = [str(name) for name in cast(list[Any], names)]
        for name in listed:
            if name not in _LAYER_NAMES:
                raise ModelError(
                    f"config.json: layer type {name!r} is not known to the planner",
                    hint="pass --kv-bytes-per-token with the engine's own figure",
                )
        return [kind for name in listed if (kind := _LAYER_NAMES[name]) is not None]
    if pattern := text.get("hybrid_override_pattern"):  # Nemotron-H: M mamba, * attention, - and E feed-forward
        return [("full" if mark == "*" else "state") for mark in str(pattern) if mark in "*M"]
    if isinstance(linear := text.get("linear_attn_config"), dict):  # Kimi Linear counts its layers from one
        states = set(cast(list[int], cast(dict[str, Any], linear).get("kda_layers", [])))
        return ["state" if i + 1 in states else "full" for i in range(layers)]
    if text.get("attention_chunk_size") and (every := _optional(text, "no_rope_layer_interval") or 4):
        return [("full" if (i + 1) % every == 0 else "chunked") for i in range(layers)]
    if not text.get("sliding_window") or text.get("use_sliding_window") is False:
        return ["full"] * layers
    model = str(text.get("model_type", ""))
    if every := _optional(text, "sliding_window_pattern", "_sliding_window_pattern"):
        return [("full" if (i + 1) % every == 0 else "sliding") for i in range(layers)]
    if model.startswith("gemma3"):
        return [("full" if (i + 1) % 6 == 0 else "sliding") for i in range(layers)]
    if model in ("gemma2", "gpt_oss"):
        return [("full" if i % 2 else "sliding") for i in range(layers)]
    if model.startswith("qwen2") and text.get("max_window_layers") is not None:
        first = int(text["max_window_layers"])
        return [("full" if i < first else "sliding") for i in range(layers)]
    return ["sliding"] * layers


def _state_bytes(text: dict[str, Any], hidden: int) -> int:
    """Of one sequence in one layer: convolution and recurrent state, in the dtypes that vLLM keeps them in."""
    wide = 4 if "32" in str(text.get("mamba_ssm_dtype") or text.get("mamba_ssm_cache_dtype") or "") else 2
    if values := _optional(text, "linear_num_value_heads"):  # Qwen3-Next, Qwen3.5: gated delta net
        keys = _optional(text, "linear_num_key_heads") or values
        key_dim, value_dim = _number(text, "linear_key_head_dim"), _number(text, "linear_value_head_dim")
        kernel = _optional(text, "linear_conv_kernel_dim") or 4
        return 2 * (kernel - 1) * (2 * keys * key_dim + values * value_dim) + wide * values * key_dim * value_dim
    linear = text.get("linear_attn_config")
    if isinstance(linear, dict):  # Kimi Linear: three short convolutions and a matrix a head
        table = cast(dict[str, Any], linear)
        heads, dim = _number(table, "num_heads"), _number(table, "head_dim")
        return 2 * ((_optional(table, "short_conv_kernel_size") or 4) - 1) * 3 * heads * dim + 4 * heads * dim * dim
    size = _optional(text, "mamba_d_state", "ssm_state_size", "state_size") or 16
    kernel = _optional(text, "mamba_d_conv", "conv_kernel") or 4
    if count := _optional(text, "mamba_n_heads", "mamba_num_heads"):  # Mamba 2
        inner = count * _number(text, "mamba_d_head", "mamba_head_dim")
        groups = _optional(text, "mamba_n_groups", "n_groups") or 1
        return 2 * (kernel - 1) * (inner + 2 * groups * size) + wide * inner * size
    inner = (_optional(text, "mamba_expand", "expand") or 2) * hidden  # Mamba 1
    return 2 * (kernel - 1) * inner + wide * inner * size


def _kv_heads(text: dict[str, Any], heads: int) -> int:
    if isinstance(table := text.get("attn_config"), dict):  # DBRX, MPT
        found = _optional(cast(dict[str, Any], table), "kv_n_heads")
        if found:
            return found
    if text.get("multi_query") and not text.get("new_decoder_architecture"):  # Falcon 7B, StarCoder
        return 1
    return _optional(text, "num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num") or heads


def _max_positions(text: dict[str, Any]) -> int:
    found = _optional(
        text, "max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length"
    )
    if found is None:
        return 2048
    scaling = text.get("rope_scaling") or text.get("rope_parameters")
    if isinstance(scaling, dict):
        table = cast(dict[str, Any], scaling)
        kind, original = table.get("rope_type", table.get("type")), table.get("original_max_position_embeddings")
        # YaRN models print the stretched length, except those that keep the original one in this very field.
        if kind == "yarn" and original and int(original) == found:
            return int(found * float(table.get("factor", 1)))
    return found


def _stored_bytes(config: dict[str, Any], text: dict[str, Any], dtype: str) -> tuple[float, str | None]:
    table = config.get("quantization_config") or text.get("quantization_config")
    if not isinstance(table, dict):
        return float(min(DTYPE_BYTES.get(dtype, 2), 2)), None
    quantisation = cast(dict[str, Any], table)
    method = str(quantisation.get("quant_method", "quantised"))
    if method in ("fp8", "fbgemm_fp8", "modelopt"):
        return 1.0, method
    if method == "mxfp4":
        return 4.25 / 8, method  # one 8-bit scale for 32 values
    bits = quantisation.get("bits") or quantisation.get("w_bit")
    if bits is None and isinstance(groups := quantisation.get("config_groups"), dict):
        for group in cast(dict[str, dict[str, Any]], groups).values():
            bits = cast(dict[str, Any], group.get("weights") or {}).get("num_bits")
    if bits is None:
        return 1.0, method
    # A scale and a zero point for each group of 128 values.
    width = float(cast(float, bits)) / 8
    return width * (1.03 if width < 1 else 1.0), method


def _with_parameters(shape: ModelShape, text: dict[str, Any], head_dim: int) -> ModelShape:
    """Counts the usual decoder's parameters: within a few per cent for dense and mixture models, norms left out."""
    kv = next((a for a in shape.attention if a.kind != "state"), None)
    hidden = shape.hidden
    if kv is not None and kv.kind == "mla":
        rank, rope = _number(text, "kv_lora_rank"), _optional(text, "qk_rope_head_dim") or 0
        nope, value = _optional(text, "qk_nope_head_dim") or head_dim, _optional(text, "v_head_dim") or head_dim
        queries = shape.heads * (nope + rope)
        q_rank = _optional(text, "q_lora_rank")
        attention = (hidden * q_rank + q_rank * queries) if q_rank else hidden * queries
        attention += hidden * (rank + rope) + rank * shape.heads * (nope + value) + shape.heads * value * hidden
    else:
        kv_heads = kv.heads if kv else shape.heads
        attention = 2 * hidden * head_dim * (shape.heads + kv_heads)
    gate = 2 if str(text.get("model_type", "")) in ("gpt2", "opt", "gpt_neox", "falcon", "bloom", "mpt") else 3
    dense = gate * hidden * shape.intermediate
    if shape.experts:
        skipped = _optional(text, "first_k_dense_replace") or 0
        shared = _optional(text, "n_shared_experts", "num_shared_experts") or 0
        wide = _optional(text, "shared_expert_intermediate_size") or shared * shape.expert_intermediate
        every = _optional(text, "interleave_moe_layer_step", "decoder_sparse_step") or 1
        moe_layers = (shape.layers - skipped) // every
        one = 3 * hidden * (shape.experts * shape.expert_intermediate + wide) + hidden * shape.experts
        dense_width = _optional(text, "intermediate_size_mlp") or shape.intermediate
        feed = moe_layers * one + (shape.layers - moe_layers) * gate * hidden * dense_width
    else:
        feed = shape.layers * dense
    tied = bool(text.get("tie_word_embeddings", str(text.get("model_type", "")).startswith("gemma")))
    total = shape.layers * attention + feed + shape.vocab * hidden * (1 if tied else 2)
    return replace(shape, estimated_parameters=total)


def _optional(table: dict[str, Any], *names: str) -> int | None:
    """The first of these that is set. Some configs give one value a layer: the largest counts."""
    for name in names:
        value: Any = table.get(name)
        if isinstance(value, list):
            numbers = [item for item in cast(list[Any], value) if isinstance(item, int)]
            value = max(numbers, default=None)
        if isinstance(value, bool) or value is None:
            continue
        if not isinstance(value, (int, float)) or value < 0:
            raise ModelError(f"config.json: {name} must be a number, not {value!r}")
        if value:
            return int(value)
    return None


def _number(table: dict[str, Any], *names: str) -> int:
    value = _optional(table, *names)
    if value is None:
        raise ModelError(
            f"config.json has no {names[0]}: the planner cannot size this model",
            hint="is this the config.json of a language model in Hugging Face layout?",
        )
    return value
