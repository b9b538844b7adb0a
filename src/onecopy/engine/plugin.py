"""vLLM's entry point: makes `--load-format onecopy` known.

vLLM calls `register` in every process (API server, engine core, workers) and may call it twice. It must stay cheap and
must not fail: an error here is only logged by vLLM, and the load format would then be unknown.
"""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import multiprocessing

from onecopy.core import environment
from onecopy.engine import address
from onecopy.engine.address import LOAD_FORMAT
from onecopy.engine.lifetime import die_with_parent


def register() -> None:
    from vllm.model_executor import model_loader

    from onecopy.engine.loader import OnecopyModelLoader

    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid and environment.read("ONECOPY_DIE_WITH_PARENT"):
        die_with_parent(parent.pid)
    address.install()
    known = getattr(model_loader, "_LOAD_FORMAT_TO_MODEL_LOADER", {})
    if known.get(LOAD_FORMAT) is not OnecopyModelLoader:
        model_loader.register_model_loader(LOAD_FORMAT)(OnecopyModelLoader)
