"""Tiny checkpoints with random weights, in the shapes of real families, and with the sample's tokenizer.

Weights are large enough for predictions to be far from uniform, so that a wrong tensor is seen in every figure.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 49152
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tiny:
    """family: llama, qwen2 (biases on q, k, v) or qwen3 (norms on q, k). shards: files. dtype: of the files."""

    family: str = "llama"
    layers: int = 2
    hidden: int = 128
    intermediate: int = 256
    heads: int = 4
    kv_heads: int = 2
    tied: bool = False
    shards: int = 1
    dtype: str = "BF16"
    quantization: str | None = None
    seed: int = 0
    order: str = "name"
    """Order of tensors in a file: `name`, as most tools write, or `model`, which keeps q, k, v side by side."""

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


def write(folder: Path, tiny: Tiny, tokenizer_from: Path) -> Path:
    """A Hugging Face folder. The shards have an index; there is a file that is no weight as well."""
    folder.mkdir(parents=True)
    for name in TOKENIZER:
        shutil.copyfile(tokenizer_from / name, folder / name)
    (folder / "README.md").write_text("A tiny random model.\n")
    (folder / "config.json").write_text(json.dumps(_config(tiny), indent=1))
    tensors = _tensors(tiny)
    names = sorted(tensors) if tiny.order == "name" else list(tensors)
    files: dict[str, list[str]] = {}
    for at, name in enumerate(names):
        shard = at * tiny.shards // len(names) + 1
        file = "model.safetensors" if tiny.shards == 1 else f"model-{shard:05d}-of-{tiny.shards:05d}.safetensors"
        files.setdefault(file, []).append(name)
    for file, members in files.items():
        _write_safetensors(folder / file, {name: tensors[name] for name in members})
    if tiny.shards > 1:
        index = {"metadata": {}, "weight_map": {name: file for file, members in files.items() for name in members}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _config(tiny: Tiny) -> dict[str, Any]:
    architecture = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    config: dict[str, Any] = {
        "architectures": [architecture[tiny.family]],
        "model_type": tiny.family,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": tiny.hidden,
        "intermediate_size": tiny.intermediate,
        "max_position_embeddings": 512,
        "num_attention_heads": tiny.heads,
        "num_hidden_layers": tiny.layers,
        "num_key_value_heads": tiny.kv_heads,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tiny.tied,
        "torch_dtype": "float32" if tiny.dtype == "F32" else "bfloat16",
        "vocab_size": VOCABULARY,
    }
    if tiny.family != "llama":
        config["head_dim"] = tiny.head_size
    if tiny.quantization == "int8":
        scheme = {"num_bits": 8, "type": "int", "symmetric": True}
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "ignore": ["lm_head"],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": scheme | {"strategy": "channel", "dynamic": False},
                    "input_activations": scheme | {"strategy": "token", "dynamic": True},
                }
            },
        }
    return config


@dataclass
class _Tensor:
    dtype: str
    array: Array
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.shape = self.array.shape


def _tensors(tiny: Tiny) -> dict[str, _Tensor]:
    random = np.random.default_rng(tiny.seed)
    wide, narrow = tiny.heads * tiny.head_size, tiny.kv_heads * tiny.head_size
    found: dict[str, _Tensor] = {}

    def add(name: str, *shape: int, scale: float) -> None:
        found[name] = _encode((random.standard_normal(shape) * scale).astype(np.float32), tiny.dtype)

    def linear(name: str, rows: int, columns: int, *, bias: bool = False) -> None:
        if tiny.quantization == "int8":
            values = random.integers(-127, 128, (rows, columns)).astype(np.int8)
            found[f"{name}.weight"] = _Tensor("I8", values)
            found[f"{name}.weight_scale"] = _encode(np.full((rows, 1), 1.6 / 127 / columns**0.5, np.float32), "F32")
        else:
            add(f"{name}.weight", rows, columns, scale=columns**-0.5)
        if bias:
            add(f"{name}.bias", rows, scale=0.5)

    def norm(name: str, size: int) -> None:
        found[name] = _encode((1 + 0.2 * random.standard_normal(size)).astype(np.float32), tiny.dtype)

    add("model.embed_tokens.weight", VOCABULARY, tiny.hidden, scale=0.3)
    for layer in range(tiny.layers):
        prefix = f"model.layers.{layer}"
        norm(f"{prefix}.input_layernorm.weight", tiny.hidden)
        for part, rows in (("q", wide), ("k", narrow), ("v", narrow)):
            linear(f"{prefix}.self_attn.{part}_proj", rows, tiny.hidden, bias=tiny.family == "qwen2")
        linear(f"{prefix}.self_attn.o_proj", tiny.hidden, wide)
        if tiny.family == "qwen3":
            norm(f"{prefix}.self_attn.q_norm.weight", tiny.head_size)
            norm(f"{prefix}.self_attn.k_norm.weight", tiny.head_size)
        norm(f"{prefix}.post_attention_layernorm.weight", tiny.hidden)
        linear(f"{prefix}.mlp.gate_proj", tiny.intermediate, tiny.hidden)
        linear(f"{prefix}.mlp.up_proj", tiny.intermediate, tiny.hidden)
        linear(f"{prefix}.mlp.down_proj", tiny.hidden, tiny.intermediate)
    norm("model.norm.weight", tiny.hidden)
    if not tiny.tied:
        add("lm_head.weight", VOCABULARY, tiny.hidden, scale=tiny.hidden**-0.5)
    return found


def _encode(values: Array, dtype: str) -> _Tensor:
    if dtype == "F32":
        return _Tensor("F32", values)
    bits = np.ascontiguousarray(values).view(np.uint32)
    return _Tensor("BF16", ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2"))


def _write_safetensors(path: Path, tensors: Mapping[str, _Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.array.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.array.tobytes())
