"""The GPU planner's answer for a model on the cards of this stack: refuses what cannot fit, sets replicas that share.

It reads the config.json of the published revision, so it needs the store at plan time. A replica that has its cards
alone is only checked: there vLLM's own measurement is the better figure, and a plan made without access to the store
must not differ from one made with it. Replicas that share a card cannot measure; their settings come from here.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

from onecopy.config.kubernetes import GpuConfig
from onecopy.config.schema import ModelConfig
from onecopy.core.errors import ConfigError, ModelError
from onecopy.gpu import GpuPlan, find_card, plan_gpu, shape_of
from onecopy.gpu.checkpoint import served_bytes
from onecopy.gpu.memory import KvDtype
from onecopy.storage.layout import revision_prefix
from onecopy.storage.store import Store
from onecopy.weights.manifest import Manifest


def planned(gpu: GpuConfig, model: ModelConfig, store: Store, manifest: Manifest) -> GpuPlan | None:
    """None when no card is named, or when the configuration sizes the KV cache itself.

    Raises ConfigError for a model that does not fit, with what would do.
    """
    if gpu.card is None or gpu.count == 0 or model.kv_cache_bytes is not None:
        return None
    key = f"{revision_prefix(manifest.model, manifest.revision)}/config.json"
    data, _ = store.get(key)
    try:
        config: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise ModelError(f"{key} is not a model's config.json: {error}") from error
    plan = plan_gpu(
        shape_of(config),
        card=find_card(gpu.card),
        weights_bytes=served_bytes(manifest),
        replicas=gpu.replicas_per_card,
        gpus=gpu.count,
        tensor_parallel=gpu.count,
        kv_cache_dtype=_kv_dtype(model.engine_args),
        max_model_len=model.max_model_len,
    )
    if not plan.fits:
        would = "; ".join(suggestion.change for suggestion in plan.suggestions)
        raise ConfigError(
            f"{manifest.model} does not fit on kubernetes.gpu.card {gpu.card}: {plan.reason}",
            hint=f"what would do: {would}" if would else "no card that is known holds it; use tensor parallel",
        )
    return plan if gpu.replicas_per_card > 1 else None


def shared_args(plan: GpuPlan) -> list[str]:
    """For `vllm serve`, beside the length and the share that the chart has keys for."""
    return [
        "--kv-cache-memory-bytes",
        str(plan.kv_cache_memory_bytes),
        "--max-num-seqs",
        str(plan.max_num_seqs),
        "--max-num-batched-tokens",
        str(plan.max_num_batched_tokens),
    ]


def _kv_dtype(args: Sequence[str]) -> KvDtype:
    """As the engine's further arguments have it: `--kv-cache-dtype fp8` or `--kv-cache-dtype=fp8_e5m2`."""
    words = " ".join(args).replace("=", " ").split()
    after = dict(itertools.pairwise(words))
    return "fp8" if after.get("--kv-cache-dtype", "").startswith("fp8") else "auto"
