"""One run: warm up, read the counters, play the sessions at their times, read the counters again, report."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import httpx2

from onecopy.core.redact import Secret
from onecopy.loadtest import counters
from onecopy.loadtest.arrivals import Arrivals
from onecopy.loadtest.client import Sample, Served, ask, base_url, discover, new_client
from onecopy.loadtest.report import Report, build
from onecopy.loadtest.slo import Slo
from onecopy.loadtest.workload import Session, Workload, sessions

WARMUP_SEED = 1 << 20
"""Warm-up asks other things than the run, so that it fills no prefix cache for it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does. concurrency: sessions under way at once (None, for the open patterns: no limit)."""

    endpoint: str
    model: str | None = None
    requests: int = 100
    concurrency: int | None = 8
    workload: Workload = field(default_factory=Workload)
    arrivals: Arrivals = field(default_factory=Arrivals)
    warmup: int = 0
    """Requests before the run that are not counted."""
    slo: Slo = field(default_factory=Slo)
    timeout: float = 120.0
    """Seconds without a byte after which a request has failed."""
    key: Secret | None = None
    replicas: Sequence[counters.Replica] = field(default=())


def run(plan: Plan, *, each: Callable[[Sample], None] | None = None) -> Report:
    """Runs to the end, whatever fails. `each` is called with every finished request of the run.

    Raises EngineError when the endpoint does not answer at all, UsageError for a model that it does not serve.
    """
    return asyncio.run(_run(plan, each or _nobody))


async def _run(plan: Plan, each: Callable[[Sample], None]) -> Report:
    base = base_url(plan.endpoint)
    async with new_client(plan.timeout, plan.key) as client:
        served = await discover(client, base, plan.model)
        if plan.warmup:
            other = replace(plan.workload, seed=plan.workload.seed + WARMUP_SEED)
            warm = sessions(other, plan.warmup, limit=served.context)
            await _Play(client, base, served, plan.concurrency, Arrivals(), _nobody).all(list(warm))
        before = await counters.read(client, plan.replicas)
        play = _Play(client, base, served, plan.concurrency, plan.arrivals, each)
        started = datetime.now(UTC)
        seconds = await play.all(list(sessions(plan.workload, plan.requests, limit=served.context)))
        done = sum(sample.ok for sample in play.samples)
        after = await counters.settled(client, plan.replicas, before, done)
    return build(
        samples=sorted(play.samples, key=lambda sample: sample.id),
        seconds=seconds,
        started=started,
        endpoint=base,
        model=served.model,
        workload=plan.workload,
        arrivals=plan.arrivals,
        concurrency=plan.concurrency,
        warmup=plan.warmup,
        slo=plan.slo,
        shares=counters.shares(plan.replicas, before, after),
    )


def _nobody(sample: Sample) -> None:
    del sample


class _Play:
    def __init__(
        self,
        client: httpx2.AsyncClient,
        base: str,
        served: Served,
        concurrency: int | None,
        arrivals: Arrivals,
        each: Callable[[Sample], None],
    ) -> None:
        self._client, self._base, self._served = client, base, served
        self._arrivals, self._each = arrivals, each
        self._concurrency = concurrency
        self._ids = itertools.count()
        self._begun = 0.0
        self.samples: list[Sample] = []

    async def all(self, queue: list[Session]) -> float:
        """Plays them; returns the seconds from the first start to the last end."""
        self._begun = time.perf_counter()
        times = self._arrivals.times()
        async with asyncio.TaskGroup() as group:
            if times is None:
                waiting = iter(queue)
                for _ in range(min(self._concurrency or len(queue), len(queue))):
                    group.create_task(self._worker(waiting))
            else:
                places = asyncio.Semaphore(self._concurrency or len(queue) or 1)
                for session, due in zip(queue, times, strict=False):
                    await asyncio.sleep(max(0.0, due - self._now()))
                    group.create_task(self._placed(session, due, places))
        return self._now()

    def _now(self) -> float:
        return time.perf_counter() - self._begun

    async def _worker(self, waiting: Iterator[Session]) -> None:
        for session in waiting:
            await self._rounds(session, None)

    async def _placed(self, session: Session, due: float, places: asyncio.Semaphore) -> None:
        async with places:
            await self._rounds(session, due)

    async def _rounds(self, session: Session, due: float | None) -> None:
        messages: list[dict[str, str]] = []
        if session.system:
            messages.append({"role": "system", "content": session.system})
        for number, turn in enumerate(session.rounds):
            messages.append({"role": "user", "content": turn.prompt})
            sample = Sample(next(self._ids), session.number, number, at=self._now())
            if due is not None and number == 0:
                sample.late = max(0.0, sample.at - due)
            answer = await ask(self._client, self._base, self._body(messages, turn.output_tokens), sample)
            self.samples.append(sample)
            self._each(sample)
            if not sample.ok:
                return  # without an answer there is nothing to go on from; the rest of the session is not asked
            messages.append({"role": "assistant", "content": answer})

    def _body(self, messages: list[dict[str, str]], output_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._served.model,
            "messages": messages,
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._served.vllm:
            body["ignore_eos"] = True  # answers of the length asked for, as in vLLM's own benchmark
        return body
