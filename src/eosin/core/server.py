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

__all__ = ["end_with_parent", "server_context", "signals_held_back", "start_server"]

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def server_context(preload: str) -> ForkServerContext:
    """Return the context of the server; it starts with the first process, or by `start_server`.

    Args:
        preload: Module that the server imports, so that the processes forked from it need not.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["eosin.core.server_process", preload])
    return context


def start_server(preload: str) -> ForkServerContext:
    """Start the server, if it does not run yet; it imports a module while this process goes on.

    Its processes compute with one thread each, as there is one of them for each core.

    Args:
        preload: Module that the server imports, so that the processes forked from it need not.
    """
    context = server_context(preload)
    # The libraries count their threads when they are loaded, which is there.
    with _one_thread(), signals_held_back():
        forkserver.ensure_running()
    return context


def end_with_parent() -> None:
    """Make a process leave Ctrl-C and SIGTERM to the one that started it, and end with it, however that one ends.

    A process of the server has the server for its parent, which lives as long as any of its own: killed with -9, the
    one that asked for them would leave all of them behind.

    Schedulers send SIGTERM to every process of a job: one that ended of it would be missed by the main process, which
    has a step to finish and a checkpoint to write. SIGTERM from that process itself ends this one at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    def heed() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(1)

    tasks = [watch]
    if hasattr(signal, "sigwaitinfo"):  # macOS has none
        # Threads that start from here on have it blocked too.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        tasks.append(heed)
    for task in tasks:
        threading.Thread(target=task, daemon=True).start()


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """Let processes be born with Ctrl-C and SIGTERM blocked: none dies of them before it is ready.

    Should the server end before its processes do, these pass for dead; see `server_process`.
    """
    # Python's tracker of shared resources, when it is started on the way, leaves the signals unblocked.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
