"""What follows ``slides:``: where the slides are, and which tiles of them are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from eosin.core.config import Config
from eosin.core.errors import EosinError
from eosin.slides.sampling import FINER

__all__ = ["Scales", "SlideOptions", "parse_slides"]

# Sides of tiles in px, as elsewhere for images; µm/px of tiles.
_SMALLEST, _LARGEST = 8, 8192
_FINEST, _COARSEST = 0.05, 100.0


class SlideOptions(Config):
    """What follows the question mark in ``slides:DIR?mpp=0.5&size=256``."""

    mpp: str = "0.5"
    """µm/px: one value, a choice such as 0.25,0.5,1.0, or a range such as 0.25..1.0, drawn log-uniformly."""
    size: Annotated[int, Field(ge=_SMALLEST, le=_LARGEST)] = 256
    """Side of a tile in px at that µm/px."""
    tissue: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of a tile that is tissue at least."""
    source_mpp: str | None = None
    """µm/px of level 0: a number for slides whose file does not say it, or a CSV with the columns slide and mpp, which
    goes before what a file says."""
    images: bool = False
    """Take images without levels (.png .jpg .jp2 .bmp) in folders for slides too."""


@dataclass(frozen=True)
class Scales:
    """The resolutions to draw from, in µm/px."""

    values: tuple[float, ...]
    """In ascending order."""
    between: bool = False
    """Draw from all between the first and the last, log-uniformly, and not just these."""

    @classmethod
    def parse(cls, text: str, where: str) -> Scales:
        """Read ``0.5``, ``0.25,0.5,1.0`` or ``0.25..1.0``.

        Raises:
            EosinError: If it is none of these, or a value is no resolution of a tile.
        """
        between = ".." in text
        try:
            parts = [float(part) for part in text.split(".." if between else ",")]
        except ValueError:
            parts = []
        if not parts or (between and len(parts) != 2):
            raise EosinError(
                f"{where}: mpp '{text}': give 0.5, a choice such as 0.25,0.5,1.0 or a range such as 0.25..1.0"
            )
        for value in parts:
            if not _FINEST <= value <= _COARSEST:
                raise EosinError(f"{where}: mpp {value:g} is not between {_FINEST:g} and {_COARSEST:g} µm/px")
        values = tuple(sorted(set(parts)))
        return cls(values, between and len(values) == 2)

    def draw(self, uniform: float, native: float) -> float:
        """Return a resolution.

        Where there is a choice, none is finer than the slide itself, whose pixels would only be enlarged.

        Args:
            uniform: In [0, 1).
            native: µm/px of the slide's level 0.
        """
        coarsest = self.values[-1]
        if self.between:
            low = min(max(self.values[0], native), coarsest)
            return low * (coarsest / low) ** uniform
        fitting = [value for value in self.values if value >= (1 - FINER) * native] or [coarsest]
        return fitting[int(uniform * len(fitting))]


def parse_slides(text: str, spec: str) -> tuple[Path, SlideOptions]:
    """Part ``DIR?mpp=0.5&size=256`` into the path and the options.

    Raises:
        EosinError: If an option is none, is given twice or has a wrong value; `spec` is named.
    """
    path = Path(text)
    if path.exists() or "?" not in text:
        return path, SlideOptions()
    source, _, rest = text.rpartition("?")
    values: dict[str, str] = {}
    for part in rest.split("&"):
        key, separator, value = part.partition("=")
        if not separator or not key or not value:
            raise EosinError(f"{spec}: '{part}' is no option; options are written ?key=value&key=value")
        if key in values:
            raise EosinError(f"{spec}: option '{key}' is given twice; keep one")
        values[key] = value
    if not source:
        raise EosinError(f"{spec}: no slides named; write slides:DIR?mpp=0.5")
    return Path(source), SlideOptions.parse(values, spec)
