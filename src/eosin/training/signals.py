"""Ctrl-C and SIGTERM, noted now and obeyed after the step."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import torch

from eosin.core.collective import largest, processes

__all__ = ["Interrupted", "StopSignal"]


class Interrupted(Exception):
    """A run was asked to stop and has saved a checkpoint.

    Attributes:
        signal: SIGINT or SIGTERM.
        step: Steps taken.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.signal = signal.Signals(number)
        self.step = step


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

    def agreed(self, step: int, every: int, device: torch.device) -> int:
        """Return the signal on which all processes stop after this step, 0 to go on.

        Several processes ask each other with every log line only: the answer makes the host wait for a GPU.

        Args:
            step: Steps taken.
            every: Steps between log lines.
            device: Where the processes exchange tensors.
        """
        if processes() > 1 and step % every:
            return 0
        return largest(self.number, device)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
