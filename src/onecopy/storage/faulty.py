"""`FaultyStore`: a store that fails where it is told to, for tests of everything that works on a store.

It sits in front of a real one. A fault strikes before the call (nothing happened), in the middle of a streamed upload
(nothing may be visible), after the call (it happened, the answer was lost), or flips a bit of what is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onecopy.core.errors import StoreUnreachable
from onecopy.storage.store import ObjectInfo, RangeBody, Store, Upload, WholeBody, ignore
from onecopy.storage.uri import StoreUri

if TYPE_CHECKING:
    from typing_extensions import Buffer

Moment = Literal["before", "middle", "after", "flip"]


@dataclass(frozen=True, slots=True)
class Call:
    """number: from 0, over all calls of this store. method: of the protocol."""

    number: int
    method: str
    key: str


@dataclass(frozen=True, slots=True)
class Fault:
    """error: what is raised; by default the store does not answer. A BaseException plays a killed process."""

    moment: Moment
    error: BaseException | None = None

    def strike(self, call: Call) -> BaseException:
        return self.error or StoreUnreachable(f"fault {self.moment} {call.method} {call.key}")


class FaultyStore:
    """decide: asked at every call for the fault to strike, or None. after: told of every call that has ended."""

    def __init__(
        self,
        inner: Store,
        decide: Callable[[Call], Fault | None],
        *,
        after: Callable[[Call], None] = lambda _: None,
    ) -> None:
        self.inner, self._decide, self._after = inner, decide, after
        self._lock = threading.Lock()
        self.calls = 0

    @property
    def uri(self) -> StoreUri:
        return self.inner.uri

    def head(self, key: str) -> ObjectInfo:
        with self._call("head", key):
            return self.inner.head(key)

    def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        with self._call("get", key) as fault:
            data, info = self.inner.get(key)
            return bytes(_flipped(data)) if _is_flip(fault) else data, info

    def get_range(self, key: str, start: int, end: int, *, if_match: str | None = None) -> Buffer:
        with self._call("get_range", key) as fault:
            data = self.inner.get_range(key, start, end, if_match=if_match)
            return _flipped(data) if _is_flip(fault) else data

    @contextmanager
    def open_range(
        self, key: str, start: int, end: int, *, if_match: str | None = None, timeout: float = 60.0
    ) -> Iterator[RangeBody]:
        opened = self.inner.open_range(key, start, end, if_match=if_match, timeout=timeout)
        with self._call("open_range", key) as fault, opened as body:
            yield WholeBody(_flipped(b"".join(bytes(piece) for piece in body))) if _is_flip(fault) else body

    def release(self) -> None:
        self.inner.release()

    def put(self, key: str, data: Buffer, *, create: bool = False, if_match: str | None = None) -> ObjectInfo:
        with self._call("put", key):
            return self.inner.put(key, data, create=create, if_match=if_match)

    def put_stream(
        self,
        key: str,
        chunks: Iterable[Buffer],
        *,
        part_size: int,
        concurrency: int = 4,
        create: bool = False,
        sent: Callable[[int], None] = ignore,
    ) -> ObjectInfo:
        with self._call("put_stream", key) as fault:
            if fault is not None and fault.moment == "middle":
                chunks = _broken(chunks, fault.strike(Call(-1, "put_stream", key)))
            return self.inner.put_stream(
                key, chunks, part_size=part_size, concurrency=concurrency, create=create, sent=sent
            )

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._call("list", prefix):
            found = list(self.inner.list(prefix))
        return iter(found)

    def list_folders(self, prefix: str = "") -> Sequence[str]:
        with self._call("list_folders", prefix):
            return self.inner.list_folders(prefix)

    def delete(self, keys: Sequence[str]) -> None:
        with self._call("delete", keys[0] if keys else "") as fault:
            half = fault is not None and fault.moment == "middle"
            self.inner.delete(keys[: len(keys) // 2] if half else keys)
            if fault is not None and half:
                raise fault.strike(Call(-1, "delete", ""))

    def copy_from(
        self, source: Store, source_key: str, key: str, *, size: int, if_match: str | None = None, create: bool = False
    ) -> ObjectInfo | None:
        with self._call("copy_from", key):
            return self.inner.copy_from(source, source_key, key, size=size, if_match=if_match, create=create)

    def checksum(self, key: str) -> str | None:
        with self._call("checksum", key):
            return self.inner.checksum(key)

    def list_uploads(self, prefix: str = "") -> Sequence[Upload]:
        with self._call("list_uploads", prefix):
            return self.inner.list_uploads(prefix)

    def abort_upload(self, upload: Upload) -> None:
        with self._call("abort_upload", upload.key):
            self.inner.abort_upload(upload)

    @contextmanager
    def _call(self, method: str, key: str) -> Iterator[Fault | None]:
        with self._lock:
            call = Call(self.calls, method, key)
            self.calls += 1
        fault = self._decide(call)
        try:
            if fault is not None and fault.moment == "before":
                raise fault.strike(call)
            yield fault
            if fault is not None and fault.moment == "after":
                raise fault.strike(call)
        finally:
            self._after(call)


def _is_flip(fault: Fault | None) -> bool:
    return fault is not None and fault.moment == "flip"


def _flipped(data: Buffer) -> Buffer:
    changed = bytearray(data)
    if changed:
        changed[len(changed) // 2] ^= 1
    return changed


def _broken(chunks: Iterable[Buffer], error: BaseException) -> Iterator[Buffer]:
    """All but the end."""
    waiting: Buffer | None = None
    for chunk in chunks:
        if waiting is not None:
            yield waiting
        waiting = chunk
    raise error
