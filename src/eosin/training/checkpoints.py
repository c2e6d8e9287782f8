"""Checkpoints that are whole, checked and few.

A checkpoint is one file, `step-00000120-1f0c….pt`, whose name carries the first 16 hexadecimal digits of the SHA-256 of
its bytes. It is written beside its place and renamed, so no crash leaves a name whose bytes are not there, and a later
damage shows as a mismatch.
"""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import torch

from eosin.core.console import warn
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file, storage_errors

__all__ = ["Checkpoints"]

_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.pt")


class Checkpoints:
    """The checkpoints of a run.

    Args:
        directory: Where they lie; created when the first is saved.
        keep: How many of the newest to keep.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory = directory
        self.keep = keep

    def saved(self) -> list[tuple[int, Path]]:
        """Return (step, file) of every checkpoint, oldest first."""
        found = []
        if self.directory.is_dir():
            for path in self.directory.iterdir():
                match = _NAME.fullmatch(path.name)
                if match:
                    found.append((int(match[1]), path))
        return sorted(found)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint, then remove those beyond the newest `keep`.

        Checkpoints of later steps, which `load_newest` passed over as damaged, are removed too: they must not stand
        in the place of whole ones.

        Args:
            step: Optimiser steps taken so far.
            state: Tensors, numbers, strings and containers of them.

        Raises:
            EosinError: If the disk is full or not writable; earlier checkpoints are untouched.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        digest = hashlib.sha256(content).hexdigest()[:16]
        path = self.directory / f"step-{step:08d}-{digest}.pt"
        try:
            with storage_errors(self.directory):
                self.directory.mkdir(exist_ok=True)
            with atomic_file(path) as file:
                file.write(content)
        except EosinError as error:
            held = self.saved()
            note = f"; the checkpoint of step {held[-1][0]} is kept" if held else ""
            raise EosinError(f"{error}{note}") from error
        for at, old in self.saved():
            if at >= step and old != path:
                old.unlink()
        self.tidy(step)
        return path

    def tidy(self, step: int) -> None:
        """Remove what a save up to `step` leaves over, also one that a kill cut short.

        Args:
            step: Step of the newest whole checkpoint.
        """
        earlier = [old for at, old in self.saved() if at <= step]
        for old in earlier[: max(0, len(earlier) - self.keep)]:
            old.unlink()
        for part in self.directory.glob(".*.part"):
            part.unlink()

    def load_newest(self) -> tuple[int, dict[str, Any]] | None:
        """Load the newest undamaged checkpoint, saying so when newer ones had to be passed over.

        Returns:
            (step, state), or None where no checkpoint exists.

        Raises:
            EosinError: If there are checkpoints and all are damaged.
        """
        saved = self.saved()
        for step, path in reversed(saved):
            try:
                content = path.read_bytes()
            except OSError as error:
                raise EosinError(
                    f"{path}: cannot be read ({error.strerror}); change its permissions, or remove it to resume from "
                    "the one before"
                ) from None
            if hashlib.sha256(content).hexdigest()[:16] == _NAME.fullmatch(path.name)[2]:  # type: ignore[index]
                return step, torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            warn(f"{path}: damaged (its bytes do not match its checksum); trying the one before")
        if saved:
            raise EosinError(f"{self.directory}: every checkpoint is damaged; remove the run directory to start anew")
        return None
