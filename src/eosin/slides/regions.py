"""Regions and masks that somebody drew: which part of a slide to use."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError, nearest
from eosin.slides.errors import UnusableSlide

__all__ = ["Polygon", "Regions", "read_mask", "read_regions", "region_mask"]

# Lines scanned in each row of the mask; along a line coverage is exact.
_LINES = 4
# How far the sides of a mask may be from those of the slide, as a ratio.
_ASPECT = 0.02

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Polygon:
    """One area, which may have holes.

    Attributes:
        rings: The outline and the holes, each float64 [n, 2] of x, y in level-0 px; the last point is not repeated.
        name: Its class, "" where it has none.
    """

    rings: tuple[FloatArray, ...]
    name: str = ""


@dataclass(frozen=True)
class Regions:
    """The areas of one file.

    Attributes:
        path: The file.
        polygons: At least one.
    """

    path: Path
    polygons: tuple[Polygon, ...]

    def named(self, names: Iterable[str]) -> Regions:
        """Only the areas of some classes.

        Raises:
            EosinError: If no area has one of the names.
        """
        wanted = set(names)
        kept = tuple(polygon for polygon in self.polygons if polygon.name in wanted)
        if not kept:
            known = {polygon.name for polygon in self.polygons if polygon.name}
            hint = "; none has a class" if not known else f"; {nearest(sorted(wanted)[0], known)}"
            raise EosinError(f"{self.path}: no region of class {', '.join(sorted(wanted))}{hint}")
        return Regions(self.path, kept)


def read_regions(path: Path | str) -> Regions:
    """Read areas from GeoJSON as QuPath exports it.

    A FeatureCollection, a list of features, one feature or a bare geometry; of the geometries Polygon, MultiPolygon and
    collections of them (points and lines have no area and are passed over). Coordinates are px of level 0; what follows
    x and y is ignored; a ring need not be closed. The class is `properties.classification.name`, or the classification
    itself where it is text.

    Raises:
        EosinError: If the file cannot be read, is no GeoJSON, holds no area, or a coordinate is no finite number; the
            message names the file and the feature, counted from 1.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise EosinError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise EosinError(f"{path}: no GeoJSON ({_first_line(error)}); export it from QuPath as GeoJSON") from None
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        content = content.get("features")
        if not isinstance(content, list):
            raise EosinError(f"{path}: field 'features' is no list; export it from QuPath as GeoJSON")
    features = content if isinstance(content, list) else [content]
    polygons = []
    for number, feature in enumerate(features, start=1):
        where = f"{path}: feature {number}"
        if not isinstance(feature, dict):
            raise EosinError(f"{where}: no feature but {type(feature).__name__}; export it from QuPath as GeoJSON")
        geometry: Any = feature
        name = ""
        if feature.get("type") == "Feature":
            geometry, name = feature.get("geometry"), _class_name(feature)
        polygons += [Polygon(rings, name) for rings in _areas(geometry, where)]
    if not polygons:
        raise EosinError(f"{path}: holds no polygon; draw areas, and export them from QuPath as GeoJSON")
    return Regions(path, tuple(polygons))


def _class_name(feature: dict[str, Any]) -> str:
    properties = feature.get("properties")
    kind = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(kind, dict):
        kind = kind.get("name")
    return kind if isinstance(kind, str) else ""


def _areas(geometry: Any, where: str) -> Iterator[tuple[FloatArray, ...]]:
    if geometry is None:
        return
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind == "Polygon":
        yield _rings(geometry.get("coordinates"), where)
    elif kind == "MultiPolygon":
        parts = geometry.get("coordinates")
        if not isinstance(parts, list):
            raise EosinError(f"{where}: the coordinates of a MultiPolygon are a list of polygons")
        for part in parts:
            yield _rings(part, where)
    elif kind == "GeometryCollection":
        for part in geometry.get("geometries") or []:
            yield from _areas(part, where)
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise EosinError(f"{where}: unknown geometry {kind!r}; Polygon and MultiPolygon are read")


def _rings(coordinates: Any, where: str) -> tuple[FloatArray, ...]:
    if not isinstance(coordinates, list) or not coordinates:
        raise EosinError(f"{where}: a polygon without coordinates; draw it again")
    rings = []
    for ring in coordinates:
        try:
            points = np.array([point[:2] for point in ring], np.float64).reshape(-1, 2)
        except (TypeError, ValueError, IndexError):
            raise EosinError(f"{where}: coordinates are lists of [x, y] in px of level 0") from None
        if not np.isfinite(points).all():
            raise EosinError(f"{where}: a coordinate is no finite number; draw it again")
        if len(points) > 1 and (points[0] == points[-1]).all():
            points = points[:-1]
        if len(np.unique(points, axis=0)) < 3:
            raise EosinError(f"{where}: a polygon of fewer than three points has no area; draw it again")
        rings.append(points)
    return tuple(rings)


def region_mask(regions: Regions, shape: tuple[int, int], extent: tuple[float, float]) -> BoolArray:
    """Draw areas on a mask: a pixel belongs to it when they cover at least half of it.

    Coverage is exact along x and taken at four lines a row along y. Inside and outside follow the even-odd rule within
    a polygon, so holes stay open; polygons are added up.

    Args:
        regions: The areas.
        shape: Height and width of the mask.
        extent: Width and height in level-0 px that it spans from the slide's left upper corner on: the slide's, or a
            little more where its last pixels lie partly outside.

    Returns:
        bool [h, w].

    Raises:
        UnusableSlide: If nothing of them lies inside the slide.
    """
    scale = np.array([shape[1] / extent[0], shape[0] / extent[1]])
    starts, ends, owners = [], [], []
    for owner, polygon in enumerate(regions.polygons):
        for ring in polygon.rings:
            starts.append(ring * scale)
            ends.append(np.roll(ring, -1, axis=0) * scale)
            owners.append(np.full(len(ring), owner))
    covered = _coverage(np.concatenate(starts), np.concatenate(ends), np.concatenate(owners), shape)
    mask = covered >= 0.5
    if not mask.any():
        # What is smaller than a pixel of the mask still lies somewhere.
        mask = covered > 1e-9
    if not mask.any():
        points = np.concatenate([ring for polygon in regions.polygons for ring in polygon.rings])
        low, high = points.min(axis=0), points.max(axis=0)
        raise UnusableSlide(
            f"no region of {regions.path} lies inside the slide of {extent[0]:.0f} × {extent[1]:.0f} px "
            f"(x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f}): give coordinates in px of level 0"
        )
    return mask


def _coverage(starts: FloatArray, ends: FloatArray, owners: IntArray, shape: tuple[int, int]) -> FloatArray:
    """Area of each pixel inside polygons given by their edges in px of the mask, float64 [h, w]."""
    height, width = shape
    # Lines lie at (line + 0.5) / _LINES; an edge meets those from its upper end up to, but without, its lower end.
    upper, lower = (np.where((starts[:, 1] <= ends[:, 1])[:, None], *pair) for pair in ((starts, ends), (ends, starts)))
    first, last = (
        np.clip(np.ceil(end[:, 1] * _LINES - 0.5), 0, height * _LINES).astype(np.int64) for end in (upper, lower)
    )
    count = np.maximum(last - first, 0)
    edge = np.repeat(np.arange(len(count)), count)
    line = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    rise = (lower - upper)[edge]
    along = ((line + 0.5) / _LINES - upper[edge, 1]) / rise[:, 1]
    x = np.clip(upper[edge, 0] + along * rise[:, 0], 0, width)
    order = np.lexsort((x, line, owners[edge]))
    line, x = line[order], x[order]
    # Each line crosses a closed outline an even number of times: in and out take turns.
    sign = np.where(np.arange(len(x)) % 2 == 0, 1.0, -1.0) / _LINES
    whole = np.minimum(np.floor(x), width - 1).astype(np.int64)
    rest = x - whole
    change = np.zeros((height, width + 1))
    np.add.at(change, (line // _LINES, whole), sign * (1 - rest))
    np.add.at(change, (line // _LINES, whole + 1), sign * rest)
    return change[:, :width].cumsum(axis=1)


def read_mask(path: Path | str, shape: tuple[int, int]) -> BoolArray:
    """Read a mask image that spans the whole slide: whatever is not 0 is tissue.

    Any image that Pillow reads: gray, 1-bit, palette (its index counts), RGB (any channel counts); what is transparent
    is no tissue. It is brought to `shape` by the share of each pixel that it covers, at least half for tissue.

    Args:
        path: The image.
        shape: Height and width wanted.

    Returns:
        bool [h, w].

    Raises:
        UnusableSlide: If it cannot be read, or its sides are not in the ratio of the slide's.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
            alpha = "A" in image.getbands()
    except OSError as error:
        reason = error.strerror or _first_line(error)
        raise UnusableSlide(f"its mask {path} cannot be read ({reason}): save it as PNG") from None
    except (Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise UnusableSlide(f"its mask {path} cannot be read ({_first_line(error)}): save it smaller, as PNG") from None
    if pixels.ndim == 3:
        seen = pixels[:, :, -1] != 0 if alpha else True
        pixels = (pixels[:, :, : pixels.shape[2] - alpha] != 0).any(axis=2) & seen
    height, width = pixels.shape
    # A few px are lost or gained by rounding when either was made.
    rounding = 1 / width + 1 / height + 1 / shape[1] + 1 / shape[0]
    if abs(np.log(width / height * shape[0] / shape[1])) > _ASPECT + rounding:
        raise UnusableSlide(
            f"its mask {path} has {width} × {height} px, another shape than the slide (width / height is "
            f"{width / height:.2f}, of the slide {shape[1] / shape[0]:.2f}): give a mask of the whole slide"
        )
    mask = Image.fromarray((pixels != 0).astype(np.uint8) * 255)
    covered = np.asarray(mask.resize((shape[1], shape[0]), Image.Resampling.BOX))
    return covered >= 128


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
