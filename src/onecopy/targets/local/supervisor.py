"""The process that owns a local stack: brings it up, keeps watch, takes it down. `python -m … HOME [--foreground]`.

Watch: a replica that dies or stops answering is taken out of the router, its whole process group ended, and started
again after a back-off; a store, a fork server or a router that dies is started again. SIGTERM, SIGINT, and in the
foreground the end of the command that started it, stop everything in order: router, replicas, store.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType

from onecopy.config.schema import StackConfig
from onecopy.core.errors import OnecopyError
from onecopy.core.events import Event
from onecopy.targets.local import control, processes
from onecopy.targets.local.bringup import Bringup
from onecopy.targets.local.events import EventLog
from onecopy.targets.local.home import Home, State
from onecopy.targets.local.replicas import Stopped
from onecopy.targets.local.watch import Watch


def main() -> None:
    home = Home(Path(sys.argv[1]))
    with home.owned():
        Supervisor(home, StackConfig.model_validate_json(home.settings.read_text())).run("--foreground" in sys.argv)
        sys.stderr.flush()
        os._exit(0)  # a thread may still wait for an installer that was ended; the state is written


class Supervisor:
    def __init__(self, home: Home, config: StackConfig) -> None:
        self.home, self.config = home, config
        self.stopping = threading.Event()
        self.report = EventLog(home.events)
        self.state = State(
            supervisor=processes.record("supervisor", os.getpid()), settings=control.settings_digest(config)
        )

    def run(self, foreground: bool) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        if foreground:
            threading.Thread(target=self._stop_with_the_command, daemon=True).start()
        self.home.write_state(self.state)
        bringup = Bringup(self.home, self.config, self.state, self.report, self.stopping)
        failure: OnecopyError | None = None
        try:
            bringup.run()
            Watch(bringup, self.stopping).run()
        except Stopped:
            pass
        except OnecopyError as error:
            failure = error
        except Exception as error:
            traceback.print_exc()
            failure = OnecopyError(
                f"unexpected: {type(error).__name__}: {error}", hint=f"see {self.home.logs / 'supervisor.log'}"
            )
        self._take_down(bringup, failure)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.stopping.set()

    def _take_down(self, bringup: Bringup, failure: OnecopyError | None) -> None:
        if failure is not None:
            self.report(Event("stack", "failed", failure.message))
        self.state.state = "stopping"
        self.home.write_state(self.state)
        begun = time.monotonic()
        bringup.close()
        self.home.clear_volatile()
        self.state.processes = []
        self.state.supervisor = None if failure is None else self.state.supervisor
        for replica in self.state.replicas:
            replica.state, replica.pid = "stopped", None
        self.state.state = "stopped" if failure is None else "failed"
        if failure is not None:
            self.state.error, self.state.hint = failure.message, failure.hint
        self.report(Event("stack", "done", f"stopped in {time.monotonic() - begun:.1f} s"))
        self.home.write_state(self.state)
        self.report.close()

    def _stop_with_the_command(self) -> None:
        """The foreground command holds the other end of our standard input: when it is gone, so are we."""
        poll = select.poll()
        poll.register(0, select.POLLHUP)
        poll.poll()
        self.stopping.set()


if __name__ == "__main__":
    main()
