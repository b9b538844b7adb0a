"""The status page's server on a home where nothing runs: what it refuses, and what it says."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from onecopy.core.errors import UsageError
from onecopy.observe.statuspage import StatusServer
from onecopy.targets.local.home import Home, State
from onecopy.targets.local.observed import snapshot


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def server(home: Home) -> Iterator[StatusServer]:
    made = StatusServer(lambda: snapshot(home))
    yield made
    made.close()


def call(server: StatusServer, method: str, path: str, body: str | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.address, timeout=10)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def test_another_name_or_another_page_is_refused(server: StatusServer) -> None:
    json_type = {"Content_Type": "application/json"}
    assert call(server, "GET", "/snapshot.json", Host="evil.example")[0] == 403
    assert call(server, "GET", "/snapshot.json", Origin="http://evil.example")[0] == 403
    assert call(server, "POST", "/ask", "{}", Origin="http://evil.example", **json_type)[0] == 403
    # a form of another page can send no JSON type without being asked first
    assert call(server, "POST", "/ask", '{"prompt": "x"}', Content_Type="text/plain")[0] == 404
    assert call(server, "POST", "/ask", "[", **json_type)[0] == 400
    assert call(server, "GET", "/etc/passwd")[0] == 404
    assert call(server, "GET", "/", Host=server.address.replace("127.0.0.1", "localhost"))[0] == 200


def test_it_says_what_is_not_there(server: StatusServer, home: Home) -> None:
    got = json.loads(call(server, "GET", "/snapshot.json")[1])
    assert (got["state"], got["hint"]) == ("absent", "`onecopy up` starts a stack")
    answer = call(server, "POST", "/ask", '{"prompt": "hello"}', Content_Type="application/json")[1]
    assert b"event: failed" in answer
    assert b"the stack is absent" in answer
    assert b'onecopy_stack_up{state="absent"} 1.0' in call(server, "GET", "/metrics")[1]


def test_a_dead_supervisor_is_told_from_a_live_one(home: Home) -> None:
    home.prepare()
    home.write_state(State(state="ready", model="m"))
    assert snapshot(home).state == "lost"
    with home.owned():
        assert snapshot(home).state == "ready"


def test_a_line_still_being_written_is_left_for_later(home: Home) -> None:
    home.prepare()
    home.write_state(State(state="failed", error="token=hf_abcdefghijklmnop"))
    home.events.write_text(
        '{"at": 1.0, "step": "fill", "state": "progress", "done": 5, "total": 10}\n'
        '{"at": 2.0, "step": "fill", "state": "failed", "message": "no"}\n{"at": 3.0, "st'
    )
    taken = snapshot(home)
    assert [(s.step, s.state) for s in taken.steps] == [("fill", "failed")]
    assert (taken.progress[0].done, taken.progress[0].running, taken.fill_failures) == (5, False, 1)
    assert "hf_" not in (taken.error or "")


def test_a_home_of_another_version_is_shown_not_thrown(server: StatusServer, home: Home) -> None:
    home.root.mkdir()
    home.state_file.write_text('{"format": 99}')
    got = json.loads(call(server, "GET", "/snapshot.json")[1])
    assert got["state"] == "unreadable"
    assert "another version" in got["error"]


def test_a_taken_port_is_named(server: StatusServer, home: Home) -> None:
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(UsageError, match=f"port {port} on 127.0.0.1: Address already in use"):
        StatusServer(lambda: snapshot(home), port=port)
