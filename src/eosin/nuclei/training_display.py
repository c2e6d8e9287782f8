"""What a training of nuclei says: what is planned, progress, and a line for each look."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from rich.progress import Progress, TaskID

from eosin.core.console import progress_bar
from eosin.nuclei.config import NetworkConfig, NucleiConfig
from eosin.nuclei.hovernet import HoverNet

__all__ = ["described", "in_words", "plan", "shown_progress"]


def plan(config: NucleiConfig, windows: int, steps: Sequence[int]) -> list[str]:
    """Say what each phase will do.

    Args:
        config: Of the run.
        windows: Of an epoch.
        steps: Of each phase.
    """
    lines = []
    for name, count in zip(config.phases, steps, strict=True):
        fields = config.phase(name)
        total = count * fields.batch_size
        what = f"encoder frozen ({config.freeze})" if name == "decoder" else "all"
        lines.append(
            f"phase {name}, {what}: {total} windows = {total / windows:.1f} epochs = {count} steps of "
            f"{fields.batch_size}, lr {fields.lr:g}"
        )
    return lines


def described(network: HoverNet, config: NetworkConfig) -> str:
    """Say what is trained: encoder, geometry, parameters."""
    size = sum(value.numel() for value in network.parameters()) / 1e6
    sides = f"{network.window} → {network.output} px"
    return f"{config.encoder} under HoVer-Net {config.geometry} ({sides}), {size:.1f} M parameters"


@contextlib.contextmanager
def shown_progress(step: int, steps: int, *, shown: bool) -> Iterator[tuple[Progress, TaskID]]:
    """Show step, loss, windows/s and the time left, on a terminal.

    Args:
        step: Steps taken.
        steps: Of the run.
        shown: Whether this process is the one that shows it.
    """
    progress = progress_bar("loss", "speed")
    progress.disable = not (shown and sys.stderr.isatty())
    with progress:
        yield progress, progress.add_task("nuclei", total=steps, completed=step, loss="", speed="")


def in_words(record: dict[str, Any], steps: int) -> str:
    """Put the log record of a look at the validation images into one line."""
    parts = [f"step {record['step']}/{steps}", f"loss {record['loss']:.3f}"]
    parts += [f"{name} {record[f'val/{name.lower()}']:.3f}" for name in ("PQ", "AJI", "Dice")]
    if "val/mpq" in record:
        parts.append(f"mPQ {record['val/mpq']:.3f}")
    parts.append(f"{record['val/found']:.0f} of {record['val/true']:.0f} nuclei")
    parts.append(f"{record['images_per_second']:.1f} windows/s")
    return "  ".join(parts)
