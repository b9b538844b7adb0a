"""A script, run by the tools' Python: the GGUF file inside a package → a Hugging Face folder in bf16.

Only what SmolLM2 needs: Llama architecture, byte-level BPE with single digits, tied embeddings. It imports nothing of
onecopy. usage: gguf_to_hf.py PACKAGE FOLDER; prints one JSON object.
"""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def main(package: str, folder: Path) -> None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"no package {package}")
    source = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    reader = gguf.GGUFReader(source)
    field = {name: value.contents() for name, value in reader.fields.items() if not name.startswith("tokenizer.ggml.m")}
    field["merges"] = reader.fields["tokenizer.ggml.merges"].contents()
    if field["general.architecture"] != "llama" or field["tokenizer.ggml.pre"] != "smollm":
        sys.exit(f"{source.name}: not the model that this script knows")
    folder.mkdir(parents=True)
    for name, value in {
        "config.json": config(field),
        "generation_config.json": generation_config(field),
        "tokenizer.json": tokenizer(field),
        "tokenizer_config.json": tokenizer_config(field),
    }.items():
        (folder / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    size, count = weights(reader, field, folder / "model.safetensors")
    print(json.dumps({"bytes": size, "tensors": count}))


def config(field: dict) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": field["tokenizer.ggml.bos_token_id"],
        "eos_token_id": field["tokenizer.ggml.eos_token_id"],
        "hidden_act": "silu",
        "hidden_size": field["llama.embedding_length"],
        "initializer_range": 1 / 24,
        "intermediate_size": field["llama.feed_forward_length"],
        "max_position_embeddings": field["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": field["llama.attention.head_count"],
        "num_hidden_layers": field["llama.block_count"],
        "num_key_value_heads": field["llama.attention.head_count_kv"],
        "pad_token_id": field["tokenizer.ggml.padding_token_id"],
        "pretraining_tp": 1,
        "rms_norm_eps": float(f"{field['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_scaling": None,
        "rope_theta": round(field["llama.rope.freq_base"]),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": field["llama.vocab_size"],
    }


def generation_config(field: dict) -> dict:
    names = ("bos_token_id", "eos_token_id")
    return {name: field[f"tokenizer.ggml.{name}"] for name in names} | {
        "pad_token_id": field["tokenizer.ggml.padding_token_id"]
    }


def special_tokens(field: dict) -> list[dict]:
    control = 3  # GGUF's token type of special tokens
    types = field["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokens = enumerate(field["tokenizer.ggml.tokens"])
    return [{"id": index, "content": text, **flags} for index, text in tokens if types[index] == control]


def tokenizer(field: dict) -> dict:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special_tokens(field),
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: index for index, text in enumerate(field["tokenizer.ggml.tokens"])},
            "merges": field["merges"],
        },
    }


def tokenizer_config(field: dict) -> dict:
    tokens = field["tokenizer.ggml.tokens"]
    special = special_tokens(field)
    flags = [{key: value for key, value in token.items() if key != "id"} for token in special]
    bos, eos = tokens[field["tokenizer.ggml.bos_token_id"]], tokens[field["tokenizer.ggml.eos_token_id"]]
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(token["id"]): flag for token, flag in zip(special, flags, strict=True)},
        "additional_special_tokens": [bos, eos],
        "bos_token": bos,
        "chat_template": field["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "model_max_length": field["llama.context_length"],
        "pad_token": tokens[field["tokenizer.ggml.padding_token_id"]],
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": tokens[field["tokenizer.ggml.unknown_token_id"]],
        "vocab_size": field["llama.vocab_size"],
    }


def weights(reader: gguf.GGUFReader, field: dict, path: Path) -> tuple[int, int]:
    """One safetensors file, tensors in the model's order. Returns its size and the number of tensors."""
    heads = {"attn_q": field["llama.attention.head_count"], "attn_k": field["llama.attention.head_count_kv"]}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    parts = {"model.embed_tokens.weight": ("token_embd.weight", 0)}
    for layer in range(field["llama.block_count"]):
        for part, name in LAYER.items():
            parts[f"model.layers.{layer}.{name}.weight"] = (f"blk.{layer}.{part}.weight", heads.get(part, 0))
    parts["model.norm.weight"] = ("output_norm.weight", 0)
    if {source for source, _ in parts.values()} != set(tensors):
        sys.exit("the GGUF file has other tensors than a tied Llama model")
    header: dict = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (source, _) in parts.items():
        shape = [int(size) for size in reversed(tensors[source].shape)]
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for source, head_count in parts.values():
            tensor = tensors[source]
            values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            file.write(bf16(unpermute(values, head_count) if head_count else values).tobytes())
    return path.stat().st_size, len(parts)


def unpermute(values: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the rotary halves of q and k interleaved; Hugging Face keeps them one after the other."""
    rows, columns = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def bf16(values: np.ndarray) -> np.ndarray:
    """float32 → bfloat16 bits, rounded to nearest even, as torch does."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
