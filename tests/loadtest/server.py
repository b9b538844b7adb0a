"""A small real HTTP server that speaks the OpenAI API: streamed answers, /metrics, and faults on demand.

Two kinds of address: replicas, which answer and count; and a front, which passes each request to the next replica in
turn, as the router does.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Behaviour:
    """first, gap: seconds before the first token and between two. fault: what every `every`-th request meets."""

    first: float = 0.02
    gap: float = 0.004
    fault: str | None = None
    every: int = 0
    context: int = 4096
    models_fail: int = 0
    """How many of the first questions for the models meet a 500."""
    seen: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


@dataclass
class Counters:
    requests: int = 0
    prompt: int = 0
    generated: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def text(self) -> str:
        return (
            "# HELP vllm:request_success_total Count of finished requests.\n"
            "# TYPE vllm:request_success_total counter\n"
            f'vllm:request_success_total{{finished_reason="length",engine="0"}} {self.requests}.0\n'
            'vllm:request_success_total{finished_reason="abort",engine="0"} 0.0\n'
            "# TYPE vllm:prompt_tokens_total counter\n"
            f'vllm:prompt_tokens_total{{engine="0"}} {self.prompt}.0\n'
            "# TYPE vllm:generation_tokens_total counter\n"
            f'vllm:generation_tokens_total{{engine="0"}} {self.generated}.0\n'
        )


class Stack:
    """`replicas` servers and one front. `endpoint` is the front's address, `replica(i)` a replica's own."""

    def __init__(self, behaviour: Behaviour, replicas: int) -> None:
        self.behaviour = behaviour
        self.counters = [Counters() for _ in range(replicas)]
        self.numbers = itertools.count(1)
        self.turn = itertools.count()
        self.servers: list[ThreadingHTTPServer] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.servers[-1].server_port}"

    def replica(self, index: int) -> str:
        return f"http://127.0.0.1:{self.servers[index].server_port}"

    @property
    def flags(self) -> list[str]:
        """For the command line."""
        return [
            "--endpoint",
            self.endpoint,
            *itertools.chain.from_iterable(
                ("--replica", f"replica-{i}={self.replica(i)}") for i in range(len(self.counters))
            ),
        ]


@contextmanager
def serve(behaviour: Behaviour | None = None, *, replicas: int = 2) -> Iterator[Stack]:
    stack = Stack(behaviour or Behaviour(), replicas)
    with ExitStack() as exits:
        for index in [*range(replicas), None]:
            server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stack, index))
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
            thread.start()
            exits.callback(thread.join)
            exits.callback(server.server_close)
            exits.callback(server.shutdown)
            stack.servers.append(server)
        yield stack


def _handler(stack: Stack, index: int | None) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            if self.path == "/v1/models" and stack.behaviour.models_fail > 0:
                stack.behaviour.models_fail -= 1
                self.reply(500, "Request failed: error sending request")
            elif self.path == "/v1/models":
                model = {"id": "tiny", "object": "model", "owned_by": "vllm", "max_model_len": stack.behaviour.context}
                self.reply(200, json.dumps({"object": "list", "data": [model]}), "application/json")
            elif self.path == "/metrics" and index is not None:
                self.reply(200, stack.counters[index].text(), "text/plain; version=0.0.4")
            else:
                self.reply(404, "not here")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            behaviour, number = stack.behaviour, next(stack.numbers)
            behaviour.seen.append(body)
            behaviour.keys.append(self.headers.get("Authorization"))
            counters = stack.counters[next(stack.turn) % len(stack.counters) if index is None else index]
            fault = behaviour.fault if behaviour.every and number % behaviour.every == 0 else None
            if fault == "500":
                return self.reply(500, json.dumps({"error": {"message": "out of luck"}}), "application/json")
            words = [m["content"] for m in body["messages"]]
            prompt = sum(len(text.split()) for text in words)
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            time.sleep(behaviour.first)
            for i in range(body["max_tokens"]):
                if fault == "cut" and i == 3:
                    self.close_connection = True
                    self.wfile.write(b"0\r\n\r\n")
                    return None
                if fault == "garbage" and i == 2:
                    self.event("{not json")
                self.event(json.dumps({"choices": [{"delta": {"content": f"w{i} "}}]}))
                time.sleep(behaviour.gap)
            usage = {"prompt_tokens": prompt, "completion_tokens": body["max_tokens"]}
            self.event(json.dumps({"choices": [], "usage": usage}))
            with counters.lock:
                counters.requests += 1
                counters.prompt += prompt
                counters.generated += body["max_tokens"]
            self.event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")
            return None

        def event(self, data: str) -> None:
            payload = f"data: {data}\n\n".encode()
            self.wfile.write(f"{len(payload):x}\r\n".encode() + payload + b"\r\n")
            self.wfile.flush()

        def reply(self, status: int, text: str, kind: str = "text/plain") -> None:
            payload = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

    return Handler
