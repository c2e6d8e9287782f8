"""Ctrl-C and SIGTERM, noted now and obeyed after the step."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

__all__ = ["StopSignal"]


class StopSignal:
    """Remembers that the process was asked to stop.

    Attributes:
        number: SIGINT, SIGTERM, or 0.
    """

    def __init__(self) -> None:
        self.number = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals instead of dying of them; a second Ctrl-C stops at once, by `KeyboardInterrupt`."""
        try:
            previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: the caller handles signals
            yield
            return
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
