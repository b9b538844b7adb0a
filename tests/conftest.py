"""Stores for every suite: one real S3 server (SeaweedFS) a session, and a fresh, empty store a test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from onecopy.storage.devserver import DevServer
from onecopy.storage.objectstore import open_store
from onecopy.storage.store import Store

# A folder with one folder a third-party chart; taken out of the environment, where onecopy refuses what it does not know
CHARTS = Path(found) if (found := os.environ.pop("ONECOPY_TEST_CHARTS", None)) else None


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    with DevServer(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_store(s3_server: DevServer) -> Store:
    return open_store(s3_server.uri.child(f"test-{uuid.uuid4().hex[:12]}"), s3_server.options)


@pytest.fixture
def file_store(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store")


@pytest.fixture(params=["s3", "file"])
def store(request: pytest.FixtureRequest) -> Store:
    """A fresh, empty store; the test runs once on each backend."""
    return request.getfixturevalue(f"{request.param}_store")
