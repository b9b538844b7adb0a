"""Small checkpoints in Hugging Face layout, for every suite that needs one. No torch: the format is simple enough."""

from __future__ import annotations

import json
import random
from pathlib import Path


def safetensors(tensors: dict[str, int], seed: int = 0) -> bytes:
    """A safetensors file: name → number of BF16 elements."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, count in tensors.items():
        header[name] = {"dtype": "BF16", "shape": [count], "data_offsets": [at, at + 2 * count]}
        at += 2 * count
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw + random.Random(seed).randbytes(at)


def checkpoint(folder: Path, *, shards: int = 2, elements: int = 5000, seed: int = 0) -> Path:
    """config.json, tokenizer.json, an index and `shards` files of about 2 × `elements` bytes. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "seed": seed}))
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    (folder / "README.md").write_text("not needed to serve")
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        names = {
            f"layer.{shard}.{part}": count for part, count in (("a", elements // 2), ("b", elements - elements // 2))
        }
        (folder / name).write_bytes(safetensors(names, seed * 1000 + shard))
        weight_map.update(dict.fromkeys(names, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
