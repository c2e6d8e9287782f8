"""Processes that cut slides: on this machine, or on a Ray cluster.

Both take tasks with a tag and give back results in the order in which they end. Neither lets the death of a process
(a library that crashes on a damaged slide, the kernel that wants memory back) end the run: the task's result is then a
`ProcessDied`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from eosin.core.errors import EosinError
from eosin.core.server import end_with_parent, start_server

__all__ = ["PATIENCE", "LocalPool", "Pool", "ProcessDied", "RayPool", "ray_address"]

Task = Callable[..., Any]


class ProcessDied(Exception):
    """The process that worked on a task is gone."""


class Pool(Protocol):
    """Where tasks run."""

    size: int
    """Tasks that run at once."""

    def submit(self, tag: Any, task: Task, *arguments: Any) -> None:
        """Start a task, or let it wait for a free process."""

    def next(self) -> tuple[Any, Any]:
        """Wait for a task to end; return its tag and its result, or the exception that ended it."""

    def close(self) -> None:
        """End all processes, whatever they do."""


PATIENCE = 3600
"""Seconds after which a process that has not finished a task, of a minute or so, is ended: its slide hangs."""


# Seconds after which it is asked whether a process died while it sent its result.
_HEARTBEAT = 5


def _limited(patience: int, task: Task, *arguments: Any) -> Any:
    """Run a task; its process is ended by the kernel, whatever library it hangs in, if it takes too long."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(patience)
    try:
        return task(*arguments)
    finally:
        signal.alarm(0)


class LocalPool:
    """Processes on this machine.

    Args:
        processes: How many.
        patience: Seconds that a task may take.

    Raises:
        EosinError: If processes cannot be started.
    """

    def __init__(self, processes: int, patience: int = PATIENCE) -> None:
        self.size = processes
        self.patience = patience
        self._tags: dict[Future[Any], Any] = {}
        self._executor = self._start()
        # A process reads the script that starts it: one that calls this at once would start another.
        if isinstance(self._executor.submit(os.getpid).exception(), BrokenProcessPool):
            self.close()
            raise EosinError(
                "processes end as they start: in a script, write the call under if __name__ == '__main__':"
            )

    def _start(self) -> ProcessPoolExecutor:
        context = start_server("eosin.tiling.preload")
        return ProcessPoolExecutor(self.size, mp_context=context, initializer=end_with_parent)

    def submit(self, tag: Any, task: Task, *arguments: Any) -> None:
        """Start a task, or let it wait for a free process."""
        try:
            future = self._executor.submit(_limited, self.patience, task, *arguments)
        except BrokenProcessPool:
            self.restart()
            future = self._executor.submit(_limited, self.patience, task, *arguments)
        self._tags[future] = tag

    def next(self) -> tuple[Any, Any]:
        """Wait for a task to end; return its tag and its result, or the exception that ended it."""
        ended: set[Future[Any]] = set()
        while self._tags and not ended:
            ended, _ = wait(self._tags, timeout=_HEARTBEAT, return_when=FIRST_COMPLETED)
            processes = _processes(self._executor)
            if not ended and any(not process.is_alive() for process in processes):
                _end(processes, self._executor._result_queue)
        future = ended.pop()
        tag = self._tags.pop(future)
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            return tag, ProcessDied("the process that read it was killed")
        return tag, future.result() if error is None else error

    def restart(self) -> None:
        """Replace the processes; tasks under way end as `ProcessDied`."""
        self.close()
        self._executor = self._start()

    def close(self) -> None:
        """End all processes, whatever they do."""
        processes, results = _processes(self._executor), self._executor._result_queue
        thread: Any = self._executor._executor_manager_thread
        self._executor.shutdown(wait=False, cancel_futures=True)
        _end(processes, results)
        # The interpreter's end wakes a thread that is left, and complains when it closes its pipe at that moment.
        if thread is not None:
            thread.join(_HEARTBEAT)


def _processes(executor: ProcessPoolExecutor) -> list[Any]:
    return list((getattr(executor, "_processes", None) or {}).values())


def _end(processes: Sequence[Any], results: Any) -> None:
    """Kill an executor's processes, and end what it waits for.

    A process that dies while it sends a result leaves half of it in the pipe. The executor's thread would wait for the
    rest without end, and the interpreter, before it exits, for the thread: a pipe ends only when nobody, not even this
    process, can write into it any more.
    """
    for process in processes:
        with contextlib.suppress(OSError, ValueError):
            process.kill()
    if results is not None:
        results._writer.close()


def ray_address(address: str) -> tuple[str, str] | None:
    """Return host and port of a Ray cluster; None of "auto" and "local".

    Raises:
        EosinError: If the address is none.
    """
    if address in ("auto", "local"):
        return None
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise EosinError(f"--ray {address}: write HOST:PORT, such as head-node:6379, or auto, or local")
    return host, port


def _knock(address: str) -> None:
    """Make sure that something listens: Ray itself would wait for minutes, and complain in a language of its own.

    Raises:
        EosinError: If nothing does, or the address is none.
    """
    place = ray_address(address)
    if place is None:
        return
    host, port = place
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EosinError(
            f"--ray {address}: no cluster answers ({reason}); see `ray status` on its head node, or leave out --ray"
        ) from None


class RayPool:
    """A Ray cluster whose hosts all see the slides and the output directory under the same paths.

    Args:
        address: The cluster's address; "local" starts one on this machine, "auto" joins the one that runs here.
        gpus: Give each task a GPU, where the cluster has some.
        cores: Cores of a task that has a GPU; one without has one.
        patience: Seconds that a task may take; 0 for any time.

    Raises:
        EosinError: If Ray is not installed, or no cluster answers there.
    """

    def __init__(self, address: str, *, gpus: bool = False, cores: int = 1, patience: int = PATIENCE) -> None:
        try:
            import ray
        except ImportError:
            raise EosinError("--ray: Ray is not installed; pip install 'eosin[ray]'") from None
        self._ray = ray
        _knock(address)
        try:
            ray.init(
                address=None if address == "local" else address,
                log_to_driver=False,
                include_dashboard=False if address == "local" else None,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise EosinError(f"--ray {address}: no cluster answers ({str(error).splitlines()[0]})") from None
        resources = ray.cluster_resources()
        self.gpus = int(resources.get("GPU", 0)) if gpus else 0
        self.size = max(1, self.gpus or int(resources.get("CPU", 1)))
        self.patience = patience
        needs: dict[str, Any] = {"num_cpus": cores, "num_gpus": 1} if self.gpus else {"num_cpus": 1}
        self._remote = ray.remote(**needs, max_retries=0)(_limited)
        self._tags: dict[Any, Any] = {}

    def submit(self, tag: Any, task: Task, *arguments: Any) -> None:
        """Start a task, or let it wait for a free process."""
        self._tags[self._remote.remote(self.patience, task, *arguments)] = tag

    def share(self, value: Any) -> Any:
        """Put an argument of many tasks where every host gets it once; submit what this returns in its place."""
        return self._ray.put(value)

    def next(self) -> tuple[Any, Any]:
        """Wait for a task to end; return its tag and its result, or the exception that ended it."""
        ended, _ = self._ray.wait(list(self._tags), num_returns=1)
        tag = self._tags.pop(ended[0])
        try:
            return tag, self._ray.get(ended[0])
        except self._ray.exceptions.RayTaskError as error:
            return tag, error.cause if isinstance(error.cause, Exception) else error
        except self._ray.exceptions.RayError as error:
            return tag, ProcessDied(str(error).splitlines()[0])

    def close(self) -> None:
        """Leave the cluster; tasks under way are ended."""
        for reference in self._tags:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()


@contextlib.contextmanager
def closing(pool: Pool) -> Iterator[Pool]:
    """End a pool's processes on leaving."""
    try:
        yield pool
    finally:
        pool.close()
