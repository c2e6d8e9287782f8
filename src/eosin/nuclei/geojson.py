"""Nuclei as GeoJSON that QuPath opens: File, Import objects from file, or dropped onto the image.

One FeatureCollection, a Polygon for each nucleus in px of level 0, its ring closed. `properties.objectType` makes it a
detection or a cell; of a cell QuPath wants the nucleus besides (`nucleusGeometry`), which here is the same outline.
`classification` has a name and a color (R, G, B), `measurements` what QuPath lists and draws as heat maps.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, Protocol

from eosin.core.files import atomic_file
from eosin.nuclei.colors import color_of
from eosin.nuclei.found import Nuclei

__all__ = ["ObjectType", "write_geojson"]

ObjectType = Literal["detection", "cell"]


class Processes(Protocol):
    """What puts parts into words elsewhere, such as an executor."""

    def submit(self, work: Any, /, *arguments: Any) -> Future[Any]:
        """Have a function called."""
        ...


# Parts given to processes before one is asked back.
_AHEAD = 16


def write_geojson(
    parts: Iterable[Nuclei],
    path: Path,
    *,
    step: tuple[float, float] = (1.0, 1.0),
    mpp: float | None = None,
    classes: Sequence[str] = (),
    objects: ObjectType = "detection",
    name: str = "",
    pool: Processes | None = None,
) -> int:
    """Write nuclei, part by part; the file is there whole or not at all.

    Args:
        parts: The nuclei.
        path: The file.
        step: px of level 0 per px of the nuclei, along x and y.
        mpp: µm/px of the nuclei's px; None leaves out areas in µm².
        classes: Types 1 to n by name.
        objects: What QuPath is to make of them.
        name: Of the picture; ids are made of it and the nucleus's number, so that a second run gives the same.
        pool: Processes that put parts into words; without, they are put into words here.

    Returns:
        How many were written.

    Raises:
        EosinError: If the file cannot be written.
    """
    count = 0

    def asked() -> Iterator[tuple[Nuclei, int]]:
        nonlocal count
        for part in parts:
            if len(part):
                yield part, count + 1
                count += len(part)

    settings = (name, step, mpp, classes, objects)
    with atomic_file(path, "w") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        between = "\n"
        for text in _in_words(asked(), settings, pool):
            file.write(between + text)
            between = ",\n"
        file.write("\n]}\n")
    return count


def _in_words(parts: Iterator[tuple[Nuclei, int]], settings: Any, pool: Processes | None) -> Iterator[str]:
    if pool is None:
        for part, first in parts:
            yield _features(part, first, *settings)
        return
    running: deque[Future[str]] = deque()
    for part, first in parts:
        running.append(pool.submit(_features, part, first, *settings))
        if len(running) > _AHEAD:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _features(
    part: Nuclei,
    first: int,
    name: str,
    step: tuple[float, float],
    mpp: float | None,
    classes: Sequence[str],
    objects: ObjectType,
) -> str:
    """Put a part into words; its first nucleus has the number `first`."""
    return ",\n".join(
        _feature(part, place, _id(name, first + place), step, mpp, classes, objects) for place in range(len(part))
    )


def _id(name: str, number: int) -> str:
    return str(uuid.UUID(bytes=hashlib.sha256(f"{name}\n{number}".encode()).digest()[:16], version=4))


def _feature(
    nuclei: Nuclei,
    place: int,
    identifier: str,
    step: tuple[float, float],
    mpp: float | None,
    classes: Sequence[str],
    objects: ObjectType,
) -> str:
    points = nuclei.outline(place)
    if step == (1.0, 1.0):
        ring = points.tolist()
    else:
        ring = [[round(x * step[0], 3), round(y * step[1], 3)] for x, y in points.tolist()]
    geometry = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
    kind = int(nuclei.types[place])
    area = int(nuclei.areas[place])
    measured: dict[str, float] = {"Probability": round(float(nuclei.probabilities[place]), 4)}
    if mpp is not None:
        measured["Area µm^2"] = round(area * mpp * mpp, 3)
    else:
        measured["Area px^2"] = area
    properties: dict[str, object] = {"objectType": objects}
    if kind > 0:
        properties["classification"] = {"name": _name(kind, classes), "color": list(color_of(kind))}
    properties["measurements"] = measured
    feature: dict[str, object] = {"type": "Feature", "id": identifier, "geometry": geometry}
    if objects == "cell":
        feature["nucleusGeometry"] = geometry
    return json.dumps({**feature, "properties": properties}, ensure_ascii=False, separators=(",", ":"))


def _name(kind: int, classes: Sequence[str]) -> str:
    return classes[kind - 1] if kind <= len(classes) else f"type {kind}"
