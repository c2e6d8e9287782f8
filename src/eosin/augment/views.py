"""From a batch of tiles to the views a method asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import Tensor

from eosin.augment.blur import BlurConfig, GaussianBlur
from eosin.augment.chunks import CHUNK_PIXELS
from eosin.augment.color import ColorJitter, Grayscale, JitterConfig, Solarize, SolarizeConfig
from eosin.augment.fused import FUSED, FusedColors
from eosin.augment.geometry import Flip, Interpolation, RandomResizedCrop, Rotate90
from eosin.augment.hed import HEDJitter, HEDJitterConfig
from eosin.augment.macenko import Macenko, MacenkoConfig
from eosin.augment.operations import Operation, Parameters, Probability
from eosin.augment.randstainna import RandStainNA, RandStainNAConfig
from eosin.core.config import Config
from eosin.core.draws import Draws
from eosin.core.transfer import upload

__all__ = ["AugmentConfig", "ViewConfig", "Views"]

Positive = Annotated[float, Field(gt=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
# Smaller ones, and none is of images, would take views out of what mixed precision holds.
Deviation = Annotated[float, Field(ge=1e-3, le=1.0)]
ViewParameters = Mapping[str, Parameters]


class ViewConfig(Config):
    """How one kind of view is made; the defaults are MoCo v2's (`main_moco.py --aug-plus`).

    The operations run in the order of the fields.
    """

    count: Annotated[int, Field(ge=0)] = 2
    """Views of this kind per image; 0 leaves the kind out."""
    size: Annotated[int, Field(ge=1)] = 224
    """Side of the view in pixels."""
    scale: tuple[Positive, Annotated[float, Field(gt=0.0, le=1.0)]] = (0.2, 1.0)
    """Smallest and largest share of the image's area in the crop."""
    field_of_view: tuple[Positive, Positive] | None = None
    """Smallest and largest side of the crop in µm, in place of `scale`; the tiles must have a known µm/px."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the crop."""
    interpolation: Interpolation = "bilinear"
    """Filter of the antialiased resampling."""
    horizontal_flip: Probability = 0.5
    """Probability of a left-right flip."""
    vertical_flip: Probability = 0.0
    """Probability of a top-bottom flip."""
    rotate90: Probability = 0.0
    """Probability of a turn by 90°, 180° or 270°."""
    macenko: MacenkoConfig = MacenkoConfig()
    hed: HEDJitterConfig = HEDJitterConfig()
    randstainna: RandStainNAConfig = RandStainNAConfig()
    jitter: JitterConfig = JitterConfig()
    grayscale: Probability = 0.2
    """Probability of losing the color."""
    blur: BlurConfig = BlurConfig()
    solarize: SolarizeConfig = SolarizeConfig()

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("scale", "field_of_view", "ratio"):
            span = getattr(self, name)
            if span is not None and span[0] > span[1]:
                raise ValueError(f"{name} must be given as low, high (got {span[0]}, {span[1]})")
        return self


class AugmentConfig(Config):
    """The views of a pre-training run, and the statistics their pixels are normalised with."""

    preset: str | None = None
    """The preset whose values the views started from, for the record; the views below say what is done."""
    mean: tuple[Share, Share, Share] = (0.485, 0.456, 0.406)
    """Mean of R, G, B in 0..1 (default: ImageNet's)."""
    std: tuple[Deviation, Deviation, Deviation] = (0.229, 0.224, 0.225)
    """Standard deviation of R, G, B in 0..1 (default: ImageNet's)."""
    compile: bool = True
    """On a GPU, join the color operations with torch.compile."""
    views: dict[str, ViewConfig] = Field(default_factory=lambda: {"global": ViewConfig()}, min_length=1)
    """Kinds of views by name, in the order in which a method receives them."""


class _View:
    """One kind of view: the crop and flips on 8-bit pixels, then the color operations on floats."""

    def __init__(self, config: ViewConfig, compiled: bool) -> None:
        self.size = config.size
        self.crop = RandomResizedCrop(
            config.size, config.scale, config.ratio, config.interpolation, config.field_of_view
        )
        self.geometric: dict[str, Operation] = {}
        if config.horizontal_flip or config.vertical_flip:
            self.geometric["flip"] = Flip(config.horizontal_flip, config.vertical_flip)
        if config.rotate90:
            self.geometric["rotate90"] = Rotate90(config.rotate90)
        self.photometric: dict[str, Operation] = {}
        if config.macenko.probability:
            self.photometric["macenko"] = Macenko(config.macenko)
        if config.hed.probability:
            self.photometric["hed"] = HEDJitter(config.hed)
        if config.randstainna.probability:
            self.photometric["randstainna"] = RandStainNA(config.randstainna)
        if config.jitter.probability:
            self.photometric["jitter"] = ColorJitter(config.jitter)
        if config.grayscale:
            self.photometric["grayscale"] = Grayscale(config.grayscale)
        if config.blur.probability:
            self.photometric["blur"] = GaussianBlur(config.blur)
        if config.solarize.probability:
            self.photometric["solarize"] = Solarize(config.solarize)
        self.compiled = compiled
        self.fused: FusedColors | None = None

    def __getstate__(self) -> dict[str, Any]:
        # What is compiled cannot travel to workers; they make views on a CPU, without it.
        return self.__dict__ | {"fused": None}

    def sample(self, draws: Draws, images: Tensor, mpp: npt.NDArray[np.float64] | None) -> ViewParameters:
        operations = self.geometric | self.photometric
        parameters = {name: operation.sample(draws, images) for name, operation in operations.items()}
        return {"crop": self.crop.sample(draws, images, mpp), **parameters}

    def apply(self, images: Tensor, parameters: ViewParameters, shift: Tensor, scale: Tensor) -> Tensor:
        images = self.crop.apply(images, parameters["crop"])
        for name, operation in self.geometric.items():
            images = operation.apply(images, parameters[name])
        if images.device.type != "cpu":
            return self._color_at_once(images, parameters).mul_(scale).add_(shift)
        views = torch.empty(images.shape, dtype=torch.float32)
        step = max(1, CHUNK_PIXELS // self.size**2)
        # Neighbours that take their color steps in one order share passes over the pixels.
        order = np.arange(len(images))
        if "jitter" in parameters:
            order = np.argsort(parameters["jitter"]["order"], kind="stable")
        for start in range(0, len(images), step):
            rows = order[start : start + step]
            chunk = {name: _rows_of(parameters[name], rows) for name in self.photometric}
            part = self._color(images.index_select(0, torch.from_numpy(rows)), chunk).mul_(scale)
            for place, row in enumerate(rows.tolist()):
                torch.add(part[place], shift, out=views[row])
        return views

    def _color_at_once(self, images: Tensor, parameters: ViewParameters) -> Tensor:
        """The same for a whole batch on a GPU, with the operations that can be joined in one function."""
        if self.fused is None:
            joined = {name: operation for name, operation in self.photometric.items() if isinstance(operation, FUSED)}
            self.fused = FusedColors(joined, self.compiled)
        if "macenko" in self.photometric:
            images = self.photometric["macenko"].apply(images.to(torch.float32).mul_(1 / 255), parameters["macenko"])
        images = self.fused(images, parameters)
        for name in ("blur", "solarize"):
            if name in self.photometric:
                images = self.photometric[name].apply(images, parameters[name])
        return images

    def _color(self, images: Tensor, parameters: ViewParameters) -> Tensor:
        colors = images.to(torch.float32).mul_(1 / 255)
        for name, operation in self.photometric.items():
            colors = operation.apply(colors, parameters[name])
        return colors


def _rows_of(parameters: Parameters, rows: npt.NDArray[np.int64]) -> Parameters:
    return {name: values[rows] for name, values in parameters.items()}


class Views:
    """Turn a batch of tiles into normalised views, every image with parameters of its own.

    What an image becomes is a pure function of its pixels, its position in the draws, their seed and step: neither
    the rest of the batch nor the number of processes or workers matters.

    Example:
        >>> views = Views(AugmentConfig())
        >>> images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
        >>> [tuple(view.shape) for view in views(images, Draws(seed=0, step=0, positions=[0, 1]))]
        [(2, 3, 224, 224), (2, 3, 224, 224)]
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config
        self._views = [
            (f"{name}/{number}", view)
            for name, view in ((name, _View(kind, config.compile)) for name, kind in config.views.items())
            for number in range(config.views[name].count)
        ]

    def __len__(self) -> int:
        """Return the number of views of each image."""
        return len(self._views)

    def parameters(
        self, images: Tensor, draws: Draws, mpp: npt.NDArray[np.float64] | None = None
    ) -> list[ViewParameters]:
        """Draw every view's parameters without touching a pixel.

        Args:
            images: uint8 [B, 3, H, W], read for its shape only.
            draws: The batch's draws, B positions.
            mpp: float64 [B], µm/px of the images; needed where a view has a field of view.

        Returns:
            For each view: operation name → parameter name → array of length B.

        Raises:
            ValueError: If the batch is not uint8 [B, 3, H, W], its length is not that of the draws, or an image's µm/px
                is needed and not known.
        """
        _check(images, len(draws))
        return [view.sample(draws.within(scope), images, mpp) for scope, view in self._views]

    @torch.no_grad()
    def apply(self, images: Tensor, parameters: Sequence[ViewParameters]) -> list[Tensor]:
        """Make the views from drawn parameters.

        Args:
            images: uint8 [B, 3, H, W] RGB, on any device; left as it is.
            parameters: What `parameters` returned for this batch.

        Returns:
            One float32 [B, 3, size, size] a view, normalised with the configured mean and standard deviation, on the
            images' device.
        """
        _check(images, len(images))
        std = torch.tensor(self.config.std, dtype=torch.float64)
        scale = std.reciprocal().to(torch.float32).view(3, 1, 1)
        shift = -torch.tensor(self.config.mean, dtype=torch.float64) / std
        shift = shift.to(torch.float32).view(3, 1, 1)
        scale, shift = upload(scale, images.device), upload(shift, images.device)
        pairs = zip(self._views, parameters, strict=True)
        with _full_precision(images.device):
            return [view.apply(images, drawn, shift, scale) for (_, view), drawn in pairs]

    def __call__(self, images: Tensor, draws: Draws, mpp: npt.NDArray[np.float64] | None = None) -> list[Tensor]:
        """Draw and apply: `apply(images, parameters(images, draws, mpp))`."""
        return self.apply(images, self.parameters(images, draws, mpp))


def _full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Keep a training step's mixed precision out of the pixels."""
    return torch.autocast(device.type, enabled=False) if device.type in ("cpu", "cuda") else nullcontext()


def _check(images: Tensor, length: int) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 [B, 3, H, W], got {images.dtype} {list(images.shape)}")
    if len(images) != length:
        raise ValueError(f"{len(images)} images but {length} draws")
