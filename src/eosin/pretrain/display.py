"""What a run shows while it goes on."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from rich.progress import Progress, TaskID

from eosin.core.console import progress_bar
from eosin.pretrain.config import PretrainConfig

__all__ = ["in_words", "run_progress"]


@contextlib.contextmanager
def run_progress(config: PretrainConfig, step: int, *, shown: bool) -> Iterator[tuple[Progress, TaskID]]:
    """Show step, loss, images/s and the time left, on a terminal.

    Args:
        config: The run's configuration.
        step: Steps taken so far.
        shown: Whether this process is the one that shows it.
    """
    progress = progress_bar("loss", "speed")
    progress.disable = not (shown and sys.stderr.isatty())
    with progress:
        task = progress.add_task(config.method.name, total=config.steps, completed=step, loss="", speed="")
        yield progress, task


def in_words(record: dict[str, Any], steps: int) -> str:
    """Put a log record of a look at the encoder into one line."""
    parts = [f"step {record['step']}/{steps}", f"loss {record['loss']:.3f} (chance {record['loss_at_chance']:.2f})"]
    if "watch/knn_accuracy" in record:
        parts.append(f"kNN {record['watch/knn_accuracy']:.3f}")
    parts.append(f"rank {record['watch/effective_rank']:.0f}")
    parts.append(f"spread {record['watch/projection_spread']:.2f}")
    parts.append(f"{record['images_per_second']:.0f} img/s")
    return "  ".join(parts)
