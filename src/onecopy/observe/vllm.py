"""A vLLM server's own counters, as its /metrics gives them (names as of vLLM 0.30 and later)."""

from __future__ import annotations

import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from onecopy.observe.snapshot import Counters

NAMES = {
    "vllm:request_success_total": "requests",
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:prompt_tokens_total": "prompt_tokens",
    "vllm:generation_tokens_total": "generation_tokens",
    "vllm:kv_cache_usage_perc": "kv_use",
}


def parse(text: str) -> Counters:
    """Sums over labels and engines; what is missing counts as 0."""
    totals = dict.fromkeys(NAMES.values(), 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if name := NAMES.get(sample.name):
                totals[name] += sample.value
    kv_use = totals.pop("kv_use")
    return Counters(**{name: int(value) for name, value in totals.items()}, kv_use=kv_use)


def read(endpoint: str, timeout: float = 1.0) -> Counters | None:
    """None when the server does not answer in time, or not with metrics."""
    try:
        with urllib.request.urlopen(f"{endpoint}/metrics", timeout=timeout) as answer:  # noqa: S310 - a replica's own http address
            return parse(answer.read().decode())
    except (OSError, ValueError, urllib.error.URLError):
        return None
