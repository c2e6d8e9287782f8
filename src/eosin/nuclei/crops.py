"""Windows for training: which image, which place, a pure function of the seed and the sample's number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from threading import Lock
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from eosin.core.draws import Draws, stream_seed
from eosin.core.errors import EosinError
from eosin.nuclei.augment import Augmentation, NucleiAugment
from eosin.nuclei.datasets.sample import NucleiImage, NucleiSample
from eosin.nuclei.windows import WindowBatch, relabel_windows

__all__ = ["Crops", "Places", "cut", "mirrored"]

Ints = npt.NDArray[np.int64]

KEPT_BYTES = 4 << 30
"""Memory for images that were read, in each process."""


def mirrored(start: int, length: int, extent: int) -> Ints:
    """Return places on an axis, mirrored at its ends without repeating the last, as often as needed.

    Args:
        start: First place; may lie outside.
        length: Number of places.
        extent: Length of the axis.

    Returns:
        int64 [length], within 0 to extent - 1.
    """
    places = np.arange(start, start + length)
    if start >= 0 and start + length <= extent:
        return places
    period = max(2 * (extent - 1), 1)
    places = places % period
    return np.minimum(places, period - places) if extent > 1 else np.zeros_like(places)


def cut(sample: NucleiSample, top: int, left: int, size: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Cut a window out of an image, mirrored where it ends.

    Args:
        sample: The image.
        top: First row; may lie outside.
        left: First column; may lie outside.
        size: Side in px.

    Returns:
        uint8 [3, size, size], and int32 [size, size] with the image's ids.
    """
    height, width = sample.instances.shape
    if 0 <= top <= height - size and 0 <= left <= width - size:
        rows, columns = slice(top, top + size), slice(left, left + size)
        return sample.image[:, rows, columns], sample.instances[rows, columns]
    down, across = mirrored(top, size, height), mirrored(left, size, width)
    return sample.image.take(down, axis=1).take(across, axis=2), sample.instances.take(down, axis=0).take(
        across, axis=1
    )


@lru_cache(maxsize=16)
def _order(seed: int, number: int, count: int) -> Ints:
    """Shuffle the samples of one pass: int64 [count]."""
    generator = np.random.default_rng(stream_seed(seed, "nuclei order", number))
    return generator.permutation(count)


class Places:
    """Which image and which place each sample shows.

    In one pass each image is shown as often as whole middles of `inner` px are needed to cover it ("area"), or once
    ("image"), in an order of its own. The middle may lie up to half of itself outside, where the image is mirrored: so
    each pixel is learned from equally often, itself or in the mirror. With middles inside alone, borders hardly were.

    Args:
        shapes: Height and width of each image.
        inner: Side in px of the middle that is learned from.
        seed: The run's seed.
        visits: "area" or "image".

    Raises:
        EosinError: If there are no images.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int]], inner: int, *, seed: int, visits: Literal["area", "image"] = "area"
    ) -> None:
        if not shapes:
            raise EosinError("there are no images to train on; give a set with images of the side 'train'")
        self.shapes, self.inner, self.seed = tuple(shapes), inner, seed
        counts = [1 if visits == "image" else math.ceil(h / inner) * math.ceil(w / inner) for h, w in shapes]
        self._owner = np.repeat(np.arange(len(shapes)), counts)

    def __len__(self) -> int:
        """Return the number of samples of a pass."""
        return len(self._owner)

    def at(self, samples: npt.ArrayLike) -> Ints:
        """Return image, top and left of the middle of samples, counted from the start of the run: int64 [B, 3].

        Args:
            samples: Integers, 0 and above.
        """
        numbers = np.asarray(samples, dtype=np.int64)
        images = np.empty(len(numbers), dtype=np.int64)
        passes = numbers // len(self)
        for number in np.unique(passes).tolist():
            rows = passes == number
            images[rows] = self._owner[_order(self.seed, number, len(self))[numbers[rows] % len(self)]]
        uniforms = Draws(self.seed, 0, numbers, "nuclei crop").uniform("place", 2)
        room = np.array([self.shapes[image] for image in images.tolist()], dtype=np.int64).reshape(-1, 2) - self.inner
        beyond = self.inner // 2
        inside = np.floor(uniforms * (room + 2 * beyond + 1)) - beyond
        # A middle larger than the image is centered on it.
        corners = np.where(room >= 0, inside, np.floor(room / 2)).astype(np.int64)
        return np.concatenate([images[:, None], corners], axis=1)


class Crops:
    """Augmented windows of images.

    Images are read when they are first needed, and kept as long as there is memory for them. Several threads may make
    batches at once. It can be sent to other processes; what was read stays here.

    Args:
        images: Images to train on.
        size: Side of the network's input in px.
        inner: Side of the network's output in px, the middle of the input; all of it by default.
        seed: The run's seed.
        augment: What is done to the windows; nothing by default.
        visits: See `Places`.
        kept_bytes: Memory for images.

    Raises:
        EosinError: If there are no images.
    """

    def __init__(
        self,
        images: Sequence[NucleiImage],
        size: int,
        inner: int | None = None,
        *,
        seed: int = 0,
        augment: NucleiAugment | None = None,
        visits: Literal["area", "image"] = "area",
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self.images, self.size, self.inner, self.seed = tuple(images), size, inner or size, seed
        self.places = Places([image.shape for image in images], self.inner, seed=seed, visits=visits)
        self.augment = None if augment is None else Augmentation(augment)
        self.window = size if augment is None else augment.window(size)
        self._budget = self._room = kept_bytes
        self._kept: dict[int, NucleiSample] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        """Return the number of samples of a pass."""
        return len(self.places)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"} | {"_kept": {}}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= state
        self._room, self._lock = self._budget, Lock()

    def batch(self, step: int, positions: npt.ArrayLike, samples: npt.ArrayLike, *, color: bool = True) -> WindowBatch:
        """Make a batch.

        Args:
            step: The training step, for the augmentation's draws.
            positions: int [B], each window's position in the global batch, for these draws.
            samples: int [B], the number of each sample since the start of the run, for image and place.
            color: Whether colors are changed here; if not, `augment.color` is left to the caller's device.

        Returns:
            Windows of `size` px.

        Raises:
            EosinError: If an image cannot be read.
        """
        places = self.places.at(samples)
        image = np.empty((len(places), 3, self.window, self.window), dtype=np.uint8)
        instances = np.empty((len(places), self.window, self.window), dtype=np.int32)
        types = []
        # The middle of the window is the middle of the network's input.
        before = (self.window - self.inner) // 2
        for row, (number, top, left) in enumerate(places.tolist()):
            sample = self._read(number)
            image[row], instances[row] = cut(sample, top - before, left - before, self.window)
            types.append(sample.types)
        named = [kinds for kinds in types if kinds is not None]
        batch = WindowBatch(
            image=torch.from_numpy(image),
            instances=torch.from_numpy(instances),
            types=named if len(named) == len(types) else None,
        )
        if self.augment is not None:
            change = self.augment if color else self.augment.move
            return change(batch, Draws(self.seed, step, np.asarray(positions)), self.size)
        batch["instances"], batch["types"] = relabel_windows(batch["instances"], batch["types"])
        return batch

    def _read(self, number: int) -> NucleiSample:
        if number in self._kept:
            return self._kept[number]
        sample = self.images[number].read()
        if sample.instances.shape != self.images[number].shape:
            raise EosinError(
                f"{self.images[number].name}: the image has changed since it was found; open the set again"
            )
        size = sample.image.nbytes + sample.instances.nbytes
        with self._lock:
            if size <= self._room and number not in self._kept:
                self._room -= size
                self._kept[number] = sample
        return sample
