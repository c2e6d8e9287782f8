"""What is cut from every slide."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from eosin.core.config import Config
from eosin.slides import TissueConfig

__all__ = ["TilingConfig"]

_FINEST, _COARSEST = 0.05, 100.0


class TilingConfig(Config):
    """How slides are cut into tiles. All tiles of a store are cut by the same settings."""

    mpp: tuple[float, ...] = (0.5,)
    """µm/px of the tiles; several give several fields of view of the same tissue."""
    size: Annotated[int, Field(ge=16, le=8192)] = 256
    """Side of a tile in px."""
    stride: Annotated[int, Field(ge=1)] | None = None
    """Distance between neighboring tiles in px; the size, so that they touch, if not given."""
    minimum_tissue: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of a tile that must be tissue, 0 to 1; with 0 every tile of the grid is kept."""
    encoding: Literal["jpeg", "png"] = "jpeg"
    """jpeg: without chroma subsampling, as color is what a stain is. png: without any loss, several times larger."""
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    """JPEG quality."""
    tissue: TissueConfig = TissueConfig()
    """How tissue is told from glass."""

    @field_validator("mpp")
    @classmethod
    def _sensible(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values:
            raise ValueError("give at least one µm/px")
        for value in values:
            if not _FINEST <= value <= _COARSEST:
                raise ValueError(f"{value:g} µm/px is outside {_FINEST:g} to {_COARSEST:g}")
        if len(set(values)) < len(values):
            raise ValueError("a µm/px is given twice")
        return tuple(sorted(values))

    @field_validator("stride")
    @classmethod
    def _gaps(cls, stride: int | None, info: ValidationInfo) -> int | None:
        size = info.data.get("size")
        if stride is not None and size is not None and stride > 64 * size:
            raise ValueError(f"{stride} px leave out nearly everything; tiles are {size} px wide")
        return stride

    def parts(self, tiles: int) -> list[int]:
        """Divide a slide's tiles among processes: the first tile of each part, and the end.

        Each part is a quarter of what is left, so that several processes end together, but no less than 32 megapixels
        and no more than eight times that. It depends on the number of tiles alone.
        """
        least = max(32, min(2048, (1 << 25) // self.size**2))
        bounds = [0]
        while bounds[-1] < tiles:
            left = tiles - bounds[-1]
            part = max(least, min(8 * least, left // 4))
            bounds.append(bounds[-1] + (left if left < 2 * least else part))
        return bounds
