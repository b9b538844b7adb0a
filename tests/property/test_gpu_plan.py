"""Whatever the model and the card: what the planner promises must be there."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from onecopy.gpu import cards, plan_gpu, shape_of
from onecopy.gpu.memory import Serving, longest_request, request_bytes

TERMS = ("weights", "activations", "graphs", "libraries", "context", "kv_cache")


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    heads = draw(st.sampled_from([8, 16, 32, 64]))
    config: dict[str, Any] = {
        "architectures": ["AnyForCausalLM"],
        "num_hidden_layers": draw(st.integers(2, 80)),
        "hidden_size": heads * draw(st.sampled_from([64, 128])),
        "intermediate_size": draw(st.integers(256, 30000)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([1, 2, 4, 8])),
        "vocab_size": draw(st.integers(1000, 260_000)),
        "max_position_embeddings": draw(st.integers(64, 262_144)),
    }
    kind = draw(st.sampled_from(["full", "window", "mixed", "mla"]))
    if kind in ("window", "mixed"):
        config["sliding_window"] = draw(st.integers(16, 8192))
    if kind == "mixed":
        names = st.sampled_from(["full_attention", "sliding_attention"])
        count = config["num_hidden_layers"]
        config["layer_types"] = draw(st.lists(names, min_size=count, max_size=count))
    if kind == "mla":
        config |= {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
    return config


@given(
    configs(),
    st.sampled_from(cards()),
    st.integers(10**8, 10**11),
    st.integers(1, 8),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from(["auto", "fp8"]),
)
def test_a_plan_that_fits_fits(
    config: dict[str, Any], card: Any, weights: int, replicas: int, tp: int, kv: Any
) -> None:
    shape = shape_of(config)
    plan = plan_gpu(
        shape, card=card, weights_bytes=weights, replicas=replicas, tensor_parallel=tp, kv_cache_dtype=kv, suggest=False
    )
    if not plan.fits:
        assert plan.gpu_memory_utilization is None
        assert plan.kv_cache_memory_bytes is None
        assert plan.reason
        assert plan.max_replicas_per_card < replicas
        return
    assert plan.max_replicas_per_card >= replicas
    assert plan.kv_cache_memory_bytes == plan.memory["kv_cache"] > 0
    used = sum(plan.memory[term] for term in TERMS)
    assert replicas * used < card.usable
    assert plan.gpu_memory_utilization is not None
    assert card.usable - (replicas - 1) * used - plan.memory["context"] >= plan.gpu_memory_utilization * card.usable
    assert plan.max_model_len is not None
    assert plan.max_model_len <= shape.max_positions
    assert plan.concurrency is not None
    assert plan.concurrency >= 1
    serving = Serving(tp, kv, plan.max_num_batched_tokens, plan.max_num_seqs)
    assert request_bytes(shape, plan.max_model_len, serving) <= plan.kv_cache_memory_bytes


@given(configs(), st.integers(1, 200_000), st.integers(1, 200_000))
def test_a_longer_request_never_takes_less(config: dict[str, Any], a: int, b: int) -> None:
    shape, serving = shape_of(config), Serving()
    short, long = sorted((a, b))
    assert request_bytes(shape, short, serving) <= request_bytes(shape, long, serving)


@given(configs(), st.integers(0, 10**11))
def test_the_longest_request_fits_and_one_block_more_does_not(config: dict[str, Any], room: int) -> None:
    shape, serving = shape_of(config), Serving()
    longest = longest_request(shape, room, serving, limit=shape.max_positions)
    assert 0 <= longest <= shape.max_positions
    if longest:
        assert request_bytes(shape, longest, serving) <= room
    if longest < shape.max_positions:
        assert request_bytes(shape, min(longest + 16, shape.max_positions), serving) > room
