"""`--model` as an address: `vllm serve s3://bucket/prefix/<model>/revisions/<revision> --load-format onecopy`.

It is the same address that `aws s3 ls` shows and that vLLM's own runai_streamer takes. vLLM refuses it for the load
formats of others, but reads plugins before it looks at the model: `install` wraps the two methods of `EngineArgs` that
come next, and there the address becomes a local folder with config and tokenizer, and the loader's settings say where the
weights are. A folder of a node cache whose revision is still being filled is resolved in the same way, and so are
gs://, az:// and file://. No other load format and no other model is touched.
"""
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import functools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onecopy.core import environment, errors
from onecopy.core.errors import CacheError, OnecopyError, UsageError
from onecopy.core.paths import heads_dir
from onecopy.storage.layout import MANIFEST
from onecopy.weights import inventory

LOAD_FORMAT = "onecopy"
SCHEMES = ("s3://", "gs://", "az://", "file://")
logger = logging.getLogger("vllm.onecopy")


def install() -> None:
    """Makes vLLM's engine arguments resolve addresses. Does nothing the second time."""
    from vllm.engine.arg_utils import EngineArgs

    for name in ("__post_init__", "create_engine_config"):
        original = getattr(EngineArgs, name, None)
        if original is None:
            logger.warning("onecopy: this vLLM has no EngineArgs.%s: --model takes folders only", name)
        elif not hasattr(original, "onecopy"):
            setattr(EngineArgs, name, _resolving(original))


def _resolving(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.load_format == LOAD_FORMAT:
            try:
                resolve(self)
            except OnecopyError as error:
                if error.hint:
                    error.add_note(f"hint: {error.hint}")
                raise
        return original(self, *args, **kwargs)

    wrapped.onecopy = True  # type: ignore[attr-defined]
    return wrapped


def resolve(args: Any) -> None:
    """args: vLLM's EngineArgs, changed in place. Raises OnecopyError."""
    model, extra = str(args.model), dict(args.model_loader_extra_config or {})
    if model.lower().startswith(SCHEMES):
        store, name, revision = split(model, args.revision)
        cache = extra.get("cache") or environment.read("ONECOPY_CACHE_DIR")
        folder = _head(store, name, revision, Path(cache) if cache else None)
        extra = {"store": store, "name": name, "revision": revision, **extra}
    elif not Path(model).exists() and inventory.staging(Path(model)).is_dir():
        name, revision, root = Path(model).parent.name, Path(model).name, Path(model).parent.parent
        folder = _head("", name, revision, root)
        extra |= {"name": name, "revision": revision, "cache": str(root)}
    else:
        return
    logger.info("onecopy: %s: config and tokenizer are in %s", model, folder)
    args.served_model_name = args.served_model_name or model
    if args.tokenizer == model:
        args.tokenizer = str(folder)
    args.model, args.model_loader_extra_config = str(folder), extra


def split(address: str, revision: str | None) -> tuple[str, str, str]:
    """(store, model, revision) of <store>/<model>/revisions/<revision>, or of <store>/<model> and vLLM's --revision.

    The revision is empty where none is named. Raises UsageError.
    """
    before, found, after = address.rstrip("/").rpartition("/revisions/")
    store, _, name = (before if found else address.rstrip("/")).rpartition("/")
    if not store.partition("://")[2] or not name or (after and revision not in (None, after)):
        raise UsageError(f"not the address of a revision: {address}", hint="write <store>/<model>/revisions/<revision>")
    return store, name, after or revision or ""


def _head(store: str, name: str, revision: str, cache: Path | None) -> Path:
    """A folder for `--model`. With a node cache the fetch begins here and now, beside vLLM's imports.

    A process of its own does it: vLLM forks its engine from this one, and neither threads nor what a store's client keeps
    in memory come through a fork.
    """
    if cache is not None and (cache / name / revision / MANIFEST).exists():
        return cache / name / revision
    head = heads_dir() / name / revision
    argv = [sys.executable, "-m", "onecopy.engine.remote", store, name, revision, str(cache or ""), str(head)]
    process = subprocess.Popen([*argv, str(os.getpid())], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        answer = process.stdout.readline()
    if not answer:
        raise CacheError(f"the fetch of {name}@{revision} ended with {process.wait()} before it had begun")
    if told := json.loads(answer):
        process.wait()
        raise getattr(errors, told["kind"])(told["message"], hint=told["hint"])
    return head
