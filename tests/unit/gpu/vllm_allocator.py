"""Prints what vLLM's own allocator reserves for one request. Run by a Python that has vLLM; not imported by tests.

stdin: a list of {layers: [[kind, count, KV heads, head size, window], …], tokens, batched_tokens}.
stdout: a list of bytes. Uses internals (`get_kv_cache_groups`), so it holds for the version that the engine pins.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace


def main() -> None:
    import torch
    from vllm.v1.core.kv_cache_utils import _pool_bytes_per_block, get_kv_cache_groups
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec
    from vllm.v1.kv_cache_layout import KVCacheLayout

    def spec(kind: str, heads: int, size: int, window: int | None):
        common = {"block_size": 16, "num_kv_heads": heads, "head_size": size, "dtype": torch.bfloat16}
        if kind == "sliding":
            return SlidingWindowSpec(**common, sliding_window=window)
        return (MLAAttentionSpec if kind == "mla" else FullAttentionSpec)(**common)

    found = []
    for case in json.load(sys.stdin):
        config = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=case["tokens"]),
            parallel_config=SimpleNamespace(decode_context_parallel_size=1, tensor_parallel_size=1),
            scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False),
            max_in_flight_tokens=2 * case["batched_tokens"],
            cache_config=SimpleNamespace(get_resolved_kv_cache_layout=lambda: KVCacheLayout.LBNHC),
            speculative_config=None,
        )
        layers = {}
        for kind, count, heads, size, window in case["layers"]:
            for _ in range(count):
                layers[f"layer.{len(layers)}"] = spec(kind, heads, size, window)
        groups = get_kv_cache_groups(config, layers)
        blocks = sum(
            -(-g.kv_cache_spec.max_memory_usage_bytes(config) // g.kv_cache_spec.page_size_bytes) for g in groups
        )
        found.append(blocks * _pool_bytes_per_block(config, groups))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
