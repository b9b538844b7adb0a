"""What each replica says it served: its own counters, read before and after. The router's word is not taken for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import httpx2
from prometheus_client.parser import text_string_to_metric_families

REQUESTS = "vllm:request_success_total"
"""One for each finished request, by reason; failed and aborted ones included under their own reason."""
FAMILIES = {
    "requests": REQUESTS,
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generation_tokens": "vllm:generation_tokens_total",
    "prefix_queries": "vllm:prefix_cache_queries_total",
    "prefix_hits": "vllm:prefix_cache_hits_total",
}
SETTLE_SECONDS = 3.0
"""A replica counts a request some milliseconds after its last byte was sent; wait at most this long for it."""
PROBE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Replica:
    name: str
    endpoint: str
    """Its own address, without the router: http://host:port."""


@dataclass(frozen=True, slots=True)
class Share:
    """One replica's part in a run. Counts are None when its counters could not be read before or after."""

    name: str
    endpoint: str
    served: int | None
    share: float | None
    """Of all requests that all replicas served."""
    prompt_tokens: int | None = None
    generation_tokens: int | None = None
    prefix_hit_rate: float | None = None
    restarted: bool = False
    """Its counters went back: what it served before the restart is lost, so `served` is the least it can be."""
    error: str | None = None


Reading = Mapping[str, float] | str
"""Counter → value, or why they could not be read."""


def parse(text: str) -> dict[str, float]:
    """The counters of FAMILIES in a Prometheus text, summed over their labels."""
    wanted = {metric: key for key, metric in FAMILIES.items()}
    totals = dict.fromkeys(FAMILIES, 0.0)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if key := wanted.get(sample.name):
                totals[key] += sample.value
    return totals


async def read(client: httpx2.AsyncClient, replicas: Sequence[Replica]) -> dict[str, Reading]:
    """Name → reading, all replicas at once."""
    readings = await asyncio.gather(*(_one(client, replica) for replica in replicas))
    return {replica.name: reading for replica, reading in zip(replicas, readings, strict=True)}


async def settled(
    client: httpx2.AsyncClient, replicas: Sequence[Replica], before: Mapping[str, Reading], expected: int
) -> dict[str, Reading]:
    """Reads until `expected` more requests are counted than `before`, or SETTLE_SECONDS are over."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        after = await read(client, replicas)
        counted = sum(share.served or 0 for share in shares(replicas, before, after))
        if counted >= expected or time.monotonic() > deadline:
            return after
        await asyncio.sleep(0.1)


def shares(replicas: Sequence[Replica], before: Mapping[str, Reading], after: Mapping[str, Reading]) -> list[Share]:
    rows = [_share(replica, before[replica.name], after[replica.name]) for replica in replicas]
    total = sum(row.served or 0 for row in rows)
    if not total:
        return rows
    return [replace(row, share=None if row.served is None else row.served / total) for row in rows]


def fairness(rows: Sequence[Share]) -> float | None:
    """Jain's index over what the replicas served: 1 when all the same, 1/n when one did all. None when unknown."""
    served = [row.served for row in rows if row.served is not None]
    if len(served) != len(rows) or not any(served):
        return None
    return sum(served) ** 2 / (len(served) * sum(count**2 for count in served))


def _share(replica: Replica, before: Reading, after: Reading) -> Share:
    if isinstance(after, str):
        return Share(replica.name, replica.endpoint, None, None, error=after)
    start: Mapping[str, float] = {} if isinstance(before, str) else before
    restarted = any(after[key] < start.get(key, 0) for key in FAMILIES)
    grown = {key: int(after[key] - (0 if restarted else start.get(key, 0))) for key in FAMILIES}
    if isinstance(before, str) and not restarted:
        return Share(replica.name, replica.endpoint, None, None, error=f"before the run: {before}")
    return Share(
        replica.name,
        replica.endpoint,
        served=grown["requests"],
        share=None,
        prompt_tokens=grown["prompt_tokens"],
        generation_tokens=grown["generation_tokens"],
        prefix_hit_rate=grown["prefix_hits"] / grown["prefix_queries"] if grown["prefix_queries"] else None,
        restarted=restarted,
    )


async def _one(client: httpx2.AsyncClient, replica: Replica) -> Reading:
    try:
        answer = await client.get(f"{replica.endpoint.rstrip('/')}/metrics", timeout=PROBE_SECONDS)
    except httpx2.HTTPError as error:
        return f"{type(error).__name__}: {error}".rstrip(": ")
    if answer.status_code != 200:
        return f"/metrics answered {answer.status_code}"
    try:
        return parse(answer.text)
    except ValueError as error:
        return f"/metrics is not in Prometheus' format: {error}"
