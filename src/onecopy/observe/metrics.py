"""A snapshot as samples of the declared metrics, each with exactly its labels."""

from __future__ import annotations

from collections.abc import Iterator

from onecopy.core import metrics as declared
from onecopy.core.exposition import Sample
from onecopy.observe.snapshot import Snapshot


def samples(snapshot: Snapshot) -> Iterator[Sample]:
    """What is known; a value that is not known yet has no sample."""
    model = snapshot.model or ""
    yield declared.STACK_UP, (snapshot.state,), 1
    for phase, seconds in snapshot.phases.items():
        yield declared.PHASE_SECONDS, (phase,), seconds
    if snapshot.checkpoint_bytes:
        yield declared.CHECKPOINT_BYTES, (model, snapshot.revision or ""), snapshot.checkpoint_bytes
    if snapshot.store_bytes_read is not None:
        yield declared.STORE_READ_BYTES, (model,), snapshot.store_bytes_read
        if snapshot.checkpoint_bytes:
            yield declared.AMPLIFICATION, (model,), snapshot.store_bytes_read / snapshot.checkpoint_bytes
    if snapshot.private_copies_bytes is not None:
        yield declared.PRIVATE_COPIES_BYTES, (model,), snapshot.private_copies_bytes
    if snapshot.weight_bytes_resident is not None:
        yield declared.WEIGHT_MEMORY_BYTES, (model,), snapshot.weight_bytes_resident
    for step in snapshot.progress:
        yield declared.STEP_BYTES, (step.step,), step.done
        yield declared.STEP_TOTAL_BYTES, (step.step,), step.total
    yield declared.FILL_FAILURES, (), snapshot.fill_failures
    if snapshot.cache is not None:
        yield declared.CACHE_USED_BYTES, (), snapshot.cache.used
        yield declared.CACHE_FREE_BYTES, (), snapshot.cache.free
        yield declared.CACHE_SIZE_BYTES, (), snapshot.cache.size
    for replica in snapshot.replicas:
        yield declared.REPLICA_READY, (replica.name,), float(replica.state == "ready")
        yield declared.REPLICA_RESTARTS, (replica.name,), replica.restarts
        if replica.ready_seconds is not None:
            yield declared.REPLICA_READY_SECONDS, (replica.name,), replica.ready_seconds
        if replica.load is not None:
            for phase, seconds in replica.load.seconds.items():
                yield declared.LOAD_SECONDS, (replica.name, phase), seconds
            for source, count in replica.load.bytes.items():
                yield declared.LOAD_BYTES, (replica.name, source), count
    for kind, usd in snapshot.storage_usd_month.items():
        yield declared.STORAGE_USD, (kind,), usd
