"""The loop of a training: steps, and between them log lines, looks, checkpoints and stops.

    batch -> take -> report -> save -> stop

What a step is, what is reported and what is saved is the training's own; when, and in which order, is the same for all.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from eosin.training.signals import Interrupted, StopSignal

__all__ = ["StepLoop"]

T = TypeVar("T")


class StepLoop:
    """Takes steps, and counts them and their time.

    Args:
        device: Where processes that train together exchange tensors.
        log_every: Steps between log lines.

    Attributes:
        step: Steps taken; set it to go on with a run.
        stop: What was asked to stop.
    """

    def __init__(self, device: torch.device, log_every: int) -> None:
        self.step = 0
        self.stop = StopSignal()
        self._device = device
        self._log_every = log_every
        self._since = 0.0
        self._waited = self._passed = 0.0
        self._timed = 0

    def run(
        self,
        batches: Iterable[T],
        take: Callable[[T], object],
        *,
        end: int,
        look: Callable[[int], bool],
        report: Callable[[bool], object],
        save_every: int,
        save: Callable[[], object],
        shown: Callable[[], object],
        over: Callable[[], bool] | None = None,
    ) -> None:
        """Take a step with each batch.

        Args:
            batches: One a step.
            take: Takes a step; `step` counts those before it.
            end: Steps after which there is a last log line and a last checkpoint.
            look: Whether the network is looked at after so many steps.
            report: Writes a log line, after every `log_every` steps, at the end and where the network is looked at,
                which it is told.
            save_every: Steps between checkpoints.
            save: Writes one.
            shown: Shows progress, after each step.
            over: Whether nothing is left to do, at the end or before; a checkpoint is then the caller's. Without it
                the end is saved here.

        Raises:
            Interrupted: If a signal asked to stop, the checkpoint being saved.
        """
        self._since = time.perf_counter()
        for batch in batches:
            arrived = time.perf_counter()
            self._waited += arrived - self._since
            take(batch)
            self.step += 1
            self._passed += time.perf_counter() - self._since
            self._timed += 1
            last = self.step == end
            looked_at = look(self.step)
            if self.step % self._log_every == 0 or last or looked_at:
                report(looked_at)
            shown()
            stop = self.stop.agreed(self.step, self._log_every, self._device)
            if over is not None and over():
                return
            if self.step % save_every == 0 or stop or last:
                save()
            if stop:
                raise Interrupted(stop, self.step)
            self._since = time.perf_counter()

    def forget_time(self) -> None:
        """Leave out of the count what has passed since the step before."""
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Count what is done between steps as theirs: reading a sum waits for a GPU to finish them."""
        before = time.perf_counter()
        yield
        self._passed += time.perf_counter() - before

    def speed(self, batch_size: int) -> tuple[int, dict[str, float]]:
        """Return what was timed since the last call, and begin anew.

        Args:
            batch_size: Images of a step, of all processes.

        Returns:
            Steps timed, and, if there were any, `images_per_second` and `data_wait`, the share of the time that was
            spent waiting for data.
        """
        steps, passed, waited = self._timed, self._passed, self._waited
        self._timed, self._passed, self._waited = 0, 0.0, 0.0
        if not steps:
            return 0, {}
        return steps, {"images_per_second": steps * batch_size / passed, "data_wait": waited / passed}
