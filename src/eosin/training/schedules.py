"""Schedules as pure functions of (step, total steps)."""

from __future__ import annotations

import math

__all__ = ["cosine", "warmup_cosine"]


def cosine(step: int, total: int, start: float, end: float) -> float:
    """Follow half a cosine from `start` to `end`.

    With s the step and n the total,  end + (start - end) (1 + cos(pi s / n)) / 2.

    Args:
        step: Step counted from 0; from `total` on the value is `end`.
        total: Steps of the run, at least 1.
        start: Value at step 0.
        end: Value at `total`.

    Returns:
        The value at `step`.
    """
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(step, total) / total))


def warmup_cosine(
    step: int, total: int, *, peak: float, final: float = 0.0, warmup: int = 0, start: float = 0.0, stair: int = 1
) -> float:
    """Rise linearly from `start` to `peak`, then follow half a cosine to `final`.

    With s the step and w the warm-up,

        s < w:   start + (peak - start) s / w
        s >= w:  final + (peak - final) (1 + cos(pi (s - w) / (total - w))) / 2

    as in SGDR without restarts (Loshchilov and Hutter, ICLR 2017). `stair` > 1 holds the value for that many steps, as
    code that sets the learning rate once an epoch does.

    Args:
        step: Step counted from 0; the value at `total` is `final`.
        total: Steps of the run, more than `warmup`.
        peak: Value at the end of the warm-up.
        final: Value at the end of the run.
        warmup: Steps of the linear rise.
        start: Value at step 0 when there is a warm-up.
        stair: Steps for which a value is held.

    Returns:
        The value at `step`.
    """
    step = min(step // stair * stair, total)
    if step < warmup:
        return start + (peak - start) * step / warmup
    return cosine(step - warmup, total - warmup, peak, final)
