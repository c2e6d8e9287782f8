"""What every augmentation has in common: sample the parameters, then apply them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field
from torch import Tensor

from eosin.core.draws import Draws
from eosin.core.transfer import upload

__all__ = ["Operation", "Parameters", "Probability", "on_rows", "per_image", "stain_parameters"]

Parameters = Mapping[str, npt.NDArray[np.generic]]
"""The drawn values of one operation: arrays on the host, the first axis is the image in the batch."""

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Operation(Protocol):
    """One augmentation, split so that what was drawn can be kept, inspected and replayed."""

    def sample(self, draws: Draws, images: Tensor) -> Parameters:
        """Draw each image's parameters.

        Args:
            draws: The batch's draws; image `i`'s values depend on its own position alone.
            images: [B, 3, H, W], read for its shape only.

        Returns:
            Arrays of length B.
        """
        ...

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Apply drawn parameters.

        Args:
            images: float32 [B, 3, H, W] in 0..1 (the geometric operations take uint8 as well). The tensor may be
                overwritten; pass a clone to keep it.
            parameters: What `sample` returned, or rows of it.

        Returns:
            The changed images, same dtype and range.
        """
        ...


def per_image(values: npt.NDArray[np.generic], images: Tensor) -> Tensor:
    """Shape one value an image as float32 [B, 1, 1, 1] on the images' device."""
    return upload(np.asarray(values, dtype=np.float32), images.device).view(-1, 1, 1, 1)


def stain_parameters(name: str, values: npt.ArrayLike, count: int, stains: str) -> npt.NDArray[np.float64]:
    """Return one value a stain and image as float64 [count, len(stains)].

    Args:
        name: What to call them in an error.
        values: One row an image.
        count: Number of images.
        stains: A letter a stain.

    Raises:
        ValueError: If they are not finite or not of that shape.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (count, len(stains)) or not np.isfinite(array).all():
        one = f"one of {', '.join(stains)} an image"
        raise ValueError(f"{name}: expected finite values [{count}, {len(stains)}], {one}, got {list(array.shape)}")
    return array


def on_rows(images: Tensor, chosen: npt.NDArray[np.bool_], change: Callable[[Tensor], Tensor]) -> None:
    """Replace the chosen images by `change` of them, touching no other.

    Args:
        images: [B, ...], changed in place.
        chosen: bool [B].
        change: Maps [n, ...] to the same shape; it may work in place.
    """
    count = int(np.count_nonzero(chosen))
    if count == 0:
        return
    if count == len(images):
        changed = change(images)
        if changed is not images:
            images.copy_(changed)
        return
    rows = np.flatnonzero(chosen)
    if rows[-1] - rows[0] + 1 == count:
        on_rows(images[rows[0] : rows[-1] + 1], np.ones(count, dtype=bool), change)
        return
    index = upload(rows, images.device)
    images.index_copy_(0, index, change(images.index_select(0, index)))
