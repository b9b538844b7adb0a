"""`hf://org/name[@revision]`: a model on the Hugging Face hub, pinned to a commit when it is opened.

What the hub says comes through huggingface_hub (its endpoint, token and proxy settings hold here too). Bytes come by
ranged reads of the place where the hub redirects to, which is asked for once a file: the hub counts and limits
requests to itself, and 700 GB are 87,000 ranges. A place that has expired is asked for again.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from onecopy.core.errors import IntegrityError, SourceChanged, SourceDenied, SourceError, SourceMissing, UsageError
from onecopy.core.events import Event, Reporter, silent
from onecopy.core.redact import redact
from onecopy.core.units import MiB
from onecopy.registry.sources.base import SourceFile
from onecopy.registry.sources.selection import Selection
from onecopy.weights.manifest import SourceInfo

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")
TRIES = 6
_LONGEST_WAIT = 300.0  # the hub's limits are counted in windows of five minutes
_SMALL = MiB  # bytes up to which a file that is not in LFS is kept
_TIMEOUT = 30.0  # without one byte; a slow link is no error
_AGAIN = (429, 500, 502, 503, 504)


class HubSource:
    """endpoint: of another hub (default: HF_ENDPOINT, else huggingface.co). Raises SourceMissing, SourceDenied."""

    def __init__(
        self, text: str, selection: Selection | None = None, *, endpoint: str | None = None, report: Reporter = silent
    ) -> None:
        import huggingface_hub

        self._repo, wanted = _parse(text)
        self._report = report
        self._api = huggingface_hub.HfApi(endpoint=endpoint, library_name="onecopy")
        found: Any = self._patiently(
            lambda: self._api.model_info(self._repo, revision=wanted, files_metadata=True, timeout=_TIMEOUT),
            what=f"hf://{self._repo}@{wanted or 'main'}",
        )
        self._commit: str = found.sha
        self.info = SourceInfo(uri=f"hf://{self._repo}", revision=self._commit)
        listed = {sibling.rfilename: sibling for sibling in found.siblings or ()}
        self._blobs: dict[str, str] = {path: s.blob_id for path, s in listed.items() if not s.lfs and s.blob_id}
        self.files: Sequence[SourceFile] = [
            SourceFile(path, listed[path].size, listed[path].lfs.sha256 if listed[path].lfs else None)
            for path in (selection or Selection()).chosen(listed)
        ]
        self._places: dict[str, tuple[str, dict[str, str]]] = {}
        self._small: dict[str, Buffer] = {}
        self._small_lock = threading.Lock()
        self._locks = {file.path: threading.Lock() for file in self.files}

    def read(self, file: SourceFile, start: int, end: int) -> Buffer:
        if file.size > _SMALL or file.sha256:
            return self._fetch(file, start, end)
        with self._small_lock:
            if file.path not in self._small:  # read for the checks, for its digest and to be sent: fetched once
                self._small[file.path] = self._fetch(file, 0, file.size)
            return memoryview(self._small[file.path])[start:end]

    def _fetch(self, file: SourceFile, start: int, end: int) -> Buffer:
        buffer = memoryview(bytearray(end - start))
        filled = 0

        def rest() -> None:
            """From where the last try was cut: a bad connection still gets on."""
            nonlocal filled
            for chunk in self._stream(file, start + filled, end):
                if filled + len(chunk) > len(buffer):
                    raise SourceError(f"{file.path}: the hub sent more than was asked for")
                buffer[filled : filled + len(chunk)] = chunk
                filled += len(chunk)
            if filled < len(buffer):
                raise ConnectionError(f"cut after {filled} of {len(buffer)} bytes")

        if end > start:
            self._patiently(rest, what=f"{self.info.uri}/{file.path}", progress=lambda: filled)
        blob = self._blobs.get(file.path)
        if blob and (start, end) == (0, file.size):
            seen = hashlib.sha1(b"blob %d\0" % file.size + buffer, usedforsecurity=False).hexdigest()
            if seen != blob:
                raise IntegrityError(f"{file.path}: git blob is {seen}, the hub says {blob}; nothing was committed")
        return buffer

    def close(self) -> None:
        """Connections belong to huggingface_hub, which shares them."""

    def _stream(self, file: SourceFile, start: int, end: int) -> Any:
        from huggingface_hub.utils import get_session, hf_raise_for_status

        url, headers = self._place(file)
        headers = {**headers, "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT) as response:
            if response.status_code in (401, 403, 404, 410) and not self._is_hub(url):
                # A signed place expires; a new one says whether it was that
                self._forget(file, url)
                raise ConnectionError(f"the place of {file.path} answers {response.status_code}")
            if response.status_code >= 400:
                response.read()  # the error's text
            hf_raise_for_status(response)
            total = response.headers.get("Content-Range", "").rpartition("/")[2] or response.headers.get(
                "Content-Length"
            )
            if response.status_code != 206 and (start, end) != (0, file.size):
                raise ConnectionError(f"{response.status_code} where a range was asked for")
            if total and total.isdigit() and int(total) != file.size:
                raise SourceChanged(f"{file.path}: {total} bytes at its place, {file.size} in the hub's list")
            yield from response.iter_raw()

    def _place(self, file: SourceFile) -> tuple[str, dict[str, str]]:
        """Where a file's bytes are, and the headers to ask with: the token goes to the hub alone."""
        import huggingface_hub
        from huggingface_hub.utils import build_hf_headers  # pyright: ignore[reportUnknownVariableType]

        with self._locks[file.path]:
            if file.path not in self._places:
                url = huggingface_hub.hf_hub_url(
                    self._repo, file.path, revision=self._commit, endpoint=self._api.endpoint
                )
                found = huggingface_hub.get_hf_file_metadata(  # pyright: ignore[reportUnknownMemberType]
                    url, token=self._api.token, timeout=_TIMEOUT, endpoint=self._api.endpoint, library_name="onecopy"
                )
                if found.commit_hash and found.commit_hash != self._commit:
                    raise SourceChanged(f"{file.path} is of commit {found.commit_hash}, not {self._commit}")
                if found.size is not None and found.size != file.size:
                    raise SourceChanged(f"{file.path}: {found.size} bytes, {file.size} in the hub's list")
                headers = build_hf_headers(token=self._api.token if self._is_hub(found.location) else False)
                self._places[file.path] = found.location, headers
            return self._places[file.path]

    def _forget(self, file: SourceFile, url: str) -> None:
        with self._locks[file.path]:
            if self._places.get(file.path, ("", {}))[0] == url:
                del self._places[file.path]

    def _is_hub(self, url: str) -> bool:
        here, hub = urlsplit(url), urlsplit(self._api.endpoint)
        return (here.scheme, here.netloc) == (hub.scheme, hub.netloc)

    def _patiently(self, call: Callable[[], T], *, what: str, progress: Callable[[], int] = lambda: 0) -> T:
        """Tries again what may pass: waits as the hub says, else with jitter. A try that got on counts as the first."""
        tries, before = 0, progress()
        while True:
            try:
                return call()
            except (SourceError, IntegrityError):
                raise
            except Exception as error:
                wait = _wait(error, tries)
                if progress() > before:
                    tries, before = 0, progress()
                tries += 1
                if wait is None or tries >= TRIES:
                    raise _translate(error, what) from error
                if _status(error) == 429 or wait > 5:
                    message = f"the hub limits requests; waiting {wait:.0f} s" if _status(error) == 429 else str(error)
                    self._report(Event("publish", "warning", item=what, message=redact(message)))
                time.sleep(wait)


def _parse(text: str) -> tuple[str, str | None]:
    repo, _, revision = text.removeprefix("hf://").partition("@")
    if len([part for part in repo.strip("/").split("/") if part]) not in (1, 2):
        raise UsageError(f"not a model on the hub: {text}", hint="write it as hf://org/name or hf://org/name@revision")
    return repo.strip("/"), revision or None


def _status(error: Exception) -> int:
    return getattr(getattr(error, "response", None), "status_code", 0) or 0


def _wait(error: Exception, tries: int) -> float | None:
    """Seconds until the next try, or None when another would not help."""
    status = _status(error)
    backoff = random.uniform(0.5, 1.0) * min(20.0, 0.5 * 2**tries)  # noqa: S311 - jitter
    if status in _AGAIN:
        told = str(getattr(error, "response").headers.get("Retry-After", ""))  # noqa: B009 - checked by its status
        return min(float(told), _LONGEST_WAIT) if told.isdigit() else backoff
    if status:
        return None
    # httpx's own errors, whichever of its packages huggingface_hub brings: no answer, or a cut one
    kind = {cls.__name__ for cls in type(error).__mro__}
    return backoff if kind & {"ConnectionError", "TransportError", "StreamError"} else None


def _translate(error: Exception, what: str) -> SourceError:
    names = {cls.__name__ for cls in type(error).__mro__}
    status = _status(error)
    repo = what.removeprefix("hf://").partition("@")[0]
    if "GatedRepoError" in names:
        return SourceDenied(
            f"{what} is gated, and this token's account has not been let in",
            hint=f"accept its terms at https://huggingface.co/{repo} and set HF_TOKEN",
        )
    if "RevisionNotFoundError" in names:
        return SourceMissing(f"no such revision: {what}", hint="name a branch, tag or commit that the hub shows")
    if "RepositoryNotFoundError" in names:
        return SourceMissing(
            f"{what}: not on the hub, or private and this token may not see it",
            hint="check the name; for a private model set HF_TOKEN or HF_TOKEN_PATH",
        )
    if "EntryNotFoundError" in names:
        return SourceChanged(f"{what} is listed but not there")
    if status in (401, 403):
        return SourceDenied(f"the hub refused {what}: {status}", hint="check HF_TOKEN: `hf auth whoami`")
    if status == 429:
        return SourceError(f"the hub limits requests, still after {TRIES} tries: {what}", hint="try again in 5 minutes")
    if status:
        return SourceError(f"the hub answers {status} for {what}", hint="try again later")
    if "HFValidationError" in names:
        return SourceMissing(f"no such model: {what}", hint="write it as hf://org/name")
    if names & {"OfflineModeIsEnabled"}:
        return SourceError("the hub is switched off by HF_HUB_OFFLINE", hint="unset HF_HUB_OFFLINE")
    return SourceError(
        f"no answer from the hub for {what}: {redact(str(error)) or type(error).__name__}",
        hint="check the network and HF_ENDPOINT",
    )
