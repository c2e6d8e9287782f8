"""Files of a picture's nuclei that are written while its blocks come, beside the network."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from eosin.core.errors import EosinError
from eosin.nuclei.found import Nuclei

__all__ = ["Outputs", "loaded"]

# Blocks that wait for a writer before who brings more has to wait.
_AHEAD = 8


class _Abandoned(Exception):
    """What was written is not wanted any more."""


_Item = Nuclei | Path | _Abandoned | None


class Outputs:
    """Writers, each in a thread of its own, that are given one block after the other.

    Args:
        writers: Each takes the blocks' nuclei in order and writes a file that is there whole or not at all.
    """

    def __init__(self, writers: Sequence[Callable[[Iterator[Nuclei]], object]]) -> None:
        self._pool = ThreadPoolExecutor(len(writers), thread_name_prefix="outputs")
        self._feeds: list[queue.Queue[_Item]] = [queue.Queue(_AHEAD) for _ in writers]
        self._running: list[Future[object]] = [
            self._pool.submit(writer, _given(feed)) for writer, feed in zip(writers, self._feeds, strict=True)
        ]

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
            writer.result()
        self._pool.shutdown()

    def abandon(self) -> None:
        """Leave nothing of what was written."""
        self._put(_Abandoned())
        self._pool.shutdown()

    def _put(self, item: _Item) -> None:
        for feed, writer in zip(self._feeds, self._running, strict=True):
            while not writer.done():
                try:
                    feed.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if writer.done() and not isinstance(item, _Abandoned):
                writer.result()


def _given(feed: queue.Queue[_Item]) -> Iterator[Nuclei]:
    while (item := feed.get()) is not None:
        if isinstance(item, _Abandoned):
            raise item
        yield loaded(item)


def loaded(part: Nuclei | Path) -> Nuclei:
    """Return a block's nuclei, read from the file that holds them if need be.

    Raises:
        EosinError: If the file is damaged.
    """
    if isinstance(part, Nuclei):
        return part
    found = Nuclei.load(part)
    if found is None:
        raise EosinError(f"{part}: damaged; remove it and run the same command again")
    return found
