"""What follows ``slides:``: where the slides are, and which tiles of them are wanted."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from eosin.core.config import Config
from eosin.core.errors import EosinError
from eosin.slides.discover import FoundSlide

__all__ = ["FINER", "Scales", "SlideOptions", "given_mpp", "parse_slides"]

FINER = 0.96
"""A resolution serves where it is no finer than this times the slide's own: files round, 0.2525 for 0.25."""

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
        fitting = [value for value in self.values if value >= FINER * native] or [coarsest]
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


def given_mpp(found: Sequence[FoundSlide], text: str | None, spec: str) -> tuple[list[float | None], float | None]:
    """Return what the user says of each slide's µm/px, and of that of slides whose file does not say it.

    Args:
        found: The slides.
        text: A number, or a CSV with the columns slide and mpp, which may call a slide by its name, its file's
            name or the last part of its name; None where nothing is said.
        spec: What to name in an error.

    Raises:
        EosinError: If it is neither, or a row is wrong or could mean several slides.
    """
    if text is None:
        return [None] * len(found), None
    if not text.lower().endswith(".csv"):
        return [None] * len(found), _level0_mpp(text, f"{spec}: source_mpp")
    called: dict[str, set[str]] = defaultdict(set)
    for slide in found:
        for name in (slide.name, slide.path.name, slide.name.rpartition("/")[2]):
            called[name].add(slide.name)
    known: dict[str, float] = {}
    try:
        with open(Path(text).expanduser(), newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EosinError(f"{text}: not a readable CSV ({getattr(error, 'strerror', None) or error})") from None
    for number, row in enumerate(rows, start=1):
        name, value = ((row.get(column) or "").strip() for column in ("slide", "mpp"))
        if not {"slide", "mpp"} <= row.keys():
            raise EosinError(f"{text}: expected the columns slide and mpp; it has {', '.join(map(str, row))}")
        if not name or not value:
            continue
        slides = {name} if any(slide.name == name for slide in found) else called.get(name, set())
        if len(slides) > 1:
            raise EosinError(f"{text}: row {number}: '{name}' is the name of {len(slides)} slides; write {min(slides)}")
        for slide_name in slides:
            known[slide_name] = _level0_mpp(value, f"{text}: row {number}")
    return [known.get(slide.name) for slide in found], None


def _level0_mpp(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.05 <= value <= 20:
        raise EosinError(f"{where}: '{text}' is no µm/px between 0.05 and 20, nor a .csv of slide,mpp")
    return value
