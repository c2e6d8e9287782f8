"""What the comparisons of a training step share: turns of ours and a peer's, and the line that reports them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from statistics import median

import torch


def now(device: torch.device) -> float:
    """Seconds: CPU time of the process, so that a busy machine matters less, or wall time once a GPU has finished."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def interleaved(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int, device: torch.device
) -> tuple[float, float]:
    """Median seconds of each, taking turns; the first turn warms up and is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for function, seconds in zip((ours, peer), times, strict=True):
            start = now(device)
            function()
            if turn:
                seconds.append(now(device) - start)
    return median(times[0]), median(times[1])


def report(claim: str, ours: float, peer: float, peer_name: str, unit: str, ratio: float, n: str) -> None:
    """Print one claim as a JSON line; `ratio` above 1 means that ours is faster."""
    figures = {"ours": float(f"{ours:.4g}"), "peer": float(f"{peer:.4g}"), "peer_name": peer_name}
    print(json.dumps({"claim": claim, **figures, "unit": unit, "ratio": round(ratio, 2), "n": n}), flush=True)
