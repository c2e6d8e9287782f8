"""The process from which others are forked: without threads and locks of the one that asks for them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

__all__ = ["end_with_parent", "start_server"]

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
    with _one_thread():
        forkserver.ensure_running()
    return context


def end_with_parent() -> None:
    """Make a process leave Ctrl-C to the one that started it, and end with it, however that one ends.

    A process of the server has the server for its parent, which lives as long as any of its own: killed with -9, the
    one that asked for them would leave all of them behind.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
