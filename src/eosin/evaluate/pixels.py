"""What protocols that look at pixels share: drawn crops and flips, center views, and an encoder held still.

A training view is a crop of the tile's central square at its own resolution, brought to the encoder's size and
flipped; which crop and flip is a pure function of (seed, epoch, row), so that neither batches, nor
workers, nor a restart change what an epoch shows.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.augment.geometry import TRIES, Flip, crop_boxes, resized_crop
from eosin.augment.resample import Interpolation
from eosin.core.draws import Draws
from eosin.core.errors import EosinError
from eosin.data.images import UnreadableImage, open_image, square_image
from eosin.data.loader import iterate_tiles
from eosin.data.quarantine import Quarantine
from eosin.data.tiles import Tiles, ViewSource, load_square
from eosin.data.workers import read_ahead
from eosin.evaluate.metrics import metric_value

if TYPE_CHECKING:
    from eosin.encoders import Encoder
    from eosin.evaluate.protocol import Fit, Material

__all__ = [
    "CropLaw",
    "DrawnViews",
    "Pixels",
    "ViewKey",
    "balanced_accuracy_and_loss",
    "center_views",
    "check_fit",
    "drawn_views",
    "exact_convolutions",
    "pick_device",
    "pixels_of",
    "present_classes",
]

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
ViewKey = tuple[Rows, Sequence[int]]

# Tiles without a resolution of their own are made this much larger than the encoder's input: 256 px for 224, as the
# usual pair of resize and crop.
_MARGIN = 8 / 7


@dataclass(frozen=True)
class CropLaw:
    """The law of a training view's crop and flips.

    Attributes:
        size: Side of the view in px.
        interpolation: Filter of the resampling.
        scale: Smallest and largest share of the square's area in the crop.
        ratio: Smallest and largest width / height of the crop.
        flip: Probability of a left-right flip, and of a top-bottom flip.
    """

    size: int
    interpolation: Interpolation = "bilinear"
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5


class DrawnViews:
    """Makes training views of tiles; runs in workers.

    Args:
        tiles: N tiles.
        law: Of crops and flips.
        seed: Of the draws.
        scope: Name of whose views these are, so that two protocols do not draw alike.
    """

    def __init__(self, tiles: Tiles, law: CropLaw, seed: int, scope: str) -> None:
        self.tiles = tiles.without_columns()
        self.law = law
        self.seed = seed
        self.scope = scope

    def __call__(self, key: ViewKey, /) -> Tensor:
        """Make the views that epochs show of rows, decoding each tile once.

        Args:
            key: (rows int64 [B], E epochs).

        Returns:
            uint8 [E, B, 3, size, size] RGB.

        Raises:
            EosinError: If a tile cannot be read any more.
        """
        rows, epochs = key
        law = self.law
        views = torch.empty(len(epochs), len(rows), 3, law.size, law.size, dtype=torch.uint8)
        draws = [Draws(self.seed, epoch, rows, self.scope) for epoch in epochs]
        uniforms = [drawn.uniform("crop", 2 * TRIES + 2) for drawn in draws]
        for place, row in enumerate(rows.tolist()):
            square = self._square(row)
            height, width = square.shape[-2:]
            for epoch, drawn in enumerate(uniforms):
                box = crop_boxes(drawn[place : place + 1], height, width, law.scale, law.ratio)
                views[epoch, place] = resized_crop(square, box, law.size, law.interpolation)[0]
        flip = Flip(law.flip, law.flip)
        for epoch, drawn_ in enumerate(draws):
            views[epoch] = flip.apply(views[epoch], flip.sample(drawn_, views[epoch]))
        return views

    def _square(self, row: int) -> Tensor:
        """Return the central square of a tile, in its own px or as few as the smallest crop needs: uint8 [1, 3, s, s].

        Of an image much larger than that, no crop would keep all pixels: it is decoded at that size, which is cheaper.
        """
        law, tiles = self.law, self.tiles
        enough = math.ceil(law.size / math.sqrt(law.scale[0]))
        try:
            if isinstance(tiles.source, ViewSource):
                square = load_square(tiles, row, math.ceil(law.size * _MARGIN), law.interpolation)
            else:
                data = tiles.read(row)
                square = square_image(data, min(*open_image(data).size, enough), law.interpolation)
        except UnreadableImage as error:
            raise _vanished(tiles, row, str(error)) from None
        return torch.from_numpy(square)[None]


def _vanished(tiles: Tiles, row: int, reason: str) -> EosinError:
    return EosinError(
        f"{tiles.spec}: tile '{tiles.names[row]}' could be read when it was embedded, and no more: {reason}; restore it"
    )


def drawn_views(views: DrawnViews, keys: Sequence[ViewKey], workers: int) -> Iterator[Tensor]:
    """Yield `views(key)` of each key, in order, made ahead by `workers` processes."""
    return read_ahead(views, keys, workers)


def center_views(
    tiles: Tiles, rows: Rows, *, size: int, batch: int, workers: int, interpolation: Interpolation
) -> Iterator[Tensor]:
    """Yield the views that embeddings are made of (short side to `size`, center crop): uint8 [B, 3, size, size].

    Args:
        tiles: N tiles.
        rows: Which, in this order.
        size: Side in px.
        batch: Images a batch.
        workers: Processes that decode.
        interpolation: Filter of the resize.

    Raises:
        EosinError: If a tile cannot be read any more.
    """
    chosen = tiles.select(rows)
    # Starting processes takes longer than decoding a few images.
    workers = 0 if len(rows) <= 2 * batch else workers
    quarantine = Quarantine(None, limit=1.0)
    seen = 0
    for images, found in iterate_tiles(
        chosen, size=size, batch_size=batch, workers=workers, quarantine=quarantine, interpolation=interpolation
    ):
        if quarantine.count:
            break
        seen += len(found)
        yield images
    if seen < len(rows):
        name = quarantine.names[0]
        row = next(row for row in rows.tolist() if tiles.names[row] == name)
        raise _vanished(tiles, row, quarantine.reason(name))


@dataclass(frozen=True, eq=False)
class Pixels:
    """The images of a task and the encoder, present for sure."""

    tiles: Tiles
    encoder: Encoder


def pixels_of(material: Material, protocol: str) -> Pixels:
    """Return images and encoder.

    Raises:
        EosinError: If one is not at hand.
    """
    if material.tiles is None or material.encoder is None:
        raise EosinError(f"{protocol}: needs the images and the encoder, and has features only; give an encoder spec")
    return Pixels(material.tiles, material.encoder)


def check_fit(fit: Fit, protocol: str) -> None:
    """Refuse splits that nothing can be learned or chosen from.

    Raises:
        EosinError: If there are no validation images, or training images of one class only.
    """
    if not len(fit.val):
        raise EosinError(f"{protocol}: no validation images to choose settings on; give a val split")
    if len(np.unique(fit.labels[fit.train])) < 2:
        raise EosinError(f"{protocol}: the training images are of one class only; give images of a second class")


def present_classes(fit: Fit) -> Rows:
    """Return the classes that have training images, ascending: no other can be predicted."""
    return np.unique(fit.labels[fit.train])


def balanced_accuracy_and_loss(probabilities: Floats, truth: Rows) -> tuple[float, float]:
    """Score probabilities float64 [n, C] of validation images: balanced accuracy, mean log-loss rounded to 1e-9."""
    accuracy = metric_value("balanced_accuracy", truth, probabilities)
    picked = probabilities[np.arange(len(truth)), truth]
    return (0.0 if accuracy is None else accuracy), round(float(-np.log(np.maximum(picked, 1e-300)).mean()), 9)


def pick_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def exact_convolutions() -> Iterator[None]:
    """Keep cuDNN from TF32: what is called fp32 is fp32 on every device."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
