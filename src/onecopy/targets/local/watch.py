"""Keeps a stack that is up as it should be: see `supervisor` for the rules."""

from __future__ import annotations

import threading
import time

from onecopy.core.errors import OnecopyError
from onecopy.core.events import Event
from onecopy.targets.local.bringup import Bringup
from onecopy.targets.local.replicas import HEALTH_FAILURES, Fleet, Member

INTERVAL = 0.25
HEALTH_INTERVAL = 1.0


class Watch:
    def __init__(self, bringup: Bringup, stopping: threading.Event) -> None:
        assert bringup.router is not None
        assert bringup.fleet is not None
        self.bringup, self.stopping = bringup, stopping
        self.router, self.fleet, self.server = bringup.router, bringup.fleet, bringup.server
        self._health_due = 0.0
        self._last = ""

    def run(self) -> None:
        while not self.stopping.wait(INTERVAL):
            try:
                self._look()
            except OnecopyError as error:
                self.bringup.report(Event("watch", "warning", error.message))
            self._remember_changes()

    def _look(self) -> None:
        if self.server is not None and not self.server.running:
            self.bringup.report(Event("store", "warning", "the store ended; starting it again"))
            self.server.start()
        if not self.router.alive():
            self.bringup.report(Event("router", "warning", "the router ended; starting it again"))
            self.router.start()
            self.router.wait_ready()
            for member in self.fleet.members:
                if member.status.state == "ready":
                    self.router.add(member.status.endpoint)
        check_health = time.monotonic() >= self._health_due
        if check_health:
            self._health_due = time.monotonic() + HEALTH_INTERVAL
        for member in self.fleet.members:
            self._look_at(self.fleet, member, check_health)

    def _look_at(self, fleet: Fleet, member: Member, check_health: bool) -> None:
        now = time.monotonic()
        state = member.status.state
        if state == "restarting" and member.replica is None:
            if member.retry_at is not None and now >= member.retry_at:
                fleet.start(member)
        elif state == "restarting":
            assert member.replica is not None
            if fleet.answers(member):
                fleet.admit(member, self.router)
            elif member.replica.poll() is not None:
                fleet.expel(member, self.router, f"ended at its start with {member.replica.poll()}")
            elif now - member.started > fleet.config.start_timeout:
                fleet.expel(member, self.router, f"did not answer within {fleet.config.start_timeout:.0f} s")
        elif state == "ready":
            assert member.replica is not None
            if (code := member.replica.poll()) is not None:
                fleet.expel(member, self.router, f"ended with {code}")
            elif check_health:
                member.missed = 0 if fleet.answers(member) else member.missed + 1
                if member.missed >= HEALTH_FAILURES:
                    fleet.expel(member, self.router, f"did not answer {HEALTH_FAILURES} health checks")

    def _remember_changes(self) -> None:
        """Writes the state only when it changed: commands read it, and a quiet stack writes nothing."""
        states = [member.status.state for member in self.fleet.members]
        self.bringup.state.state = "ready" if all(state == "ready" for state in states) else "degraded"
        now = str([self.bringup.known_processes(), [member.status for member in self.fleet.members]])
        if now != self._last:
            self._last = now
            self.bringup.measure()
            self.bringup.remember()
