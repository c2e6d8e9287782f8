"""Files of a picture's nuclei that are written while its blocks come, beside the network."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path

from eosin.nuclei.found import Nuclei, loaded

__all__ = ["Outputs"]

# Blocks that wait for a writer before who brings more has to wait.
_AHEAD = 32
# Seconds in which a writer leaves what it writes.
_PATIENCE = 5.0


class _Abandoned(Exception):
    """What was written is not wanted any more."""


_Item = Nuclei | Path | None


class Outputs:
    """Writers, each in a thread of its own, that are given one block after the other.

    Args:
        writers: Each takes the blocks' nuclei in order and writes a file that is there whole or not at all.
    """

    def __init__(self, writers: Sequence[Callable[[Iterator[Nuclei]], object]]) -> None:
        self._feeds: list[queue.Queue[_Item]] = [queue.Queue(_AHEAD) for _ in writers]
        self._running: list[Future[object]] = [Future() for _ in writers]
        self._left = threading.Event()
        for writer, feed, done in zip(writers, self._feeds, self._running, strict=True):
            # Whatever interrupts who brings the blocks, the program can end: half files go with the next run.
            threading.Thread(target=_run, args=(writer, feed, done, self._left), name="outputs", daemon=True).start()

    def add(self, part: Nuclei | Path) -> None:
        """Bring the next block's nuclei, or the file that holds them.

        Raises:
            EosinError: If a writer failed.
        """
        self._put(part)

    def finish(self) -> None:
        """Wait until all is written.

        Raises:
            EosinError: If a writer failed.
        """
        self._put(None)
        for writer in self._running:
            while wait([writer], timeout=0.2).not_done:
                if self._left.is_set():
                    raise _Abandoned
            writer.result()

    def abandon(self) -> bool:
        """Leave nothing of what was written.

        Returns:
            Whether all writers have ended. One that has not is reading what it would draw over: it will open no file,
            and needs the picture to stay open.
        """
        self._left.set()
        for feed, writer in zip(self._feeds, self._running, strict=True):
            while not writer.done():
                try:
                    feed.put_nowait(None)
                    break
                except queue.Full:
                    # What waits is not wanted any more.
                    with contextlib.suppress(queue.Empty):
                        feed.get_nowait()
        return not wait(self._running, timeout=_PATIENCE).not_done

    def _put(self, item: _Item) -> None:
        for feed, writer in zip(self._feeds, self._running, strict=True):
            while not writer.done():
                try:
                    feed.put(item, timeout=0.1)
                    break
                except queue.Full:
                    if self._left.is_set():
                        raise _Abandoned from None
            if writer.done():
                writer.result()


def _run(
    writer: Callable[[Iterator[Nuclei]], object], feed: queue.Queue[_Item], done: Future[object], left: threading.Event
) -> None:
    try:
        done.set_result(writer(_given(feed, left)))
    except BaseException as error:
        done.set_exception(error)


def _given(feed: queue.Queue[_Item], left: threading.Event) -> Iterator[Nuclei]:
    while True:
        item = feed.get()
        # Also where the end was waiting before.
        if left.is_set():
            raise _Abandoned
        if item is None:
            return
        yield loaded(item)
