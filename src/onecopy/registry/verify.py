"""Is a revision in the store still what its manifest says? And mending it, from its source or from itself.

quick: every object is there, with its size, its ETag and, where the store keeps one, its CRC64NVME. deep: every byte is read once; the range
digests and the SHA-256 of each file are compared.
"""

from __future__ import annotations

import base64
import glob
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onecopy.core.errors import IntegrityError, ObjectMissing, PreconditionFailed, SourceError
from onecopy.core.events import ByteCounter, Event, Reporter, silent
from onecopy.registry import catalogue, transfer
from onecopy.registry.publish import PublishResult, publish
from onecopy.registry.sources import Selection, Source, open_source
from onecopy.storage import layout
from onecopy.storage.store import ObjectInfo, Store
from onecopy.weights.manifest import DIGEST_SIZE, FileEntry, Manifest

if TYPE_CHECKING:
    from typing_extensions import Buffer

FILES_AT_ONCE = 4
READ_AHEAD = 4
Kind = Literal["missing", "size", "etag", "checksum", "digest", "extra"]


@dataclass(frozen=True, slots=True)
class Problem:
    """kind: missing; size; etag (replaced since it was published); checksum (the store's own is another); digest;
    extra (not in the manifest)."""

    file: str
    kind: Kind
    expected: str
    seen: str

    def __str__(self) -> str:
        return f"{self.file}: {self.kind}: expected {self.expected}, seen {self.seen}"


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """bytes_read: 0 unless deep."""

    model: str
    revision: str
    deep: bool
    files: int
    bytes: int
    bytes_read: int
    seconds: float
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(
    store: Store, model: str, wanted: str = "main", *, deep: bool = False, report: Reporter = silent
) -> VerifyResult:
    """Raises ObjectMissing for a revision that does not exist, IntegrityError for a manifest that cannot be read."""
    began = time.monotonic()
    transfer.keep_one_arena()
    manifest = catalogue.resolve(store, model, wanted)
    prefix = layout.revision_prefix(model, manifest.revision)
    problems: list[Problem] = []
    named = {file.path for file in manifest.files} | {layout.MANIFEST}
    for info in store.list(prefix):
        path = info.key.removeprefix(f"{prefix}/")
        if path not in named:
            problems.append(Problem(path, "extra", "no such file", f"{info.size} bytes"))
    counter = ByteCounter(report, "verify", manifest.total_bytes if deep else 0)
    with ThreadPoolExecutor(FILES_AT_ONCE, "verify") as files, ThreadPoolExecutor(FILES_AT_ONCE * READ_AHEAD) as reads:

        def check(file: FileEntry) -> list[Problem]:
            return list(_check(store, manifest, file, reads if deep else None, counter))

        checked = files.map(check, sorted(manifest.files, key=lambda file: -file.size))
        problems.extend(problem for found in checked for problem in found)
    seconds = time.monotonic() - began
    text = f"{len(manifest.files)} files, {len(problems)} problems"
    report(Event("verify", "failed" if problems else "done", message=text))
    return VerifyResult(
        model,
        manifest.revision,
        deep,
        len(manifest.files),
        manifest.total_bytes,
        counter.done,
        seconds,
        tuple(problems),
    )


def _check(
    store: Store, manifest: Manifest, file: FileEntry, reads: ThreadPoolExecutor | None, counter: ByteCounter
) -> Iterator[Problem]:
    key = layout.file_key(manifest.model, manifest.revision, file.path)
    try:
        info = store.head(key)
    except ObjectMissing:
        yield Problem(file.path, "missing", f"{file.size} bytes", "nothing")
        return
    if info.size != file.size:
        yield Problem(file.path, "size", f"{file.size} bytes", f"{info.size} bytes")
        return
    if file.etag is not None and info.etag != file.etag:
        yield Problem(file.path, "etag", file.etag, str(info.etag))
    if file.crc64nvme is not None and (stored := store.checksum(key)) not in (None, file.crc64nvme):
        yield Problem(file.path, "checksum", f"CRC64NVME {file.crc64nvme}", str(stored))
    if reads is not None:
        yield from _compare(store, key, info, file, reads, counter)


def _compare(
    store: Store, key: str, info: ObjectInfo, file: FileEntry, reads: ThreadPoolExecutor, counter: ByteCounter
) -> Iterator[Problem]:
    def read(start: int, end: int) -> Buffer:
        return store.get_range(key, start, end, if_match=info.etag)

    try:
        seen = transfer.digest(
            file.path, read, file.size, reads, depth=READ_AHEAD, seen=lambda count: counter.add(count, file.path)
        )
    except (ObjectMissing, PreconditionFailed):
        yield Problem(file.path, "etag", str(info.etag), "replaced while it was read")
        return
    if seen.sha256 != file.sha256:
        yield Problem(file.path, "digest", f"SHA-256 {file.sha256}", f"{seen.sha256}{_where(file, seen.range_xxh3)}")
    elif file.range_xxh3 and seen.range_xxh3 != file.range_xxh3:
        yield Problem(file.path, "digest", "the manifest's range digests", "others: the manifest is damaged")


def _where(file: FileEntry, seen: str) -> str:
    """Which ranges are bad, where the manifest can tell."""
    if not file.range_xxh3:
        return ""
    raw = base64.b64decode(seen)
    bad = [i for i in range(file.range_count) if raw[i * DIGEST_SIZE : (i + 1) * DIGEST_SIZE] != file.range_digest(i)]
    first = ", ".join(f"{i * file.range_size}–{min((i + 1) * file.range_size, file.size)}" for i in bad[:3])
    return f" (bytes {first}{', …' if len(bad) > 3 else ''})" if bad else ""


def repair(
    store: Store, found: VerifyResult, *, source: Source | None = None, report: Reporter = silent
) -> PublishResult | Manifest:
    """Sends again what `found` names, from `source` or the hub commit in the manifest; where only ETags moved, the
    bytes are read and the manifest says the new ones.

    Raises SourceError when there is no source to mend from, IntegrityError when the source is another content.
    """
    manifest = catalogue.read_manifest(store, found.model, found.revision)
    problems = [problem for problem in found.problems if problem.kind != "extra"]
    if source is None and all(problem.kind == "etag" for problem in problems):
        return _restate(store, manifest, [problem.file for problem in problems])
    if source is None:
        uri, commit = manifest.source.uri, manifest.source.revision
        if not uri.startswith("hf://"):
            raise SourceError(
                f"{found.model}@{found.revision} was published from a {uri}: its bytes are needed to mend it",
                hint="name it: `onecopy model verify … --repair --source FOLDER`",
            )
        exactly = tuple(glob.escape(file.path) for file in manifest.files)
        source = open_source(f"{uri}@{commit}" if commit else uri, Selection(include=exactly), report=report)
    resend = frozenset(problem.file for problem in problems if problem.kind != "etag")
    return publish(source, store, found.model, ref=None, report=report, only_revision=found.revision, resend=resend)


def _restate(store: Store, manifest: Manifest, paths: Sequence[str]) -> Manifest:
    key = layout.manifest_key(manifest.model, manifest.revision)
    files = {file.path: file for file in manifest.files}
    with ThreadPoolExecutor(READ_AHEAD) as reads:
        for path in paths:
            info = store.head(layout.file_key(manifest.model, manifest.revision, path))
            unknown = ByteCounter(silent, "repair", info.size)
            bad = list(_compare(store, info.key, info, files[path], reads, unknown)) or info.size != files[path].size
            if bad:
                raise IntegrityError(
                    f"{path} of {manifest.model}@{manifest.revision} holds other bytes", hint="--source"
                )
            files[path] = files[path].model_copy(update={"etag": info.etag})
    data, now = store.get(key)
    if Manifest.from_json(data, where=key) != manifest:
        raise PreconditionFailed(f"{store.uri.child(key)} was written by somebody else meanwhile")
    mended = manifest.model_copy(update={"files": tuple(files[file.path] for file in manifest.files)})
    store.put(key, mended.to_json(), if_match=now.etag)
    return mended
