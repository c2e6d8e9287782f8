"""The physical scale of a slide: what its file says, by format, and whether that can be true."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eosin.core.errors import EosinError

__all__ = [
    "COARSEST_MPP",
    "FINEST_MPP",
    "Reading",
    "Scale",
    "aperio_fields",
    "aperio_scale",
    "check_given",
    "choose_scale",
    "given_scale",
    "missing_scale",
    "number",
    "ome_length",
    "openslide_scale",
    "resolution_reading",
]

FINEST_MPP, COARSEST_MPP = 0.05, 20.0
"""µm/px that a slide can have; what lies outside is a default or a mistake."""

# Two statements in one file that differ by more are told to the user.
_DISAGREEMENT = 0.05

_MICROMETERS = {
    **{"µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "": 1.0},
    **{"nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "pm": 1e-6, "Å": 1e-4, "in": 25_400.0},
}


@dataclass(frozen=True)
class Reading:
    """One statement of a slide's scale: where it is made, and µm/px along x and y as it says."""

    source: str
    x: float
    y: float

    @property
    def plausible(self) -> bool:
        """Whether a microscope could have such a scale."""
        return all(FINEST_MPP <= value <= COARSEST_MPP for value in (self.x, self.y))

    def __str__(self) -> str:
        values = f"{self.x:.4g}" if self.x == self.y else f"{self.x:.4g} × {self.y:.4g}"
        return f"{self.source} says {values} µm/px"


@dataclass(frozen=True)
class Scale:
    """A slide's scale.

    Attributes:
        mpp: µm/px of level 0 along x and y, or None.
        source: Where it is from, such as `aperio.MPP`; empty without one.
        objective: Power of the objective, where recorded. It is never turned into a scale: a "20x" slide may have 0.5
            or 0.25 µm/px.
        absurd: What the file says instead of a scale that could be true; empty if nothing.
        notes: What a user should know, such as two statements that disagree.
    """

    mpp: tuple[float, float] | None = None
    source: str = ""
    objective: float | None = None
    absurd: str = ""
    notes: tuple[str, ...] = ()


def choose_scale(readings: Sequence[Reading | None], objective: float | None = None) -> Scale:
    """Take the first statement that can be true; a later one that differs by more than 5 % becomes a note.

    Args:
        readings: The format's own statement first; None for one that is absent.
        objective: Power of the objective.
    """
    present = [reading for reading in readings if reading is not None]
    plausible = [reading for reading in present if reading.plausible]
    if not plausible:
        return Scale(objective=objective, absurd=str(present[0]) if present else "")
    own = plausible[0]
    notes = [
        f"{own}, which is used; {other}"
        for other in plausible[1:]
        if max(abs(other.x / own.x - 1), abs(other.y / own.y - 1)) > _DISAGREEMENT
    ]
    return Scale((own.x, own.y), own.source, objective, "", tuple(notes))


def given_scale(scale: Scale, source_mpp: float | None) -> Scale:
    """Put the µm/px that the user gave in place of the file's.

    Raises:
        EosinError: If it cannot be a slide's scale.
    """
    if source_mpp is None:
        return scale
    check_given(source_mpp)
    notes = scale.notes
    if scale.mpp is not None and max(abs(value / source_mpp - 1) for value in scale.mpp) > _DISAGREEMENT:
        notes = (*notes, f"{Reading(scale.source, *scale.mpp)}; the given {source_mpp:.4g} is used")
    return Scale((source_mpp, source_mpp), "given", scale.objective, "", notes)


def check_given(source_mpp: float) -> None:
    """Refuse a scale that no slide has.

    Raises:
        EosinError: If it is outside 0.05 to 20 µm/px, or no number.
    """
    if not FINEST_MPP <= source_mpp <= COARSEST_MPP:
        raise EosinError(
            f"source mpp {source_mpp:g}: give the µm/px of the slides' full resolution, {FINEST_MPP:g} to "
            f"{COARSEST_MPP:g}, such as 0.25 for most scans at 40x"
        )


def missing_scale(scale: Scale) -> str:
    """Say that a slide has no scale, and what to do."""
    reason = f"{scale.absurd}, which no slide has" if scale.absurd else "the file does not say its µm/px"
    if scale.objective:
        usual = 10 / scale.objective
        return (
            f"{reason} (recorded at {scale.objective:g}x: usually about {usual:.2g}); give --source-mpp {usual:.2g} "
            "or a CSV of slide,mpp"
        )
    return f"{reason}; give --source-mpp with the µm/px of its full resolution, or a CSV of slide,mpp"


def number(text: object) -> float | None:
    """Read a number as scanners write them, with a point or a comma; None if it is none."""
    try:
        return float(str(text).strip().replace(",", "."))
    except ValueError:
        return None


def aperio_fields(description: str) -> dict[str, str]:
    """Split the `key = value` parts of an Aperio description, which stand between bars."""
    pairs = (part.partition("=") for part in description.split("|")[1:])
    fields: dict[str, str] = {}
    for key, _, value in pairs:
        # A region saved from a slide repeats the slide's own fields after its own.
        fields.setdefault(key.strip(), value.strip())
    return fields


def aperio_scale(description: str, resolution: Reading | None) -> Scale:
    """Read the scale from an Aperio description, and where it has none, from the TIFF resolution."""
    fields = aperio_fields(description)
    value = number(fields.get("MPP"))
    own = None if value is None else Reading("aperio.MPP", value, value)
    return choose_scale([own, resolution], _power(fields.get("AppMag")))


def openslide_scale(properties: Mapping[str, str]) -> Scale:
    """Read the scale from OpenSlide's properties, which are by format (NDPI, DICOM, MIRAX and others)."""
    own = None
    if "openslide.mpp-x" in properties or "openslide.mpp-y" in properties:
        x, y = (number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
        own = Reading("openslide.mpp-x", x or y or 0.0, y or x or 0.0)
    unit = {"centimeter": 3, "inch": 2}.get(properties.get("tiff.ResolutionUnit", ""))
    resolution = resolution_reading(
        number(properties.get("tiff.XResolution")), number(properties.get("tiff.YResolution")), unit
    )
    return choose_scale([own, resolution], _power(properties.get("openslide.objective-power")))


def _power(text: object) -> float | None:
    value = number(text)
    return value if value is not None and 0 < value < math.inf else None


def resolution_reading(x: float | None, y: float | None, unit: int | None) -> Reading | None:
    """Turn a TIFF resolution into a statement of scale.

    Args:
        x: XResolution in px per unit.
        y: YResolution.
        unit: ResolutionUnit: 2 is the inch, 3 the centimeter; others say nothing.
    """
    micrometers = {2: 25_400.0, 3: 10_000.0}.get(unit or 0)
    if micrometers is None or not x or not y or x < 0 or y < 0:
        return None
    return Reading("TIFF resolution", micrometers / x, micrometers / y)


def ome_length(value: str | None, unit: str | None) -> float | None:
    """Turn an OME length such as PhysicalSizeX into µm; None if absent, no number, or in a unit that is no length."""
    size = number(value)
    factor = _MICROMETERS.get(re.sub(r"\s", "", unit or ""))
    return None if size is None or factor is None else size * factor
