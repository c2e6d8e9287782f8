"""The process from which others are forked: without threads and locks of the one that asks for them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext

__all__ = ["end_with_parent", "signals_held_back", "start_server"]

_GRACE = 10.0
"""Seconds that a process works on after SIGTERM."""
_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def start_server(preload: str) -> ForkServerContext:
    """Start the server, if it does not run yet; it imports a module while this process goes on.

    Its processes compute with one thread each, as there is one of them for each core.

    Args:
        preload: Module that the server imports, so that the processes forked from it need not.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    # The libraries count their threads when they are loaded, which is there.
    with _one_thread(), signals_held_back():
        forkserver.ensure_running()
    return context


def end_with_parent() -> None:
    """Make a process leave Ctrl-C and SIGTERM to the one that started it, and end with it, however that one ends.

    A process of the server has the server for its parent, which lives as long as any of its own: killed with -9, the
    one that asked for them would leave all of them behind.

    Schedulers send SIGTERM to every process of a job: one that ended at once would be missed by the main process, which
    has a step to finish and a checkpoint to write.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_soon)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Let processes be born with Ctrl-C and SIGTERM blocked: none dies of them before `end_with_parent`.

    The server keeps them blocked for good: it ends when nobody needs it, and should it end earlier, its processes pass
    for dead.
    """
    # Python's tracker of shared resources, when it is started on the way, leaves the signals unblocked.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_soon(*_: object) -> None:
    timer = threading.Timer(_GRACE, os._exit, (1,))
    timer.daemon = True
    timer.start()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
