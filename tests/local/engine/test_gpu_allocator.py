"""The planner's KV cache against vLLM's own allocator, asked now: a new vLLM that reserves otherwise fails here."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from onecopy.core import environment
from onecopy.engine.environments import Engine
from onecopy.gpu.memory import Serving, request_bytes
from onecopy.gpu.shape import shape_of

pytestmark = pytest.mark.engine

FOLDER = Path(__file__).parents[2] / "unit/gpu"
PUBLISHED: dict[str, Any] = json.loads((FOLDER / "published.json").read_text())


def test_a_request_takes_what_vllm_reserves_for_it(engine: Engine) -> None:
    mine, cases = [], []
    for row in PUBLISHED["kv_per_request"]["rows"]:
        shape = shape_of(PUBLISHED["configs"][row["model"]])
        mine.append(request_bytes(shape, row["tokens"], Serving(batched_tokens=row["batched_tokens"])))
        layers = []
        for kind in shape.attention:
            size = kind.elements if kind.kind == "mla" else kind.elements // 2
            layers.append([kind.kind, kind.layers, kind.heads, size, kind.window])
        cases.append({"layers": layers, "tokens": row["tokens"], "batched_tokens": row["batched_tokens"]})
    done = subprocess.run(
        [engine.python, FOLDER / "vllm_allocator.py"],
        input=json.dumps(cases),
        env=environment.child(OMP_NUM_THREADS="1", VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == mine
