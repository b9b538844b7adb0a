"""Publishing: files first, the manifest last and only if absent, then the ref by conditional put.

The revision's id comes from the content, so it is known before a byte is sent: the hub gives each large file's SHA-256,
a folder is digested first. A second run finds what the first one finished by the records under `uploads/`, checks each
against the object's ETag, and sends the rest. Two publishers of one revision send the same bytes to the same keys; who
comes last to a file takes over the other's, and who comes last to the manifest finds it written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from onecopy.core.errors import (
    IntegrityError,
    ObjectMissing,
    PermissionDenied,
    PreconditionFailed,
    SourceChanged,
    StoreFailing,
)
from onecopy.core.events import ByteCounter, Event, Reporter, silent
from onecopy.registry import catalogue, transfer
from onecopy.registry.inspect import inspect
from onecopy.registry.sources import Source, SourceFile
from onecopy.registry.sources.stored import StoredSource
from onecopy.registry.transfer import FILES_AT_ONCE, Known
from onecopy.storage import layout
from onecopy.storage.store import ObjectInfo, Store
from onecopy.weights.manifest import RANGE_SIZE, FileEntry, Manifest, WeightsInfo, revision_id

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")
STEP = "publish"
READ_AHEAD = 3
"""Ranges of each file that is only read, to know its digests."""
ABANDONED = 86400.0
"""Seconds after which an upload that nobody has gone on with is taken to be nobody's."""


@dataclass(frozen=True, slots=True)
class PublishResult:
    """bytes: of the revision. bytes_sent: to the store in this run. files: of the revision."""

    revision: str
    bytes: int
    bytes_sent: int
    files: int
    seconds: float
    manifest: Manifest
    moved_from: str | None = None


def publish(
    source: Source,
    store: Store,
    model: str,
    *,
    ref: str | None = "main",
    report: Reporter = silent,
    only_revision: str | None = None,
    resend: Collection[str] = (),
) -> PublishResult:
    """Publishes a source as a revision of `model` and points `ref` at it. Idempotent, and resumes what was cut.

    only_revision: refuse to be another one (mending). resend: files to send whatever the store says of them.

    Raises ModelError before anything is sent for a checkpoint that cannot be served; IntegrityError and SourceError
    while sending (nothing committed); PreconditionFailed when the ref was moved by somebody else meanwhile.
    """
    began = time.monotonic()
    catalogue.check_model_name(model)
    transfer.keep_one_arena()
    before = catalogue.read_ref(store, model, ref) if ref else None
    with _Run(source, store, model, report, only_revision, resend) as run:
        manifest = run.to_the_end()
    if ref and (before is None or before.revision != manifest.revision):
        catalogue.write_ref(store, model, ref, manifest.revision, expected=before)
    store.delete([info.key for info in store.list(layout.uploads_prefix(model, manifest.revision))])
    seconds = time.monotonic() - began
    report(Event(STEP, "done", message=f"{model}@{manifest.revision}", done=manifest.total_bytes))
    return PublishResult(
        manifest.revision,
        manifest.total_bytes,
        run.sent,
        len(manifest.files),
        seconds,
        manifest,
        before.revision if before else None,
    )


class _Run:
    """One publisher's work. Threads: one a file, and as many readers of ranges as can be waited for."""

    def __init__(
        self,
        source: Source,
        store: Store,
        model: str,
        report: Reporter,
        only_revision: str | None,
        resend: Collection[str],
    ) -> None:
        self._only, self._resend = only_revision, resend
        self._source, self._store, self._model, self._report = source, store, model, report
        self._files = ThreadPoolExecutor(FILES_AT_ONCE, "publish-file")
        self._reads = ThreadPoolExecutor(FILES_AT_ONCE * READ_AHEAD, "publish-read")
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._revision = ""
        self._lanes = transfer.Lanes(1, 1, 1)
        self._free = threading.Semaphore()
        self.sent = 0

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._files.shutdown(cancel_futures=True)
        self._reads.shutdown(cancel_futures=True)

    def to_the_end(self) -> Manifest:
        weights = inspect(self._source, self._reads)
        known = self._know()
        self._revision = revision_id((file.path, file.size, file.sha256) for file in known)
        if self._only is not None and self._revision != self._only:
            raise IntegrityError(
                f"{self._source.info.uri} holds {self._model}@{self._revision}, not @{self._only}; nothing was sent",
                hint="give the source that it was published from",
            )
        written, version = self._read_manifest()
        present = {info.key: info for info in self._store.list(self._prefix)}
        self._lanes = transfer.lanes([file.size for file in known])
        self._free = threading.Semaphore(self._lanes.files)
        counter = ByteCounter(self._report, STEP, sum(file.size for file in known))
        large_first = sorted(known, key=lambda file: -file.size)
        done = self._all([self._files.submit(self._one, file, present, written, counter) for file in large_first])
        if self.sent:
            self._abort_old_uploads()
        return self._commit(sorted(done, key=lambda file: file.path), weights, written, version)

    @property
    def _prefix(self) -> str:
        return layout.revision_prefix(self._model, self._revision)

    def _know(self) -> list[Known]:
        """Digests of every file: the source's own where it has them, else read once."""
        unknown = [file for file in self._source.files if file.sha256 is None]
        counter = ByteCounter(self._report, "digest", sum(file.size for file in unknown))
        read = self._all([self._files.submit(self._digest, file, counter) for file in unknown])
        if unknown:
            self._report(Event("digest", "done", message=f"{len(unknown)} files", done=counter.total))
        return read + [Known(file.path, file.size, file.sha256) for file in self._source.files if file.sha256]

    def _digest(self, file: SourceFile, counter: ByteCounter) -> Known:
        return transfer.digest(
            file.path, self._reader(file), file.size, self._reads, depth=READ_AHEAD, seen=counter.add
        )

    def _reader(self, file: SourceFile) -> transfer.ReadRange:
        def read(start: int, end: int) -> Buffer:
            if self._stop.is_set():
                raise SourceChanged(f"{file.path}: publishing was given up")
            return self._source.read(file, start, end)

        return read

    def _read_manifest(self) -> tuple[Manifest | None, str | None]:
        key = layout.manifest_key(self._model, self._revision)
        try:
            data, info = self._store.get(key)
        except ObjectMissing:
            return None, None
        return Manifest.from_json(data, where=str(self._store.uri.child(key))), info.etag

    def _abort_old_uploads(self) -> None:
        """What killed publishers left behind and this one has not gone on with. A young upload may belong to one that is
        at work."""
        try:
            for upload in self._store.list_uploads(f"{self._prefix}/"):
                if upload.initiated < time.time() - ABANDONED:
                    self._store.abort_upload(upload)
        except (PermissionDenied, StoreFailing) as error:
            self._report(Event(STEP, "warning", message=f"abandoned uploads were not looked for: {error.message}"))

    # -- one file ---------------------------------------------------------------------------------------------------

    def _one(
        self, known: Known, present: dict[str, ObjectInfo], written: Manifest | None, counter: ByteCounter
    ) -> FileEntry:
        key = layout.file_key(self._model, self._revision, known.path)
        there = present.get(key)
        if there is not None:
            trusted = there.size == known.size and known.path not in self._resend
            kept = self._keep(known, key, written) if trusted else None
            if kept is not None:
                counter.add(known.size, known.path)
                return kept
            self._report(
                Event(STEP, "warning", item=known.path, message=f"{known.path} in the store is not right: sent again")
            )
        entry = self._send(known, key, counter, create=there is None)
        if known.size > RANGE_SIZE:
            self._store.put(self._record_key(known.path), entry.model_dump_json().encode())
        return entry

    def _record_key(self, path: str) -> str:
        return layout.upload_key(self._model, self._revision, path)

    def _send(self, known: Known, key: str, counter: ByteCounter, *, create: bool) -> FileEntry:
        """From the source, by the store itself where it can; begun anew once when another publisher cut in."""
        try:
            return self._copy(known, key, counter, create=create) or self._stream(known, key, counter, create=create)
        except PreconditionFailed:
            # Another publisher has put the same file, or ended the upload that we both went on with
            kept = self._keep(known, key, None)
            if kept is not None:
                return kept
            if not create:
                raise
            self._report(Event(STEP, "warning", item=known.path, message=f"{known.path} is begun anew"))
            return self._send(known, key, counter, create=False)

    def _stream(self, known: Known, key: str, counter: ByteCounter, *, create: bool) -> FileEntry:
        found: list[Known] = []
        source_file = next(file for file in self._source.files if file.path == known.path)

        def counted() -> Iterator[Buffer]:
            for data in transfer.checked(
                known, self._reader(source_file), self._reads, depth=self._lanes.ahead, found=found.append
            ):
                yield data
                counter.add(memoryview(data).nbytes, known.path)

        def sent(count: int) -> None:
            with self._lock:
                self.sent += count

        if known.size <= RANGE_SIZE:
            data = b"".join(counted())
            info = self._store.put(key, data, create=create)
            sent(len(data))
        else:
            with self._free:
                info = self._store.put_stream(
                    key,
                    counted(),
                    part_size=transfer.part_size(known.size),
                    concurrency=self._lanes.in_flight,
                    create=create,
                    sent=sent,
                )
        return transfer.entry(found[0], info.etag, info.crc64nvme)

    def _copy(self, known: Known, key: str, counter: ByteCounter, *, create: bool) -> FileEntry | None:
        """None when the bytes must go through this machine. The store's checksum of the copy is compared with what the
        other manifest says, where both have one."""
        if not isinstance(self._source, StoredSource) or known.size <= RANGE_SIZE:
            return None
        theirs = self._source.manifest.file(known.path)
        info = self._store.copy_from(
            self._source.store,
            self._source.key(known.path),
            key,
            size=known.size,
            if_match=theirs.etag,
            create=create,
        )
        if info is None:
            return None
        if theirs.crc64nvme and info.crc64nvme and theirs.crc64nvme != info.crc64nvme:
            raise IntegrityError(
                f"{known.path}: the copy's CRC64NVME is {info.crc64nvme}, the source's manifest says "
                f"{theirs.crc64nvme}; nothing was committed",
                hint="`onecopy model verify --deep` the source",
            )
        counter.add(known.size, known.path)
        return theirs.model_copy(update={"etag": info.etag, "crc64nvme": info.crc64nvme or theirs.crc64nvme})

    def _keep(self, known: Known, key: str, written: Manifest | None) -> FileEntry | None:
        """The entry of an object that is in the store already, or None when it is not what `known` says."""
        try:
            info = self._store.head(key)
        except ObjectMissing:
            return None
        recorded = next((file for file in written.files if file.path == known.path), None) if written else None
        for entry in (recorded, self._record(known.path)):
            if (
                entry is not None
                and entry.etag == info.etag
                and (entry.size, entry.sha256) == (known.size, known.sha256)
            ):
                return entry
        # No record of it (cut between the object and its record), or another ETag: its bytes say whether it is right
        etag = info.etag

        def read(start: int, end: int) -> Buffer:
            return self._store.get_range(key, start, end, if_match=etag)

        try:
            seen = transfer.digest(known.path, read, info.size, self._reads, depth=READ_AHEAD, seen=lambda _: None)
        except (PreconditionFailed, ObjectMissing, IntegrityError):
            return None
        return transfer.entry(seen, etag, self._store.checksum(key)) if seen.sha256 == known.sha256 else None

    def _record(self, path: str) -> FileEntry | None:
        try:
            return FileEntry.model_validate_json(self._store.get(self._record_key(path))[0])
        except (ObjectMissing, ValidationError):
            return None

    # -- commit -----------------------------------------------------------------------------------------------------

    def _commit(
        self, entries: list[FileEntry], weights: WeightsInfo, written: Manifest | None, version: str | None
    ) -> Manifest:
        if written is not None and written.files == tuple(entries):
            return written
        manifest = Manifest(
            model=self._model,
            revision=self._revision,
            source=self._source.info,
            created=written.created if written else datetime.now(UTC),
            files=tuple(entries),
            weights=weights,
        )
        key = layout.manifest_key(self._model, self._revision)
        try:
            if written is None:
                self._store.put(key, manifest.to_json(), create=True)
            else:  # files were missing or stood under another ETag: the same content, said anew
                self._store.put(key, manifest.to_json(), if_match=version)
        except PreconditionFailed:
            theirs, version = self._read_manifest()
            if theirs is None:
                raise
            return self._adopt(theirs, version)
        return manifest

    def _adopt(self, theirs: Manifest, version: str | None) -> Manifest:
        """Another publisher committed first. Its manifest stands; only ETags that we have changed since are mended."""
        files: list[FileEntry] = []
        for file in theirs.files:
            etag = self._store.head(layout.file_key(self._model, self._revision, file.path)).etag
            files.append(file.model_copy(update={"etag": etag}))
        if tuple(files) == theirs.files:
            return theirs
        mended = theirs.model_copy(update={"files": tuple(files)})
        self._store.put(layout.manifest_key(self._model, self._revision), mended.to_json(), if_match=version)
        return mended

    def _all(self, futures: list[Future[T]]) -> list[T]:
        """Every result, or the first error once the others have been told to stop."""
        wait(futures, return_when=FIRST_EXCEPTION)
        for error in (future.exception() for future in futures if future.done()):
            if error is not None:
                self._stop.set()
                for future in futures:
                    future.cancel()
                wait(futures)
                raise error
        return [future.result() for future in futures]
