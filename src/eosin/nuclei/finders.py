"""Processes that search maps for nuclei, and put nuclei into words, while the network goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from threading import Lock
from typing import Any, TypeVar

from eosin.core.server import end_with_parent, signals_held_back, start_server
from eosin.data.workers import script_left_out

__all__ = ["Finders"]

T = TypeVar("T")


class Finders:
    """A pool of processes for several threads.

    Args:
        processes: Their number.
    """

    def __init__(self, processes: int) -> None:
        context = start_server("eosin.nuclei.preload")
        self._pool = ProcessPoolExecutor(processes, mp_context=context, initializer=end_with_parent)
        self._lock = Lock()

    def submit(self, work: Callable[..., T], *arguments: Any, **named: Any) -> Future[T]:
        """Give work to a process, which may be started for it."""
        with self._lock, script_left_out(), signals_held_back():
            return self._pool.submit(work, *arguments, **named)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes when they have done what they are at."""
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)
