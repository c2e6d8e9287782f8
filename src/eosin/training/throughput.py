"""How fast a run is, and what of the chip it uses."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Stopwatch", "count_flops", "measure_peak"]

_REPEATS = 20
_PATIENCE = 0.2  # seconds


class Stopwatch:
    """Adds up the seconds that each part of a step takes, without making the host wait for a GPU.

    Args:
        device: On a GPU moments are events in its stream, read by `seconds` alone.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._moments: list[tuple[str, float | torch.cuda.Event]] = []
        self._seconds: dict[str, float] = {}

    def start(self) -> None:
        """Begin: what follows counts for the part named by the next `lap`."""
        self._note("")

    def lap(self, part: str) -> None:
        """Count the time since the last moment for `part`."""
        self._note(part)
        if self.device.type == "cpu":
            self._settle()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each part since the last call, and begin anew."""
        if self.device.type != "cpu":
            torch.cuda.synchronize(self.device)
        self._settle()
        self._moments = []
        taken, self._seconds = self._seconds, {}
        return taken

    def _note(self, part: str) -> None:
        if self.device.type == "cpu":
            self._moments.append((part, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._moments.append((part, event))

    def _settle(self) -> None:
        for (_, before), (part, after) in zip(self._moments, self._moments[1:], strict=False):
            if part:
                self._seconds[part] = self._seconds.get(part, 0.0) + _between(before, after)
        self._moments = self._moments[-1:]


def _between(before: float | torch.cuda.Event, after: float | torch.cuda.Event) -> float:
    if isinstance(before, torch.cuda.Event) and isinstance(after, torch.cuda.Event):
        return before.elapsed_time(after) / 1000
    assert isinstance(before, float)
    assert isinstance(after, float)
    return after - before


def count_flops(loss: Callable[[], Tensor]) -> int:
    """Count the floating-point operations of a forward and backward pass: two for each multiply-add.

    Matrix products, convolutions and attention are counted, by PyTorch's counter; element-wise work is not.

    Args:
        loss: Computes the scalar to differentiate.
    """
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    return int(counter.get_total_flops())


@functools.cache
def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations a second of a large matrix product, once a process: what the chip gives at best.

    Args:
        device: The chip.
        dtype: bfloat16 or float32, as the run trains.
    """
    size = 8192 if device.type == "cuda" else 1024
    # Not zeros: chips draw less power for them and clock higher.
    left, right = (torch.linspace(-1, 1, size * size, device=device).reshape(size, size).to(dtype) for _ in range(2))
    best, total = float("inf"), 0.0
    for _ in range(_REPEATS):
        _wait(device)
        before = time.perf_counter()
        left @ right
        _wait(device)
        taken = time.perf_counter() - before
        best, total = min(best, taken), total + taken
        if total > _PATIENCE:
            break
    return 2.0 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
