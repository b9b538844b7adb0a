"""The planner's promises, whatever the model: shares add up, refusals are right, suggestions hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from onecopy.core.errors import ModelError, UsageError
from onecopy.gpu import cards, find_card, plan_gpu, shape_of

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
LLAMA_8B_BYTES = 16_060_522_496
TINY = LLAMA_8B | {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 2048,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}
TINY_BYTES = 2_200_119_864


def test_two_small_replicas_share_one_card() -> None:
    plan = plan_gpu(shape_of(TINY), card=find_card("L4"), weights_bytes=TINY_BYTES, replicas=2)
    assert plan.fits
    assert plan.gpu_memory_utilization is not None
    assert plan.kv_cache_memory_bytes is not None
    assert 0.4 <= plan.gpu_memory_utilization < 0.5
    assert plan.max_model_len == 2048
    assert plan.start.order == "one after another"
    assert plan.start.rollout == "Recreate"
    assert f"--kv-cache-memory-bytes={plan.kv_cache_memory_bytes}" in plan.vllm_args()


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 5])
def test_shares_never_add_up_to_more_than_the_card(replicas: int) -> None:
    card = find_card("L4")
    plan = plan_gpu(shape_of(TINY), card=card, weights_bytes=TINY_BYTES, replicas=replicas)
    assert plan.fits
    terms = ("weights", "activations", "graphs", "libraries", "context", "kv_cache")
    assert replicas * sum(plan.memory[term] for term in terms) < card.usable
    assert plan.gpu_memory_utilization is not None
    # vLLM refuses to start when less than its share is free: the last one must still find it.
    others = (replicas - 1) * sum(plan.memory[term] for term in terms)
    assert card.usable - others - plan.memory["context"] >= plan.gpu_memory_utilization * card.usable


def test_what_is_said_to_fit_most_fits_and_one_more_does_not() -> None:
    shape, card = shape_of(TINY), find_card("L4")
    most = plan_gpu(shape, card=card, weights_bytes=TINY_BYTES).max_replicas_per_card
    assert plan_gpu(shape, card=card, weights_bytes=TINY_BYTES, replicas=most).fits
    assert not plan_gpu(shape, card=card, weights_bytes=TINY_BYTES, replicas=most + 1).fits


def test_a_refusal_names_the_shortage_and_what_would_do() -> None:
    plan = plan_gpu(shape_of(LLAMA_8B), card=find_card("L4"), weights_bytes=LLAMA_8B_BYTES, replicas=2)
    assert not plan.fits
    assert plan.gpu_memory_utilization is None
    assert plan.kv_cache_memory_bytes is None
    assert "14.96 GiB" in plan.reason
    assert "L4" in plan.reason
    changes = [s.change for s in plan.suggestions]
    assert any("1 replica" in change for change in changes)
    assert any("bigger card" in change for change in changes)
    for suggestion in plan.suggestions:
        again = plan_gpu(
            shape_of(LLAMA_8B),
            card=find_card(suggestion.gpu),
            weights_bytes=LLAMA_8B_BYTES,
            replicas=suggestion.replicas,
            tensor_parallel=suggestion.tensor_parallel,
            kv_cache_dtype=suggestion.kv_cache_dtype,
            max_model_len=suggestion.max_model_len,
        )
        assert again.fits, suggestion


def test_a_context_that_is_too_long_is_offered_shorter_and_in_fp8() -> None:
    question = {"card": find_card("L4"), "weights_bytes": LLAMA_8B_BYTES, "max_model_len": 40_000}
    plan = plan_gpu(shape_of(LLAMA_8B), **question)
    assert not plan.fits
    assert "40000 are needed" in plan.reason
    assert {s.kv_cache_dtype for s in plan.suggestions} == {"auto", "fp8"}
    assert plan_gpu(shape_of(LLAMA_8B), **question, kv_cache_dtype="fp8").fits


def test_fp8_halves_and_tensor_parallel_splits_the_cache() -> None:
    shape = shape_of(LLAMA_8B)
    assert shape.kv_bytes_per_token() == 131_072
    assert shape.kv_bytes_per_token(kv_bytes=1) == 65_536
    assert shape.kv_bytes_per_token(tensor_parallel=4) == 32_768
    # Eight KV heads over sixteen cards are copied, not split further.
    assert shape.kv_bytes_per_token(tensor_parallel=16) == shape.kv_bytes_per_token(tensor_parallel=8)


def test_every_card_in_the_catalogue_says_where_it_comes_from() -> None:
    names = [card.name for card in cards()]
    assert len(names) == len(set(names))
    for card in cards():
        assert card.usable < card.memory
        assert card.source
        assert card.checked


@pytest.mark.parametrize(
    ("change", "named"),
    [({"num_hidden_layers": None}, "num_hidden_layers"), ({"num_hidden_layers": "x"}, "num_hidden_layers")],
)
def test_a_config_without_what_is_needed_is_refused(change: dict[str, object], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        shape_of(LLAMA_8B | change)


def test_questions_that_make_no_sense_are_usage_errors() -> None:
    shape = shape_of(LLAMA_8B)
    with pytest.raises(UsageError, match="cannot be split over 3"):
        plan_gpu(shape, card=find_card("L4"), tensor_parallel=3)
    with pytest.raises(UsageError, match="unknown GPU"):
        find_card("L5")


def test_the_command_prints_the_plan_as_json(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(TINY))
    command = [sys.executable, "-m", "onecopy", "gpu", "plan", "--config", str(config), "--json", "--gpu", "L4"]
    done = subprocess.run(
        [*command, "--weights-bytes", str(TINY_BYTES), "--replicas", "2"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["fits"] is True
    assert {"gpu_memory_utilization", "kv_cache_memory_bytes", "max_model_len", "reason", "concurrency"} <= plan.keys()
    refused = subprocess.run(
        [*command, "--weights-bytes", "140GB", "--replicas", "2"], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["fits"] is False
