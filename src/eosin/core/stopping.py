"""Ending as tidily on a scheduler's signal as on Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["stopped_alike"]


@contextmanager
def stopped_alike() -> Iterator[None]:
    """Let SIGTERM, which schedulers send when a job's time is over, raise KeyboardInterrupt as Ctrl-C does.

    Outside the main thread, which alone receives signals, nothing changes.
    """

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
