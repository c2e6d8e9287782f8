"""Imported by the process that forks others, and nowhere else.

SIGTERM ends those that it forks, but not itself. It is born with SIGTERM blocked. A scheduler sends that to every
process of a job; it ends by itself when nobody needs it. What is forked from it for others than eosin is to end of
SIGTERM as any process does.

The garbage collectors of its children leave alone what it has imported: else the first full collection of each would
touch, and so copy, all its pages.
"""

from __future__ import annotations

import gc
import os
import signal

__all__: list[str] = []


_SERVER = os.getpid()


def _as_usual() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave_alone() -> None:
    if os.getpid() == _SERVER:  # what its children hold may become garbage
        gc.freeze()


signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
os.register_at_fork(before=_leave_alone, after_in_child=_as_usual)
