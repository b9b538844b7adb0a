"""vLLM's entry point: makes `--load-format onecopy` known.

vLLM calls `register` in every process (API server, engine core, workers) and may call it twice. It must stay cheap and
must not fail: an error here is only logged by vLLM, and the load format would then be unknown.
"""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

LOAD_FORMAT = "onecopy"


def register() -> None:
    from vllm.model_executor import model_loader

    from onecopy.engine.loader import OnecopyModelLoader

    known = getattr(model_loader, "_LOAD_FORMAT_TO_MODEL_LOADER", {})
    if known.get(LOAD_FORMAT) is not OnecopyModelLoader:
        model_loader.register_model_loader(LOAD_FORMAT)(OnecopyModelLoader)
