"""A hub of our own: the part of the Hugging Face hub's HTTP interface that publishing uses, as a real server.

It answers as the real one does (status codes, X-Error-Code, X-Repo-Commit, X-Linked-Size/Etag, 302 to a CDN with a
signed address that expires, LFS digests in the listing), and misbehaves when told to. What it does not have: xet
storage, ratelimit headers other than Retry-After, TLS.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

LFS_FROM = 1024
"""Bytes from which a file is an LFS object; the real hub's border is 10 MiB, or the suffix."""


@dataclass
class Repo:
    folder: Path
    commit: str
    private: bool = False
    gated: bool = False


@dataclass
class Faults:
    """How many of the next answers go wrong, and how. CDN faults strike file bytes only."""

    api_429: int = 0
    retry_after: str = "1"
    hub_500: int = 0
    cdn_500: int = 0
    cdn_expired: int = 0
    cdn_cut: int = 0
    cdn_flip: int = 0
    cdn_no_range: int = 0
    cdn_stall: float = 0.0
    cdn_bytes_per_second: int = 0


@dataclass
class Hub:
    """token: the one that may see private repositories; `accepted`: the one that may read gated ones too."""

    token: str = "hf_insiderinsider"
    accepted: str = "hf_acceptedaccepted"
    repos: dict[str, Repo] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)
    requests: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)  # bytes of each file that the CDN has sent
    leaked: list[str] = field(default_factory=list)  # tokens that the CDN was shown

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._signatures: dict[str, Path] = {}
        self._digests: dict[tuple[str, int], tuple[str, str]] = {}
        self._hub = _serve(self, _HubHandler)
        self._cdn = _serve(self, _CdnHandler)
        self.endpoint = f"http://127.0.0.1:{self._hub.server_port}"
        self.cdn = f"http://127.0.0.1:{self._cdn.server_port}"

    def add(self, name: str, folder: Path, *, private: bool = False, gated: bool = False) -> Repo:
        self.repos[name] = Repo(folder, secrets.token_hex(20), private, gated)
        return self.repos[name]

    def take(self, fault: str) -> bool:
        """True for as many calls as the fault was set to."""
        with self._lock:
            left = getattr(self.faults, fault)
            setattr(self.faults, fault, max(0, left - 1))
            return left > 0

    def digests(self, path: Path) -> tuple[str, str]:
        """(SHA-256, git blob SHA-1) of a file, kept until it changes."""
        key = (str(path), path.stat().st_mtime_ns)
        if key not in self._digests:
            sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size)
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    sha256.update(chunk)
                    blob.update(chunk)
            self._digests[key] = sha256.hexdigest(), blob.hexdigest()
        return self._digests[key]

    def sign(self, path: Path) -> str:
        signature = secrets.token_hex(16)
        with self._lock:
            self._signatures[signature] = path
        return f"{self.cdn}/repos/object?X-Amz-Expires=3600&X-Amz-Signature={signature}"

    def signed(self, signature: str) -> Path | None:
        with self._lock:
            return self._signatures.get(signature)

    def expire(self) -> None:
        with self._lock:
            self._signatures.clear()

    def close(self) -> None:
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what some tests are about."""


def _serve(hub: Hub, handler: type[BaseHTTPRequestHandler]) -> _Server:
    server = _Server(("127.0.0.1", 0), handler)
    server.hub = hub
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(
            status, json.dumps({"error": message}).encode(), X_Error_Code=code, X_Error_Message=message,
            Content_Type="application/json",
        )  # fmt: skip


class _HubHandler(_Handler):
    def do_GET(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        hub.requests["hub"] += 1
        if hub.take("api_429"):
            return self.answer(429, b"Too Many Requests", Retry_After=hub.faults.retry_after)
        if hub.take("hub_500"):
            return self.answer(500, b"oops")
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", url.path)
        tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", url.path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url.path)
        match = api or tree or file
        if match is None:
            return self.refuse(404, "NotFound", "no such page")
        name, revision = match[1], unquote(match[2] or "main")
        repo = hub.repos.get(name)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repo is None or (repo.private and token not in (hub.token, hub.accepted)):
            return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        if revision not in ("main", repo.commit):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if api:
            return self.listing(name, repo)
        if tree:
            return self.tree(repo)
        if repo.gated and token != hub.accepted:
            return self.refuse(403 if token else 401, "GatedRepo", "Access to this model is restricted")
        return self.resolve(repo, unquote(match[3]))

    do_HEAD = do_GET

    def tree(self, repo: Repo) -> None:
        entries: list[dict[str, Any]] = []
        for path in sorted(p for p in repo.folder.rglob("*") if p.is_file()):
            sha256, blob = self.server.hub.digests(path)
            size = path.stat().st_size
            entry = {"type": "file", "path": path.relative_to(repo.folder).as_posix(), "size": size, "oid": blob}
            if size >= LFS_FROM:
                entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 134}
            entries.append(entry)
        self.answer(200, json.dumps(entries).encode(), Content_Type="application/json")

    def listing(self, name: str, repo: Repo) -> None:
        siblings: list[dict[str, Any]] = []
        for path in sorted(p for p in repo.folder.rglob("*") if p.is_file()):
            sha256, blob = self.server.hub.digests(path)
            size = path.stat().st_size
            entry: dict[str, Any] = {
                "rfilename": path.relative_to(repo.folder).as_posix(),
                "size": size,
                "blobId": blob,
            }
            if size >= LFS_FROM:
                entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134}
            siblings.append(entry)
        body = {
            "_id": "1",
            "id": name,
            "modelId": name,
            "sha": repo.commit,
            "private": repo.private,
            "siblings": siblings,
        }
        self.answer(200, json.dumps(body).encode(), Content_Type="application/json")

    def resolve(self, repo: Repo, relative: str) -> None:
        path = repo.folder / relative
        if not path.is_file():
            return self.refuse(404, "EntryNotFound", "Entry not found")
        sha256, blob = self.server.hub.digests(path)
        size = path.stat().st_size
        if size >= LFS_FROM:
            return self.answer(
                302, b"", Location=self.server.hub.sign(path), X_Linked_Size=str(size), X_Linked_Etag=f'"{sha256}"',
                X_Repo_Commit=repo.commit, ETag=f'"{sha256}"',
            )  # fmt: skip
        data = path.read_bytes()
        if self.command == "HEAD":
            return self.answer(200, Content_Length=str(size), ETag=f'"{blob}"', X_Repo_Commit=repo.commit)
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            start, end = int(wanted[1]), int(wanted[2]) + 1
            return self.answer(206, data[start:end], Content_Range=f"bytes {start}-{end - 1}/{size}", ETag=f'"{blob}"')
        return self.answer(200, data, ETag=f'"{blob}"', X_Repo_Commit=repo.commit)


class _CdnHandler(_Handler):
    def do_GET(self) -> None:
        hub = self.server.hub
        hub.requests["cdn"] += 1
        if self.headers.get("Authorization"):
            hub.leaked.append(self.headers["Authorization"])
        path = hub.signed(parse_qs(urlsplit(self.path).query)["X-Amz-Signature"][0])
        if path is None or hub.take("cdn_expired"):
            return self.answer(403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
        if hub.take("cdn_500"):
            return self.answer(500, b"oops")
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(wanted[1]), int(wanted[2]) + 1) if wanted else (0, size)
        if hub.take("cdn_no_range"):
            start, end, wanted = 0, size, None
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        with path.open("rb") as file:
            if hub.take("cdn_cut"):
                file.seek(start)
                self.wfile.write(file.read((end - start) // 3))
                self.close_connection = True
                return None
            if end - start > 1 << 20 and hub.take("cdn_flip"):  # weights, not headers
                file.seek(start)
                data = bytearray(file.read(end - start))
                data[len(data) // 2] ^= 1
                self.wfile.write(data)
                return None
            if hub.faults.cdn_stall:
                time.sleep(hub.faults.cdn_stall)
            self.wfile.flush()
            rate = hub.faults.cdn_bytes_per_second
            while start < end:
                count = min(end - start, rate // 10 or 1 << 30)
                count = os.sendfile(self.connection.fileno(), file.fileno(), start, count)
                start += count
                hub.sent[path.name] += count
                if rate:
                    time.sleep(0.1)
        return None
