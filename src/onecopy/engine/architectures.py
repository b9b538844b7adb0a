"""Which architectures an engine can serve, read from its vLLM's model registry without importing it (0.1 s, not 7 s)."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

from onecopy.core.errors import EngineError
from onecopy.engine.environments import engine_env

_FIND = "import importlib.util as u; print(u.find_spec('vllm').submodule_search_locations[0])"


def supported(python: Path) -> frozenset[str]:
    """Names as in config.json's `architectures`. Empty when this vLLM keeps them in another way: nothing is refused then."""
    found = subprocess.run(
        [str(python), "-c", _FIND], env=engine_env(), capture_output=True, text=True, timeout=60, check=False
    )
    registry = Path(found.stdout.strip() or "/nonexistent") / "model_executor" / "models" / "registry.py"
    try:
        tree = ast.parse(registry.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return frozenset()
    names = {
        key.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(key.value, str) and isinstance(value, ast.Tuple)
    }
    return frozenset(names)


def check(python: Path, architectures: list[str]) -> None:
    """Raises EngineError when none of the model's architectures is served by this engine."""
    known = supported(python)
    if known and architectures and not known & set(architectures):
        raise EngineError(
            f"the engine does not serve {', '.join(architectures)}",
            hint="check `architectures` in config.json, or name a Python with another vLLM: --engine-python",
        )
