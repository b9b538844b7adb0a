"""One streamed chat completion, timed. Nothing is retried: a load test shows failures, it does not hide them."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, cast

import httpx2

from onecopy.core.errors import EngineError, UsageError
from onecopy.core.redact import Secret, redact

DISCOVER_SECONDS = 5.0
LONGEST_ERROR = 200
"""Characters of a server's complaint that are kept."""


@dataclass(slots=True)
class Sample:
    """One request. Times in seconds; `at` since the run began. A failed one keeps what it had until then."""

    id: int
    session: int
    round: int
    at: float
    status: int = 0
    """HTTP status; 0 when there was none."""
    error: str | None = None
    late: float = 0.0
    """Sent this long after its time, in an open pattern."""
    ttft: float | None = None
    """Time to the first token."""
    e2e: float = 0.0
    gaps: list[float] = field(default_factory=list[float])
    """Between two chunks that carry text (inter-token latency, as long as a chunk is a token)."""
    input_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first."""
        if self.ttft is None or not self.output_tokens or self.output_tokens < 2:
            return None
        return (self.e2e - self.ttft) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Served:
    """What the endpoint says of itself. context: tokens; vllm: it understands vLLM's own sampling fields."""

    model: str
    context: int | None
    vllm: bool


def base_url(endpoint: str) -> str:
    """`http://host:8080`, with or without `/v1`. Raises UsageError."""
    try:
        url = httpx2.URL(endpoint)
    except httpx2.InvalidURL as error:
        raise UsageError(f"not an endpoint: {endpoint!r}", hint="write it as http://127.0.0.1:8080") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(f"not an endpoint: {endpoint!r}", hint="write it as http://127.0.0.1:8080")
    return endpoint.rstrip("/").removesuffix("/v1")


def new_client(timeout: float, key: Secret | None) -> httpx2.AsyncClient:
    """timeout: seconds without a byte. Connections are not limited: concurrency is the run's business."""
    headers = {"Authorization": f"Bearer {key.reveal()}"} if key else {}
    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(timeout),
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
        headers=headers,
        trust_env=False,
    )


async def discover(client: httpx2.AsyncClient, base: str, model: str | None) -> Served:
    """Asks /v1/models. Raises EngineError when nothing answers, UsageError for a model that is not served.

    A router passes this to any replica, also to one that died this moment, so a 5xx is asked again for a while.
    """
    deadline = time.monotonic() + DISCOVER_SECONDS
    while True:
        try:
            answer = await client.get(f"{base}/v1/models")
        except httpx2.HTTPError as error:
            raise EngineError(
                f"no answer from {base}: {type(error).__name__}: {error}", hint="is the stack up? `onecopy status` says"
            ) from error
        if answer.status_code < 500 or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.5)
    if answer.status_code != 200:
        raise EngineError(
            f"{base}/v1/models answered {answer.status_code}: {_short(answer.text)}",
            hint="set ONECOPY_API_KEY when the endpoint asks for a key" if answer.status_code in (401, 403) else None,
        )
    try:
        found = [cast(dict[str, Any], entry) for entry in answer.json()["data"]]
        names = {str(entry["id"]): entry for entry in found}
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{base}/v1/models is not an OpenAI-compatible list of models") from error
    if not names:
        raise EngineError(f"{base} serves no model")
    chosen = model or next(iter(names))
    if chosen not in names:
        raise UsageError(f"{base} does not serve {chosen}", hint=f"it serves {', '.join(sorted(names))}")
    context = names[chosen].get("max_model_len")
    return Served(chosen, context if isinstance(context, int) else None, names[chosen].get("owned_by") == "vllm")


async def ask(client: httpx2.AsyncClient, base: str, body: dict[str, Any], sample: Sample) -> str:
    """Sends and times one request into `sample`; returns the text of the answer, as far as it came."""
    begun = time.perf_counter()
    text: list[str] = []
    last = begun
    finished = False
    try:
        async with client.stream("POST", f"{base}/v1/chat/completions", json=body) as answer:
            sample.status = answer.status_code
            if answer.status_code != 200:
                sample.error = _short((await answer.aread()).decode(errors="replace")) or f"HTTP {answer.status_code}"
                return ""
            async for line in answer.aiter_lines():
                if not line.startswith("data:"):
                    continue
                data = line[5:].strip()
                if data == "[DONE]":
                    finished = True
                    break
                piece = _read(data, sample)
                if piece:
                    now = time.perf_counter()
                    if sample.ttft is None:
                        sample.ttft = now - begun
                    else:
                        sample.gaps.append(now - last)
                    last = now
                    text.append(piece)
    except httpx2.HTTPError as error:
        sample.error = f"{type(error).__name__}: {_short(str(error))}".rstrip(": ")
    except (ValueError, TypeError, AttributeError) as error:  # JSON of another shape than the API's
        sample.error = f"not a chat completion stream: {_short(str(error))}"
    finally:
        sample.e2e = time.perf_counter() - begun
    if sample.error is None and not finished:
        sample.error = f"the stream ended early, after {len(text)} chunks"
    if sample.error is None and sample.output_tokens is None:
        sample.output_tokens = len(text)  # a server that reports no usage: one token a chunk, as most do
    return "".join(text)


def _read(data: str, sample: Sample) -> str:
    """The text in one event; notes token counts and an error that came inside the stream."""
    table = cast(dict[str, Any], json.loads(data))
    if error := table.get("error"):
        sample.error = _short(
            str(cast(dict[str, Any], error).get("message", error) if isinstance(error, dict) else error)
        )
    if usage := table.get("usage"):
        sample.input_tokens = usage.get("prompt_tokens", sample.input_tokens)
        sample.output_tokens = usage.get("completion_tokens", sample.output_tokens)
    pieces: list[str] = []
    for choice in table.get("choices") or ():
        delta: dict[str, Any] = choice.get("delta") or {}
        pieces.append(delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or "")
    return "".join(pieces)


def _short(text: str) -> str:
    flat = " ".join(redact(text).split())
    return flat if len(flat) <= LONGEST_ERROR else flat[: LONGEST_ERROR - 1] + "…"
