"""Programs started as forks of a server that has imported what they import: a start costs no ten seconds.

The server is multiprocessing's, started by conftest.py; what it imports is in served.py. A forked program has its own
arguments, environment, error stream, signals and exit code, as one that was started has. It shares the seed of hashes
with the others, and ends without the interpreter's own end: where that may matter, a test starts a real one.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar


class Forked:
    """`subprocess.Popen` of Python, in the little of it that the tests use.

    Args:
        words: `-m module` or a script's path, then arguments.
        env: Its whole environment; by default this process's.
    """

    living: ClassVar[set[Forked]] = set()
    """Those that are not finished; conftest.py ends them after a test that failed."""

    def __init__(self, *words: object, env: dict[str, str] | None = None) -> None:
        handle, name = tempfile.mkstemp(prefix="stderr-")
        os.close(handle)
        self._errors = Path(name)
        environment = dict(os.environ) if env is None else env
        given = [str(word) for word in words], environment, Path.cwd(), self._errors
        self._process = multiprocessing.get_context("forkserver").Process(target=_become, args=given)
        self._process.start()
        self.living.add(self)

    @property
    def returncode(self) -> int | None:
        """Exit code, negative where a signal ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 240) -> int:
        """Return the exit code, once it has ended."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout)
        return code

    def errors(self) -> str:
        """Return what it has written to its error stream, and to its output."""
        return self._errors.read_text(encoding="utf-8")

    def finish(self, timeout: float = 240) -> str:
        """Wait for its end and return what it has written."""
        try:
            self.wait(timeout)
            return self.errors()
        finally:
            self.end()

    def end(self) -> None:
        """Kill it, if it still runs, and remove its files."""
        self._process.kill()
        self._process.join()
        self._errors.unlink(missing_ok=True)
        self.living.discard(self)

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self._process.pid, number)


def ranks(count: int) -> list[dict[str, str]]:
    """Return the environments of processes that are to find one another, as torchrun would set them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _become(words: list[str], environment: dict[str, str], folder: Path, errors: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    written = os.open(errors, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(written, stream)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
