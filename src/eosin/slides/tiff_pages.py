"""Which images of a TIFF are the levels of its slide, and what its tags and descriptions say of the scale."""

from __future__ import annotations

import os
import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from typing import Any

from eosin.slides.errors import UnusableSlide
from eosin.slides.levels import same_scene
from eosin.slides.mpp import Reading, Scale, aperio_scale, choose_scale, number, ome_length, resolution_reading
from eosin.slides.tiff_decode import NotFast

__all__ = ["Directories", "Found", "find_levels"]

_REDUCED = 1
_UNITS_OF_IMAGEJ = {
    "micron": 1.0,
    "microns": 1.0,
    "um": 1.0,
    "µm": 1.0,
    "\\u00b5m": 1.0,
    "nm": 1e-3,
    "mm": 1e3,
    "cm": 1e4,
}


@dataclass
class Found:
    """The levels of a TIFF: for each, finest first, the page, or the three pages of one channel each."""

    format: str
    levels: list[list[Any]]
    scale: Scale
    notes: tuple[str, ...] = ()


class Directories:
    """The directories of a TIFF, checked without reading what is in them.

    Where one leads out of the file, as in a file copied in part, levels would be lost without a word.

    Args:
        file: An open descriptor.
        size: Size of the file in bytes.
    """

    def __init__(self, file: int, size: int) -> None:
        self._file, self._size = file, size
        head = self._bytes(0, 4)
        order = "<" if head[:2] == b"II" else ">"
        big = struct.unpack(order + "H", head[2:])[0] == 43
        self._count, self._entry, self._offset = (
            (order + "Q", 20, order + "Q") if big else (order + "H", 12, order + "I")
        )
        self._first = 8 if big else 4

    def check_chain(self) -> None:
        """Follow the chain to its end.

        Raises:
            UnusableSlide: If it leads out of the file or runs in a circle.
        """
        seen: set[int] = set()
        at = self._unpack(self._offset, self._first)
        while at:
            if at in seen:
                raise UnusableSlide("damaged: the chain of its images runs in a circle; copy the file again")
            seen.add(at)
            at = self.next(at)

    def next(self, at: int) -> int:
        """Check the directory at an offset and return the offset of the next one, 0 at the end.

        Raises:
            UnusableSlide: If it does not lie wholly in the file.
        """
        entries = self._unpack(self._count, at)
        return self._unpack(self._offset, at + struct.calcsize(self._count) + self._entry * entries)

    def _unpack(self, kind: str, at: int) -> int:
        value: int = struct.unpack(kind, self._bytes(at, struct.calcsize(kind)))[0]
        return value

    def _bytes(self, at: int, count: int) -> bytes:
        if at + count <= self._size:
            data = os.pread(self._file, count, at)
            if len(data) == count:
                return data
        raise UnusableSlide(
            f"truncated: the directory of one of its images lies beyond the end of the file ({self._size:,} bytes); "
            "copy it again"
        )


def find_levels(tif: Any, directories: Directories) -> Found:
    """Find the pyramid in an open tifffile.TiffFile.

    Aperio: the tiled images; what is stored in strips is thumbnail, label and macro. OME-TIFF: the largest image of the
    OME-XML, its SubIFDs, and smaller images of the same proportions. Any other TIFF: the largest image and the smaller
    ones of the same proportions that are stored alike (in tiles, or all in strips), as pages or SubIFDs.

    Raises:
        NotFast: If the images are of a kind that is not read here.
        UnusableSlide: If they are damaged.
    """
    pages = list(tif.pages)
    if not pages or any(
        not hasattr(page, "imagewidth") or page.imagewidth < 1 or page.imagelength < 1 for page in pages[:1]
    ):
        raise UnusableSlide("holds no image")
    first = pages[0]
    description = first.description or ""
    if description.startswith("Aperio") and first.is_tiled:
        levels = _pyramid(first, [page for page in pages[1:] if page.is_tiled])
        return Found("aperio", levels, aperio_scale(description, _resolution(first)))
    if tif.is_ome:
        return _find_ome(tif, pages, directories)
    main = max(pages, key=lambda page: page.imagewidth * page.imagelength)
    others = [page for page in pages if page is not main]
    levels = _pyramid(
        main, [page for page in others if bool(page.is_tiled) == bool(main.is_tiled)] + _sub_images(main, directories)
    )
    if description.startswith("Aperio"):
        scale = aperio_scale(description, _resolution(first))
    else:
        scale = choose_scale([_imagej(tif, main), _resolution(main)])
    return Found("tiff", levels, scale)


def _pyramid(main: Any, others: list[Any]) -> list[list[Any]]:
    """Return the main image and those that are reductions of it, finest first, one of each size."""
    by_size = {_size(main): main}
    for page in others:
        if same_scene(_size(main), _size(page)) and page.samplesperpixel == main.samplesperpixel:
            by_size.setdefault(_size(page), page)
    return [[by_size[size]] for size in sorted(by_size, reverse=True)]


def _size(page: Any) -> tuple[int, int]:
    return int(page.imagewidth), int(page.imagelength)


def _sub_images(page: Any, directories: Directories) -> list[Any]:
    if not page.subifds:
        return []
    for offset in page.subifds:
        directories.next(offset)
    return list(page.pages)


def _resolution(page: Any) -> Reading | None:
    values = [page.tags.valueof(code) for code in (282, 283)]
    x, y = (
        value[0] / value[1] if isinstance(value, tuple) and len(value) == 2 and value[1] else None for value in values
    )
    unit = page.tags.valueof(296)
    # Without the tag the unit is the inch (TIFF 6.0, page 38).
    return resolution_reading(x, y, 2 if unit is None else int(unit))


def _imagej(tif: Any, page: Any) -> Reading | None:
    """Read an ImageJ scale: pixels per unit in the resolution tags, the unit in the description."""
    if not tif.is_imagej:
        return None
    fields = dict(line.split("=", 1) for line in (page.description or "").splitlines() if "=" in line)
    factor = _UNITS_OF_IMAGEJ.get(fields.get("unit", "").strip().lower())
    values = [page.tags.valueof(code) for code in (282, 283)]
    if factor is None or not all(isinstance(value, tuple) and value[0] for value in values):
        return None
    x, y = (factor * value[1] / value[0] for value in values)
    return Reading("ImageJ resolution", x, y)


def _find_ome(tif: Any, pages: list[Any], directories: Directories) -> Found:
    root = _parse(tif.ome_metadata or pages[0].description)
    images = _ome_images(root, tif.filehandle.name, len(pages))
    if not images:
        raise NotFast("an OME-TIFF whose XML names none of its images")
    main = max(images, key=lambda image: image.width * image.height)
    planes = [pages[index] for index in main.planes]
    if _size(planes[0]) != (main.width, main.height):
        raise UnusableSlide(
            f"its OME-XML says {main.width} × {main.height} px, its pixels are {_size(planes[0])[0]} × "
            f"{_size(planes[0])[1]}; export it again"
        )
    channels = planes[0].samplesperpixel if len(planes) == 1 else len(planes)
    if len(planes) not in (1, 3) or (len(planes) == 3 and planes[0].samplesperpixel != 1) or channels > 4:
        raise UnusableSlide(f"has {main.channels} channels; only brightfield RGB slides are read")
    levels: dict[tuple[int, int], list[Any]] = {_size(planes[0]): planes}
    for reduced in zip(*(_sub_images(page, directories) for page in planes), strict=False):
        if same_scene(_size(planes[0]), _size(reduced[0])):
            levels.setdefault(_size(reduced[0]), list(reduced))
    alike = [image for image in images if same_scene((main.width, main.height), (image.width, image.height))]
    for image in alike:
        stack = [pages[index] for index in image.planes]
        if len(stack) == len(planes) and stack[0].samplesperpixel == planes[0].samplesperpixel:
            levels.setdefault(_size(stack[0]), stack)
    own = None
    if main.physical[0] or main.physical[1]:
        own = Reading("OME PhysicalSizeX", main.physical[0] or main.physical[1], main.physical[1] or main.physical[0])
    notes = []
    if len(images) > len(alike):
        notes.append(f"holds {len(images)} images; the largest, {main.width} × {main.height} px, is read")
    if main.depth > 1:
        notes.append(f"has {main.depth} focal planes or times; the first is read")
    scale = choose_scale([own, _resolution(planes[0])], main.objective)
    return Found("ome-tiff", [levels[size] for size in sorted(levels, reverse=True)], scale, tuple(notes))


@dataclass
class _OmeImage:
    width: int
    height: int
    channels: int
    depth: int
    planes: list[int]
    physical: tuple[float, float]
    objective: float | None


def _parse(text: str) -> ElementTree.Element:
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 (expat limits what entities may expand to)
    except ElementTree.ParseError as error:
        raise UnusableSlide(f"its OME-XML is damaged ({error}); export it again") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def _ome_images(root: ElementTree.Element, name: str, pages: int) -> list[_OmeImage]:
    """Return the images whose first focal plane lies in this file."""
    objective = next((number(item.get("NominalMagnification")) for item in root.iter("Objective")), None)
    images, consecutive = [], 0
    for pixels in root.iter("Pixels"):
        sizes = {axis: int(pixels.get(f"Size{axis}", "1")) for axis in "XYCZT"}
        samples = next((int(channel.get("SamplesPerPixel", "1")) for channel in pixels.iter("Channel")), 1)
        count = max(1, sizes["C"] // max(1, samples))
        planes = _first_planes(pixels, sizes, count, consecutive, name)
        consecutive += count * sizes["Z"] * sizes["T"]
        if planes and max(planes) < pages:
            x, y = (
                ome_length(pixels.get(f"PhysicalSize{axis}"), pixels.get(f"PhysicalSize{axis}Unit", "µm")) or 0.0
                for axis in "XY"
            )
            depth = sizes["Z"] * sizes["T"]
            images.append(_OmeImage(sizes["X"], sizes["Y"], sizes["C"], depth, planes, (x, y), objective))
    return images


def _first_planes(
    pixels: ElementTree.Element, sizes: dict[str, int], count: int, consecutive: int, name: str
) -> list[int]:
    """Return the page of each channel at the first focal plane and time."""
    stride = 1
    for axis in pixels.get("DimensionOrder", "XYCZT")[2:]:
        if axis == "C":
            break
        stride *= sizes[axis]
    data = list(pixels.iter("TiffData"))
    for item in data:
        file = item.find("UUID")
        if file is not None and file.get("FileName") not in (None, name) and len(data) == 1:
            raise NotFast("pixels that lie in another file")
    if not any(item.get("IFD") for item in data):
        return [consecutive + channel * stride for channel in range(count)]
    planes: dict[int, int] = {}
    for item in data:
        if item.get("FirstZ", "0") == item.get("FirstT", "0") == "0":
            channel, page = int(item.get("FirstC", "0")), int(item.get("IFD", "0"))
            for further in range(min(int(item.get("PlaneCount", "1")), count - channel) if stride == 1 else 1):
                planes.setdefault(channel + further, page + further)
    return [planes[channel] for channel in range(count)] if all(c in planes for c in range(count)) else []
