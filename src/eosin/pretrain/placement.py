"""Where views are made: on the device that trains, or in the processes that decode."""

from __future__ import annotations

import os
import time
from statistics import median
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.augment import Views
from eosin.core.collective import average, largest
from eosin.core.draws import Draws

__all__ = ["Placement", "RunViews", "Where"]

Where = Literal["device", "workers"]

TRIAL_STEPS = 12
"""Steps taken with each place."""
SETTLING_STEPS = 4
"""The first of them, which fill the queues and are not counted."""

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 (not written to)


class RunViews:
    """The views of a run's batches; picklable, to be called in workers.

    Args:
        views: Makes the views.
        seed: The run's seed.
    """

    def __init__(self, views: Views, seed: int) -> None:
        self.views = views
        self.seed = seed

    def __call__(
        self, images: Tensor, step: int, positions: npt.NDArray[np.int64], mpp: npt.NDArray[np.float64] | None
    ) -> list[Tensor]:
        """Make the views of uint8 [B, 3, H, W]; see `eosin.data.MakeViews`."""
        return self.views(images, Draws(self.seed, step, positions), mpp)


class Placement:
    """Chooses by trial: the run's first steps are taken with each place, and the faster one stays.

    On a CPU both give the same bits; on a GPU crops may differ by a grey level.

    Args:
        wanted: "fastest", or a choice.
        step: The step at which this process starts.
        steps: Steps of the run.
        workers: Loading processes.
        batch_bytes: Bytes of one process's views of a step.
        device: Where the run trains.
    """

    def __init__(
        self,
        wanted: Literal["fastest", "device", "workers"],
        *,
        step: int,
        steps: int,
        workers: int,
        batch_bytes: int,
        device: torch.device,
    ) -> None:
        self.device = device
        self.steps = steps
        self.where: Where = "workers" if wanted == "workers" and workers > 0 else "device"
        self.reason = f"as asked for by --augment_on {wanted}" if wanted != "fastest" else ""
        if wanted == "workers" and workers == 0:
            self.reason = "there are no workers: --data.workers is 0"
        elif wanted == "fastest":
            self.reason = _no_trial(steps - step, workers, batch_bytes)
            # All processes hold a trial, or none: they average its times.
            if largest(int(bool(self.reason)), device) and not self.reason:
                self.reason = "another process cannot try"
        self.trial_ends = [] if self.reason else [step + TRIAL_STEPS, step + 2 * TRIAL_STEPS]
        self.seconds: dict[Where, float] = {}
        self._taken: list[float] = []
        self._before = 0.0

    @property
    def until(self) -> int:
        """The step up to which the current place holds."""
        return self.trial_ends[0] if self.trial_ends else self.steps

    def step_taken(self) -> None:
        """Note that a step is over."""
        if not self.trial_ends:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._before:
            self._taken.append(now - self._before)
        self._before = now

    def turn(self) -> str | None:
        """Go on to the next place when the current one's trial is over; return a line once the choice is made."""
        if not self.trial_ends:
            return None
        counted = self._taken[SETTLING_STEPS:]
        self.seconds[self.where] = float(average(torch.tensor(median(counted), device=self.device)))
        self.trial_ends.pop(0)
        self._taken, self._before = [], 0.0
        if self.trial_ends:
            self.where = "workers"
            return None
        self.where = "workers" if self.seconds["workers"] < self.seconds["device"] else "device"
        measured = ", ".join(f"{place} {1e3 * self.seconds[place]:.0f} ms" for place in ("device", "workers"))
        self.reason = f"a step took {measured}; --augment_on sets it"
        return self.describe()

    def describe(self) -> str:
        """Say where views are made and why."""
        place = f"on {self.device}" if self.where == "device" else "in the loading processes"
        return f"views are made {place} ({self.reason})"


def _no_trial(steps: int, workers: int, batch_bytes: int) -> str:
    """Say why no trial is held; nothing where one is."""
    if workers == 0:
        return "there are no workers"
    if steps < 8 * TRIAL_STEPS:
        return f"a trial is not worth it for {steps} steps"
    # Each worker of each process on this host has two batches waiting, and one on its way.
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    needed, free = 3 * workers * batch_bytes * here, _free_shared_memory()
    if needed > free // 2:
        return f"the workers' views would take {needed / 1e9:.1f} of {free / 1e9:.1f} GB of {_SHARED_MEMORY}"
    return ""


def _free_shared_memory() -> int:
    try:
        status = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return 0
    return status.f_bavail * status.f_frsize
