"""What a server or a network can answer while a revision is fetched: right bytes in the end, or the error that says why."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from tests.faults.conftest import Published
from tests.faults.proxy import Fault, FaultProxy, Request

from onecopy.core import errors
from onecopy.core.units import MiB
from onecopy.storage.devserver import DevServer
from onecopy.storage.objectstore import open_store
from onecopy.storage.store import Store
from onecopy.weights.cache import NodeCache

# Each strikes some answers once; a fetch must get over it
PASSING = {
    "cut at once": Fault(cut=True),
    "cut in the body": Fault(after=3 * MiB, cut=True),
    "reset in the body": Fault(after=3 * MiB, reset=True),
    "wrong byte": Fault(after=5 * MiB, flip=True),
    "short answer": Fault(short=1000),
    "long answer": Fault(long=1000),
    "silence": Fault(after=MiB, stall=8),
    "500": Fault(status=500, code="InternalError"),
    "503": Fault(status=503, code="SlowDown"),
    "429": Fault(status=429, code="TooManyRequests"),
}


@pytest.mark.parametrize("name", PASSING)
def test_passing_faults_are_got_over(
    name: str, proxy: FaultProxy, behind: Store, published: Published, cache: NodeCache
) -> None:
    struck: set[tuple[str, int]] = set()

    def decide(request: Request) -> Fault | None:
        span = (request.path, request.start)
        if request.end - request.start > 6 * MiB and len(struck) < 3 and span not in struck:
            struck.add(span)
            return PASSING[name]
        return None

    proxy.decide = decide
    result = cache.fill(behind, published.manifest, deadline=60)
    assert struck
    assert result.bytes_fetched == published.manifest.total_bytes
    published.assert_same(result.path)


# Each strikes one range for ever: nothing may be published
LASTING = {
    "403": (Fault(status=403, code="AccessDenied"), errors.PermissionDenied),
    "404": (Fault(status=404, code="NoSuchKey"), errors.ObjectMissing),
    "412": (Fault(status=412, code="PreconditionFailed"), errors.PreconditionFailed),
    "wrong byte": (Fault(after=5 * MiB, flip=True), errors.IntegrityError),
    "short answer": (Fault(short=1000), errors.IntegrityError),
    "long answer": (Fault(long=1000), errors.IntegrityError),
    "expired token": (Fault(status=400, code="ExpiredToken"), errors.CredentialsInvalid),
}


@pytest.mark.parametrize("name", LASTING)
def test_lasting_faults_stop_with_their_reason(
    name: str, proxy: FaultProxy, behind: Store, published: Published, cache: NodeCache
) -> None:
    fault, error = LASTING[name]
    proxy.decide = lambda request: fault if request.path.endswith(published.shard) and request.start == 0 else None
    began = time.monotonic()
    with pytest.raises(error, match=published.shard if error is not errors.CredentialsInvalid else "ExpiredToken"):
        cache.fill(behind, published.manifest, deadline=30)
    assert time.monotonic() - began < 15
    assert not (cache.root / "m" / published.manifest.revision).exists()
    proxy.decide = lambda _: None
    published.assert_same(cache.fill(behind, published.manifest, deadline=60).path)


# Each strikes everything for ever: the deadline ends it
DEAD = {
    "503": (Fault(status=503, code="SlowDown"), errors.RateLimited),
    "500": (Fault(status=500, code="InternalError"), errors.StoreError),
    "silence": (Fault(after=MiB, stall=60), errors.StoreUnreachable),
    "cut": (Fault(after=MiB, cut=True), errors.StoreError),
}


@pytest.mark.parametrize("name", DEAD)
def test_a_dead_store_ends_at_the_deadline(
    name: str, proxy: FaultProxy, behind: Store, published: Published, cache: NodeCache
) -> None:
    fault, error = DEAD[name]
    proxy.decide = lambda _: fault
    began = time.monotonic()
    with pytest.raises(error):
        cache.fill(behind, published.manifest, deadline=5)
    assert time.monotonic() - began < 7.5
    assert not (cache.root / "m" / published.manifest.revision).exists()


@pytest.mark.parametrize("endpoint", ["http://no-such-host.invalid:9000", "http://127.0.0.1:1"])
def test_no_server_at_all(endpoint: str, s3_server: DevServer, published: Published, cache: NodeCache) -> None:
    store = open_store(published.uri, replace(s3_server.options, endpoint=endpoint, connect_timeout=1.0))
    began = time.monotonic()
    with pytest.raises(errors.StoreUnreachable):
        cache.fill(store, published.manifest, deadline=5)
    assert time.monotonic() - began < 7.5


def test_a_slow_part_is_asked_for_again(
    proxy: FaultProxy, behind: Store, published: Published, cache: NodeCache
) -> None:
    """At 200 kB/s the one part alone would take 40 s; it is never silent, so no time-out sees it."""
    slow: list[Request] = []

    def decide(request: Request) -> Fault | None:
        if not slow and request.end - request.start > 6 * MiB:
            slow.append(request)
            return Fault(rate=200_000)
        return None

    proxy.decide = decide
    began = time.monotonic()
    result = cache.fill(behind, published.manifest, deadline=60)
    assert slow
    assert time.monotonic() - began < 15
    published.assert_same(result.path)
