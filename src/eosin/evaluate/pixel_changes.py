"""Changes of an image that leave what it shows: focus, sharpening, compression, orientation.

Each works on uint8 pixels of the encoder's input and gives uint8 back, as a scanner, a viewer or a file would.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.core.files import short_hash
from eosin.core.registry import Registry

__all__ = ["PIXEL_CHANGES", "NamedChange"]

_SIGMA = 1.0
_QUALITY = 50


@dataclass(frozen=True)
class NamedChange:
    """A change that depends on the pixels alone, as `embed` takes it.

    Attributes:
        name: In records and on the command line.
        version: Raised when the same pixels would become others.
        about: What it does.
        apply: uint8 [B, 3, H, W] RGB to the same.
    """

    name: str
    version: int
    about: str
    apply: Callable[[Tensor], Tensor]

    @property
    def key(self) -> str:
        """Identity of what it does."""
        return short_hash("pixel change", self.name, self.version)

    def __call__(self, images: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
        """See `eosin.evaluate.embed.PixelChange`."""
        return self.apply(images)


PIXEL_CHANGES: Registry[NamedChange] = Registry("pixel change")


def _blurred(images: Tensor) -> Tensor:
    from eosin.augment.blur import gaussian_blur

    radius = min(int(4 * _SIGMA), images.shape[2] - 1, images.shape[3] - 1)
    values = images.to(torch.float32, memory_format=torch.contiguous_format)
    return gaussian_blur(values, torch.full((len(images),), _SIGMA, device=images.device), radius)


def _to_bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


def _blur(images: Tensor) -> Tensor:
    return _to_bytes(_blurred(images))


def _sharpen(images: Tensor) -> Tensor:
    return _to_bytes(2.0 * images.float() - _blurred(images))


def _jpeg(images: Tensor) -> Tensor:
    stored = [_as_jpeg(image.permute(1, 2, 0).numpy()) for image in images.cpu()]
    return torch.from_numpy(np.stack(stored)).permute(0, 3, 1, 2).contiguous().to(images.device)


def _as_jpeg(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    from PIL import Image

    file = io.BytesIO()
    # Chroma at half the resolution, as most files have it.
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=_QUALITY, subsampling="4:2:0")
    with Image.open(file) as image:
        return np.array(image)


def _turn(quarters: int) -> Callable[[Tensor], Tensor]:
    def turn(images: Tensor) -> Tensor:
        return torch.rot90(images, quarters, dims=(2, 3)).contiguous()

    return turn


for _change in (
    NamedChange(
        "sharpen", 1, f"unsharp mask, amount 1 (Gaussian, sigma {_SIGMA:g} px of the encoder's input)", _sharpen
    ),
    NamedChange("blur", 1, f"Gaussian, sigma {_SIGMA:g} px of the encoder's input", _blur),
    NamedChange(f"jpeg-{_QUALITY}", 1, f"JPEG at quality {_QUALITY}, chroma halved, written and read", _jpeg),
    NamedChange("rotate-90", 1, "a quarter turn counterclockwise", _turn(1)),
    NamedChange("rotate-180", 1, "half a turn", _turn(2)),
):
    PIXEL_CHANGES.register(_change.name)(_change)
