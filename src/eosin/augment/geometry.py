"""Where a view looks: random resized crop, by share of the tile or by physical size, flips and quarter turns."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from eosin.augment.operations import Parameters, on_rows
from eosin.augment.resample import Interpolation, resample_boxes
from eosin.core.draws import Draws

__all__ = ["Flip", "Interpolation", "RandomResizedCrop", "Rotate90", "crop_boxes", "field_boxes", "resized_crop"]

TRIES = 10


def crop_boxes(
    uniforms: npt.NDArray[np.float64], height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> npt.NDArray[np.int64]:
    """Turn uniform draws into crop boxes by torchvision's law (`RandomResizedCrop.get_params`).

    Up to ten tries of area ~ U(scale) x image area and log aspect ratio ~ U(log ratio); the first box that fits is
    placed uniformly, and when none fits the central box with the nearest allowed aspect ratio is taken.

    Args:
        uniforms: float64 [B, 22] in [0, 1): ten areas, ten ratios, vertical and horizontal place.
        height: Image height in pixels.
        width: Image width in pixels.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width / height.

    Returns:
        int64 [B, 4]: top, left, height, width.
    """
    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniforms[:, :TRIES])
    return _placed_boxes(area, uniforms, height, width, ratio)


def field_boxes(
    uniforms: npt.NDArray[np.float64],
    height: int,
    width: int,
    fields: tuple[float, float],
    mpp: npt.NDArray[np.float64],
    ratio: tuple[float, float],
) -> npt.NDArray[np.int64]:
    """Turn uniform draws into crop boxes of a physical size, whatever the resolution of each tile.

    As `crop_boxes`, but the area is s² µm² with s ~ U(fields): tiles of different µm/px show equally large tissue, and
    a wide range of s makes a batch of views of many µm/px. A tile that is smaller than every try is taken whole.

    Args:
        uniforms: float64 [B, 22] in [0, 1), as for `crop_boxes`.
        height: Image height in pixels.
        width: Image width in pixels.
        fields: Smallest and largest side in µm of a square of the box's area.
        mpp: float64 [B], µm/px of each image.
        ratio: Smallest and largest width / height.

    Returns:
        int64 [B, 4]: top, left, height, width.
    """
    sides = (fields[0] + (fields[1] - fields[0]) * uniforms[:, :TRIES]) / mpp[:, None]
    # A field of less than a pixel is one pixel; rounded to none it would be taken for one that does not fit.
    return _placed_boxes(np.maximum(sides, 1.0) ** 2, uniforms, height, width, ratio)


def _placed_boxes(
    area: npt.NDArray[np.float64],
    uniforms: npt.NDArray[np.float64],
    height: int,
    width: int,
    ratio: tuple[float, float],
) -> npt.NDArray[np.int64]:
    low, high = np.log(ratio)
    aspect = np.exp(low + (high - low) * uniforms[:, TRIES : 2 * TRIES])
    widths = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    heights = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.argmax(axis=1)
    rows = np.arange(len(uniforms))
    box_height, box_width = heights[rows, first], widths[rows, first]
    top = np.floor(uniforms[:, 2 * TRIES] * (height - box_height + 1)).astype(np.int64)
    left = np.floor(uniforms[:, 2 * TRIES + 1] * (width - box_width + 1)).astype(np.int64)
    boxes = np.stack([top, left, box_height, box_width], axis=1)
    boxes[~fits.any(axis=1)] = _central_box(height, width, ratio)
    return boxes


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        box_width = min(width, max(1, round(height * ratio[1])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def resized_crop(
    images: Tensor, boxes: npt.NDArray[np.int64], size: int, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """Cut one box out of each image and resample all of them, antialiased, to one size.

    The filter is the triangle (bilinear) or the cubic with a = -0.5 (bicubic), widened by the down-scale. It runs
    along the rows, then along the columns, and each pass is rounded and clipped to 8 bits: all of it as in Pillow and
    in torchvision for 8-bit images. On a CPU the weights are fixed-point; on another device all boxes are resampled at
    once in float, which may move a value by a grey level, rarely by two.

    Args:
        images: uint8 [B, 3, H, W].
        boxes: int64 [B, 4]: top, left, height, width in pixels, inside the image.
        size: Side of the result in pixels.
        interpolation: "bilinear" or "bicubic".

    Returns:
        uint8 [B, 3, size, size].
    """
    # The 8-bit kernels, which round between their two passes, exist on CPUs only, and fail for a result of one pixel.
    if images.device.type != "cpu" or size == 1:
        return resample_boxes(images, boxes, size, interpolation)
    crops = images.new_empty(len(images), images.shape[1], size, size)
    resample = partial(F.interpolate, size=(size, size), mode=interpolation, antialias=True, align_corners=False)
    for row, (top, left, height, width) in enumerate(boxes.tolist()):
        crops[row : row + 1] = resample(images[row : row + 1, :, top : top + height, left : left + width])
    return crops


class RandomResizedCrop:
    """A box of random area, aspect ratio and place, resampled to a square.

    Args:
        size: Side of the view in pixels.
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width / height.
        interpolation: "bilinear" or "bicubic".
        field_of_view: Smallest and largest side in µm; takes the place of `scale`.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        interpolation: Interpolation,
        field_of_view: tuple[float, float] | None = None,
    ) -> None:
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.interpolation: Interpolation = interpolation
        self.field_of_view = field_of_view

    def sample(self, draws: Draws, images: Tensor, mpp: npt.NDArray[np.float64] | None = None) -> Parameters:
        """Draw `box`: int64 [B, 4] top, left, height, width, by the law of `crop_boxes` or `field_boxes`.

        Args:
            draws: The batch's draws.
            images: [B, 3, H, W], read for its shape only.
            mpp: float64 [B], µm/px; needed with a field of view.

        Raises:
            ValueError: If a field of view is asked for and a tile's µm/px is not known.
        """
        uniforms = draws.uniform("crop", 2 * TRIES + 2)
        height, width = images.shape[-2:]
        if self.field_of_view is None:
            return {"box": crop_boxes(uniforms, height, width, self.scale, self.ratio)}
        if mpp is None or not (mpp > 0).all():
            raise ValueError("a field of view in µm needs the µm/px of every tile")
        return {"box": field_boxes(uniforms, height, width, self.field_of_view, mpp, self.ratio)}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Crop uint8 [B, 3, H, W] to uint8 [B, 3, size, size] with `resized_crop`."""
        return resized_crop(images, np.asarray(parameters["box"], dtype=np.int64), self.size, self.interpolation)


class Flip:
    """Mirror left-right and top-bottom, each with its probability: a slide has no upright.

    Args:
        horizontal: Probability of a left-right flip.
        vertical: Probability of a top-bottom flip.
    """

    def __init__(self, horizontal: float, vertical: float) -> None:
        self.horizontal = horizontal
        self.vertical = vertical

    def sample(self, draws: Draws, images: Tensor) -> Parameters:
        """Draw `horizontal` and `vertical`: bool [B]."""
        uniforms = draws.uniform("flip", 2)
        return {"horizontal": uniforms[:, 0] < self.horizontal, "vertical": uniforms[:, 1] < self.vertical}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Flip the chosen images of [B, C, H, W], any dtype, in place."""
        horizontal = np.asarray(parameters["horizontal"], dtype=bool)
        vertical = np.asarray(parameters["vertical"], dtype=bool)
        for chosen, axes in (
            (horizontal & ~vertical, (-1,)),
            (vertical & ~horizontal, (-2,)),
            (horizontal & vertical, (-2, -1)),
        ):
            if images.device.type != "cpu":
                on_rows(images, chosen, lambda part, axes=axes: part.flip(axes))  # type: ignore[misc]
                continue
            # One image at a time: torch flips a batch several times slower than its images.
            for row in np.flatnonzero(chosen).tolist():
                images[row] = images[row].flip(axes)
        return images


class Rotate90:
    """Turn by 90°, 180° or 270°, each equally likely.

    Args:
        probability: Share of the images that are turned.
    """

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def sample(self, draws: Draws, images: Tensor) -> Parameters:
        """Draw `quarters`: int64 [B], quarter turns against the clock, 0 where the image stays."""
        uniforms = draws.uniform("rotate90", 2)
        quarters = 1 + np.floor(3 * uniforms[:, 1]).astype(np.int64)
        return {"quarters": np.where(uniforms[:, 0] < self.probability, quarters, 0)}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Turn the chosen images of square [B, C, H, H], any dtype, in place."""
        quarters = np.asarray(parameters["quarters"], dtype=np.int64)
        for turns in (1, 2, 3):
            chosen = quarters == turns
            if images.device.type != "cpu":
                on_rows(images, chosen, lambda part, turns=turns: part.rot90(turns, (-2, -1)))  # type: ignore[misc]
                continue
            for row in np.flatnonzero(chosen).tolist():
                images[row] = images[row].rot90(turns, (-2, -1))
        return images
