"""What a training of nuclei learns from: batches of windows with targets, and whole images to validate on."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eosin.core.collective import position_in_run, processes
from eosin.core.console import warn
from eosin.core.draws import Draws
from eosin.core.errors import EosinError
from eosin.data import default_workers
from eosin.nuclei.augment import Augmentation
from eosin.nuclei.config import NucleiConfig
from eosin.nuclei.crops import Crops
from eosin.nuclei.datasets import NucleiImage, NucleiSet, fraction, open_nuclei
from eosin.nuclei.datasets.checking import look_over
from eosin.nuclei.targets import targets

__all__ = ["LearningBatch", "TrainingData"]

_MOST_THREADS = 8
"""Threads that make batches; each keeps one ready beside the one it makes."""


@dataclass(frozen=True)
class LearningBatch:
    """One process's part of a step's batch.

    Attributes:
        images: uint8 [B, 3, window, window].
        targets: "np": uint8 [B, output, output], "hv": float32 [B, 2, output, output], and with types "tp": int64 [B,
            output, output].
        draws: Of the windows, for what is done to them on the device.
    """

    images: Tensor
    targets: dict[str, Tensor]
    draws: Draws


class TrainingData:
    """The images of a run.

    Args:
        config: The run's configuration, with `data.source` set.

    Attributes:
        set: The set.
        train: The images that are learned from.
        val: Those on which panoptic quality is measured; may be none.
        classes: Types that are learned; empty without.
        color: Changes colors on the device; None where the threads do it.

    Raises:
        EosinError: If no source is given, it cannot be opened, has no training images, or labels are at fault, be it
            on the test side.
    """

    def __init__(self, config: NucleiConfig, device: torch.device) -> None:
        if config.data.source is None:
            raise EosinError("--data is missing: name labelled nuclei, such as --data folder:DIR, or synthetic:")
        self.set: NucleiSet = open_nuclei(config.data.source)
        if not self.set.of("train"):
            raise EosinError(f"{self.set.source}: there are no images of the side 'train'")
        look_over(self.set)
        self.train: tuple[NucleiImage, ...] = fraction(self.set.of("train"), config.data.fraction, config.seed)
        self.val = self.set.of("val")[: config.validation.images]
        self.classes: tuple[str, ...] = self.set.classes if config.network.types else ()
        self.window, self.output = config.network.sides
        self.seed = config.seed
        self.targets = config.targets
        self.crops = Crops(self.train, self.window, self.output, seed=config.seed, augment=config.augment)
        on_device = device.type != "cpu"
        self.color: Augmentation | None = self.crops.augment if on_device else None
        self.threads = min(_MOST_THREADS, default_workers()) if config.data.workers is None else config.data.workers

    def __len__(self) -> int:
        """Return the windows of an epoch."""
        return len(self.crops)

    def describe(self) -> str:
        """Say what is learned from."""
        whole = len(self.set.of("train"))
        some = "" if len(self.train) == whole else f" of {whole}"
        types = f"{len(self.classes)} types ({', '.join(self.classes)})" if self.classes else "no types"
        scale = "µm/px unknown" if self.set.mpp is None else f"{self.set.mpp:g} µm/px"
        return (
            f"{self.set.name}: {len(self.train)}{some} training and {len(self.val)} validation images, {types}, {scale}"
        )

    def batches(self, first: int, last: int, size: int, seen: int) -> Generator[LearningBatch]:
        """Yield this process's part of the batches of steps, made in threads ahead of use.

        Args:
            first: First step of the run.
            last: The step after the last.
            size: Windows a step over all processes.
            seen: Windows of the steps before the first.
        """
        if not self.threads:
            for step in range(first, last):
                yield self.batch(step, size, seen + (step - first) * size)
            return
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="nuclei")
        ahead: deque[Future[LearningBatch]] = deque()
        asked = first
        try:
            for _ in range(first, last):
                while asked < last and len(ahead) < 2 * self.threads:
                    ahead.append(pool.submit(self.batch, asked, size, seen + (asked - first) * size))
                    asked += 1
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def batch(self, step: int, size: int, seen: int) -> LearningBatch:
        """Make this process's part of one batch: a pure function of the seed and the arguments.

        Args:
            step: Of the run.
            size: Windows over all processes.
            seen: Windows of all steps before.
        """
        positions = np.array_split(np.arange(size), processes())[position_in_run()]
        draws = Draws(self.seed, step, positions)
        windows = self.crops.batch(step, positions, seen + positions, color=self.color is None)
        made = []
        for row, instances in enumerate(windows["instances"].numpy()):
            types = windows["types"][row][1:] if self.classes and windows["types"] is not None else None
            made.append(targets(instances, types, (self.output, self.output), **self.targets.plain()))
        told = {
            "np": torch.from_numpy(np.stack([each.np for each in made])),
            "hv": torch.from_numpy(np.stack([each.hv for each in made])),
        }
        kinds = [each.tp for each in made if each.tp is not None]
        if self.classes:
            if len(kinds) != len(made):
                raise EosinError(f"{self.set.source}: some images have no types; use --network.types false")
            told["tp"] = torch.from_numpy(np.stack(kinds))
        return LearningBatch(windows["image"], told, draws)

    def check_resolution(self, mpp: float | None, where: str) -> None:
        """Warn where the encoder was trained at quite another resolution."""
        own = self.set.mpp
        if mpp is not None and own is not None and not 0.66 < mpp / own < 1.5:
            warn(f"{where}: trained at {mpp:g} µm/px, the images are at {own:g} µm/px")
