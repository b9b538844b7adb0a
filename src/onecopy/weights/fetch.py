"""Reads a revision's files in ranges, several at once, each checked while its bytes are hot."""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

import xxhash

from onecopy.core.errors import IntegrityError, RateLimited, StoreUnreachable
from onecopy.core.events import ByteCounter
from onecopy.storage.layout import revision_prefix
from onecopy.storage.store import Store
from onecopy.weights.manifest import FileEntry, Manifest

RANGES_AT_ONCE = 8
"""On loopback more did not help; a network with 0.4 Gbps a connection wants ceil(Gbps / 0.4)."""
TRIES = 4


def fetch(store: Store, manifest: Manifest, folder: Path, counter: ByteCounter) -> None:
    """Writes every file of the revision into `folder`. Raises StoreError and IntegrityError; what is there is then torn."""
    prefix = revision_prefix(manifest.model, manifest.revision)
    with ThreadPoolExecutor(RANGES_AT_ONCE, "fetch") as pool:
        handles: list[int] = []
        try:
            jobs: list[Future[None]] = []
            for entry in manifest.files:
                path = folder / entry.path
                path.parent.mkdir(parents=True, exist_ok=True)
                handles.append(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                jobs += [
                    pool.submit(_range, store, f"{prefix}/{entry.path}", entry, index, handles[-1], counter)
                    for index in range(entry.range_count)
                ]
            done, pending = wait(jobs, return_when=FIRST_EXCEPTION)
            for job in pending:
                job.cancel()
            for job in done:
                job.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for handle in handles:
                os.close(handle)


def _range(store: Store, key: str, entry: FileEntry, index: int, handle: int, counter: ByteCounter) -> None:
    start = index * entry.range_size
    end = min(entry.size, start + entry.range_size)
    data = _checked(store, key, entry, index, start, end)
    while data:
        data = data[os.pwrite(handle, data, end - len(data)) :]
    counter.add(end - start, entry.path)


def _checked(store: Store, key: str, entry: FileEntry, index: int, start: int, end: int) -> memoryview:
    for attempt in range(TRIES):
        try:
            data = memoryview(store.get_range(key, start, end, if_match=entry.etag))
            if xxhash.xxh3_128_digest(data) == entry.range_digest(index):
                return data
            raise IntegrityError(f"{store.uri.child(key)}: bytes {start}-{end} are not what the manifest says")
        except (IntegrityError, StoreUnreachable, RateLimited):
            if attempt == TRIES - 1:
                raise
            time.sleep(random.uniform(0, 0.2 * 2**attempt))  # noqa: S311 - jitter
    raise AssertionError("unreachable")
