"""What can be known to be wrong before anything is started or written."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from onecopy.config.schema import StackConfig
from onecopy.core.errors import ConfigError, EngineError, StackError
from onecopy.engine import sample
from onecopy.engine.architectures import check as check_architectures
from onecopy.engine.environments import installed_engine
from onecopy.registry.inspect import inspect
from onecopy.registry.sources import open_source
from onecopy.storage.objectstore import check_store, open_configured
from onecopy.targets.local import processes
from onecopy.targets.local.home import Home
from onecopy.targets.local.placement import place


def check(home: Home, config: StackConfig, *, own: str | None = None) -> None:
    """Raises the error that a start would end in: settings, port, model folder, memory, store.

    own: endpoint of the stack that this start replaces, whose port will be free.
    """
    if len(config.models) != 1:
        raise ConfigError(
            f"the local target serves one model at a time, {len(config.models)} are configured",
            hint="keep one [[models]] table, or use target kubernetes; two stacks with two --home run side by side",
        )
    model = config.models[0]
    host, port = config.router.host, config.router.port
    ours = own is not None and urlsplit(own).port == port
    if port and not ours and not processes.port_is_free(host, port):
        raise StackError(f"port {port} on {host} is in use", hint="--port 0 takes a free one")
    python = config.engine.python
    if python is not None and not python.is_file():
        raise EngineError(f"no such Python: {python}", hint="give the path of a Python that has vLLM")
    if "://" not in model.source and model.source != sample.SOURCE:
        size, architectures = _inspect(model.source)
        if (engine := python or installed_engine()) is not None:
            check_architectures(engine, architectures)
        place(
            home,
            checkpoint_bytes=size,
            replicas=model.replicas,
            kv_cache_bytes=model.kv_cache_bytes,
            fork_server=config.engine.fork_server,
            headroom=config.cache.headroom,
            cache_dir=config.cache.dir,
        )
    if config.store.uri:
        check_store(open_configured(config.store))


def _inspect(folder: str) -> tuple[int, list[str]]:
    """Bytes and architectures of a model folder. Raises ModelError and SourceError for one that cannot be served."""
    source = open_source(folder)
    with ThreadPoolExecutor(4) as pool:
        inspect(source, pool)
    config = next(file for file in source.files if file.path == "config.json")
    architectures: list[str] = json.loads(bytes(source.read(config, 0, config.size))).get("architectures") or []
    source.close()
    return sum(file.size for file in source.files), architectures
