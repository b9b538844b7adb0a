"""The planner drives the values: from a published revision in a real store to the arguments of replicas that share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import checkpoint

from onecopy.config.schema import StackConfig
from onecopy.core.errors import ConfigError
from onecopy.core.units import GiB
from onecopy.gpu import find_card
from onecopy.registry import publish
from onecopy.registry.sources import open_source
from onecopy.storage.objectstore import open_store
from onecopy.storage.uri import StoreUri
from onecopy.targets.kubernetes import models, releases
from onecopy.targets.kubernetes.stack import Stack, check_shares, make_stack

SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}


@pytest.fixture
def store(tmp_path: Path) -> StoreUri:
    """A store with the model `tiny` in it."""
    folder = checkpoint(tmp_path / "tiny")
    (folder / "config.json").write_text(json.dumps(SHAPE))
    uri = StoreUri.parse(f"file://{tmp_path}/store")
    publish.publish(open_source(str(folder)), open_store(uri), "tiny")
    return uri


def made(store: StoreUri, model: dict[str, Any] | None = None, **gpu: Any) -> Stack:
    config = StackConfig.model_validate(
        {
            "name": "chat",
            "target": "kubernetes",
            "store": {"uri": "s3://weights/prod"},
            "models": [{"name": "tiny", "source": "hf://org/tiny", **(model or {})}],
            "kubernetes": {"cloud": "none", "identity": {"kind": "secret", "reader": "keys"}, "gpu": gpu},
        }
    )
    found = models.find(config, store, {}, ask_store=True)
    stack = make_stack(config, StoreUri.parse("s3://weights/prod"), found.models)
    check_shares(stack)
    return stack


def spec(stack: Stack) -> Any:
    (found,) = releases.serving_values(stack).servingEngineSpec.modelSpec
    return found


def argument(stack: Stack, name: str) -> int:
    args = releases.engine_args(stack, stack.models[0])
    return int(args[args.index(name) + 1])


def test_replicas_that_share_a_card_get_their_settings(store: StoreUri) -> None:
    stack = made(store, card="L4", replicas_per_card=2)
    values = spec(stack).vllmConfig
    assert values.maxModelLen == 8192
    assert 2 * values.gpuMemoryUtilization < 1
    kv = argument(stack, "--kv-cache-memory-bytes")
    assert 2 * GiB < kv < find_card("L4").usable / 2
    assert argument(stack, "--max-num-seqs") == 256


def test_a_replica_alone_is_only_checked(store: StoreUri) -> None:
    alone, unnamed = made(store, card="L4"), made(store)
    assert spec(alone) == spec(unnamed)
    assert "--kv-cache-memory-bytes" not in releases.engine_args(alone, alone.models[0])


def test_what_does_not_fit_is_refused_with_what_would(store: StoreUri) -> None:
    with pytest.raises(ConfigError, match=r"tiny does not fit on kubernetes.gpu.card T4") as refused:
        made(store, {"max_model_len": 131_072}, card="T4", replicas_per_card=8)
    assert "replica(s) instead of 8" in (refused.value.hint or "")


def test_sharing_without_a_plan_is_refused(store: StoreUri) -> None:
    with pytest.raises(ConfigError, match="measuring each other"):
        made(store, replicas_per_card=2)
    by_hand = made(store, {"kv_cache_bytes": 1 << 30}, card="L4", replicas_per_card=2)
    assert argument(by_hand, "--kv-cache-memory-bytes") == 1 << 30


def test_an_fp8_cache_among_the_arguments_is_planned_as_one(store: StoreUri) -> None:
    model = {"engine_args": ["--kv-cache-dtype", "fp8"]}
    stack = made(store, model, card="L4", replicas_per_card=2)
    assert stack.models[0].gpu is not None
    assert stack.models[0].gpu.kv_cache_dtype == "fp8"
