"""Unit tests talk to nobody: a connection, even to loopback, is an error here (Unix sockets excepted)."""

from __future__ import annotations

import socket
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"a unit test connects to {address}: it belongs in another folder")
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
