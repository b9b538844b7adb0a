"""A process that ends when its parent does, however the parent ends (Linux's parent-death signal)."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Asks the kernel for SIGKILL at the parent's death; ends at once if `parent` (a pid) has gone already.

    The signal comes when the *thread* that forked us ends, so the parent must fork from one that lasts.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
