"""Slides as a source of tiles: read on the fly, at any place of their tissue and any of several resolutions.

What a view shows is a pure function of the slides, the cell and four numbers in [0, 1), so a run over slides is as
repeatable as one over files. Each process opens its own slides, when it needs them, and keeps the last few open.
"""

from __future__ import annotations

import json
import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from eosin.core.errors import EosinError
from eosin.data.digests import digest
from eosin.data.images import UnreadableImage
from eosin.data.slide_index import CellSettings, IndexedSlide, Mask, index_slides, slides_home, tissue_mask
from eosin.data.slide_options import Scales, parse_slides
from eosin.data.tiles import Names, Rows, Tiles, ViewSource
from eosin.slides import Slide, TissueConfig, UnusableSlide, find_slides, given_mpp
from eosin.slides.sampling import FINER

__all__ = ["SlideViews", "open_slides"]

# Slides that a process keeps open, and the decoded tiles that each of them keeps.
_OPEN_SLIDES = 16
_CACHE_BYTES = 16 << 20
# By how much a jitter shrinks until the view lies on tissue.
_JITTERS = (1.0, 0.5, 0.25, 0.0)
# Slides left out that are named, each with its reason; the rest is counted.
_NAMED = 10
# What differs from a whole number of pixels by less than this is the rounding of a file's resolution.
_WHOLE = 1e-3

UInt8Array = npt.NDArray[np.uint8]


class SlideViews(ViewSource):
    """Reads tiles from slides; see `tiles.ViewSource`.

    Args:
        slides: The slides.
        slide: int32 [N], the slide of each cell.
        x: int64 [N], left edge of each cell in level-0 px.
        y: int64 [N], its upper edge.
        settings: What makes a cell.
        scales: Resolutions of views; the coarsest is the cells'.
        home: Where masks of tissue are kept.
    """

    def __init__(
        self,
        slides: Sequence[IndexedSlide],
        slide: npt.NDArray[np.int32],
        x: npt.NDArray[np.int64],
        y: npt.NDArray[np.int64],
        settings: CellSettings,
        scales: Scales,
        home: Path,
    ) -> None:
        self.slides = tuple(slides)
        self.slide = slide
        self.x = x
        self.y = y
        self.settings = settings
        self.scales = scales
        self.home = home
        self._open = _OpenSlides(settings, home)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": _OpenSlides(self.settings, self.home)}

    def read(self, index: int) -> bytes:
        """Return a cell as a PNG.

        Raises:
            UnreadableImage: If the slide cannot be read there.
        """
        import imagecodecs

        # Run-length matches alone: faster than the search for others, and on textures no larger.
        return bytes(imagecodecs.png_encode(self._cell(index, self.settings.size), level=1, strategy=3))

    def square(self, index: int, size: int) -> UInt8Array:
        """Return a cell at another size, read from the slide at the resolution that gives it.

        Args:
            index: Which cell.
            size: Side in px.

        Returns:
            uint8 [3, size, size].

        Raises:
            UnreadableImage: If the slide cannot be read there.
        """
        return _channels_first(self._cell(index, size))

    def view(self, index: int, size: int, uniforms: npt.NDArray[np.float64]) -> tuple[UInt8Array, float]:
        """Return tissue near a cell at a drawn resolution.

        The view's center lies up to half a cell from the cell's, uniformly along both axes, to whole pixels; the view
        lies within the slide. Where less than the least share of it would be tissue, it moves half and three quarters
        of the way back to the cell's center, then there; where even that is not tissue enough, as in a hole, it is the
        cell itself.

        Args:
            index: Which cell.
            size: Side in px.
            uniforms: float64 [4] in [0, 1): along x, along y, the resolution; the last is not used.

        Returns:
            uint8 [3, size, size], and its µm/px.

        Raises:
            UnreadableImage: If the slide cannot be read there.
        """
        number = int(self.slide[index])
        indexed = self.slides[number]
        with self._open.use(number, indexed) as (slide, mask):
            x, y, mpp = self._place(int(index), indexed, mask, uniforms)
            side = self.settings.size * mpp
            return _channels_first(_read(slide, x, y, side, size)), side / size

    def _place(
        self, index: int, indexed: IndexedSlide, mask: Mask, uniforms: npt.NDArray[np.float64]
    ) -> tuple[float, float, float]:
        """Return the left upper corner of a view in level-0 px and its µm/px at the source's size."""
        settings = self.settings
        mpp = self.scales.draw(float(uniforms[2]), max(indexed.mpp))
        cell = [settings.size * settings.mpp / own for own in indexed.mpp]
        side = [settings.size * mpp / own for own in indexed.mpp]
        corner = (float(self.x[index]), float(self.y[index]))
        for jitter in _JITTERS:
            place = []
            for axis, length in enumerate((indexed.width, indexed.height)):
                center = corner[axis] + cell[axis] * (0.5 + jitter * (float(uniforms[axis]) - 0.5))
                place.append(_on_pixels(center - side[axis] / 2, length - side[axis], mpp / indexed.mpp[axis]))
            if mask.share(place[0], place[1], side[0], side[1]) >= settings.minimum:
                return place[0], place[1], mpp
        return *corner, settings.mpp

    def _cell(self, index: int, size: int) -> UInt8Array:
        number = int(self.slide[index])
        with self._open.use(number, self.slides[number]) as (slide, _):
            return _read(
                slide, float(self.x[index]), float(self.y[index]), self.settings.size * self.settings.mpp, size
            )

    def take(self, rows: Rows) -> SlideViews:
        """Return the source of some rows."""
        slide, x, y = self.slide[rows], self.x[rows], self.y[rows]
        return SlideViews(self.slides, slide, x, y, self.settings, self.scales, self.home)

    def digests(self) -> Iterator[bytes]:
        """Yield what identifies each cell's pixels without reading them: the file's size and time, and the place."""
        settings = self.settings
        kinds = [
            json.dumps([slide.name, slide.bytes, slide.modified_ns, slide.mpp, settings.mpp, settings.size])
            for slide in self.slides
        ]
        for slide, x, y in zip(self.slide.tolist(), self.x.tolist(), self.y.tolist(), strict=True):
            yield digest(f"{kinds[slide]} {x} {y}".encode())


def _on_pixels(edge: float, last: float, step: float) -> float:
    """Move a view's edge to where its pixels are whole ones of the slide, or of one of its levels.

    Then pixels are copied, or averaged in whole blocks: faster than in fractions, and as sharp as the slide is.

    Args:
        edge: Left or upper edge in level-0 px.
        last: The largest it may be; the smallest is 0.
        step: Level-0 px per px of the view.
    """
    block = round(step) if step > 1 and abs(step - round(step)) < _WHOLE else 1
    return float(min(max(block * round(edge / block), 0), block * max(math.floor(last / block), 0)))


def _read(slide: Slide, x: float, y: float, side: float, size: int) -> UInt8Array:
    """Read a square of `side` µm as uint8 [size, size, 3]: at once, or enlarged where the slide has fewer pixels."""
    native = max(slide.require_mpp())
    if side / size >= native * (1 - FINER):
        return slide.read(x, y, side / size, size, size)
    own = max(1, round(side / native))
    pixels = Image.fromarray(slide.read(x, y, side / own, own, own))
    return np.asarray(pixels.resize((size, size), Image.Resampling.BILINEAR))


def _channels_first(pixels: UInt8Array) -> UInt8Array:
    return pixels.transpose(2, 0, 1)


class _OpenSlides:
    """The slides that a process has open, the last used ones."""

    def __init__(self, settings: CellSettings, home: Path) -> None:
        self.settings = settings
        self.home = home
        self._process = 0
        self._slides: OrderedDict[int, tuple[Slide, Mask]] = OrderedDict()

    def use(self, number: int, indexed: IndexedSlide) -> _InUse:
        """Lend a slide, opened where it is not."""
        return _InUse(self, number, indexed)

    def get(self, number: int, indexed: IndexedSlide) -> tuple[Slide, Mask]:
        if self._process != os.getpid():
            # A file opened before a fork shares its position with the parent's.
            self._slides = OrderedDict()
            self._process = os.getpid()
        if number in self._slides:
            self._slides.move_to_end(number)
            return self._slides[number]
        while len(self._slides) >= _OPEN_SLIDES:
            self._slides.popitem(last=False)[1][0].close()
        slide = indexed.open(_CACHE_BYTES)
        try:
            if (slide.width, slide.height) != (indexed.width, indexed.height):
                raise UnusableSlide("the file was replaced since its tissue was found; start again")
            mask = tissue_mask(slide, indexed, self.settings.tissue, self.home)
        except BaseException:
            slide.close()
            raise
        self._slides[number] = (slide, mask)
        return slide, mask

    def drop(self, number: int) -> None:
        """Close a slide: after a failure OpenSlide's refuse all that follows, and what can be read must not vary."""
        if number in self._slides:
            self._slides.pop(number)[0].close()


@dataclass
class _InUse:
    """A slide while it is read; what goes wrong becomes an unreadable image."""

    slides: _OpenSlides
    number: int
    indexed: IndexedSlide

    def __enter__(self) -> tuple[Slide, Mask]:
        try:
            return self.slides.get(self.number, self.indexed)
        except (UnusableSlide, OSError) as error:
            raise self._unreadable(error) from None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            self.slides.drop(self.number)
        if isinstance(error, UnusableSlide | OSError):
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> UnreadableImage:
        return UnreadableImage(f"{self.indexed.path}: {error}")


def open_slides(text: str) -> Tiles:
    """Open slides as a source of tiles.

    Its tiles are the cells of a grid at the coarsest µm/px asked for, where enough of them is tissue; `mpp` is theirs.
    Training sees views near them instead; see `SlideViews.view`.

    Args:
        text: ``DIR`` or ``FILE``, and options as ``?mpp=0.5&size=256``; see `slide_options.SlideOptions`.

    Raises:
        EosinError: If an option is wrong, there are no slides, none of them can be used, or none has tissue.
    """
    spec = f"slides:{text}"
    source, options = parse_slides(text, spec)
    scales = Scales.parse(options.mpp, spec)
    remarks: list[str] = []
    found = find_slides([source], plain=options.images, remark=remarks.append)
    settings = CellSettings(scales.values[-1], options.size, options.tissue, TissueConfig())
    home = slides_home()
    fallback, given = given_mpp(found, options.source_mpp, f"{spec}: source_mpp", remarks)
    indexed = index_slides(
        found, [given.get(slide.name) for slide in found], fallback, settings, home, title=os.path.realpath(source)
    )
    usable = [slide for slide in indexed if slide.x is not None and len(slide.x)]
    left_out = [(slide.name, _why(slide, settings)) for slide in indexed if slide.x is None or not len(slide.x)]
    if not usable:
        name, reason = left_out[0]
        raise EosinError(f"{spec}: none of {len(found):,} slides can be used; first '{name}': {reason}")
    remarks += [f"left out '{name}': {reason}" for name, reason in left_out[:_NAMED]]
    if len(left_out) > _NAMED:
        remarks.append(f"and {len(left_out) - _NAMED:,} more slides left out; `eosin tile` lists every one")
    return _tiles(spec, usable, settings, scales, home, tuple(remarks))


def _why(slide: IndexedSlide, settings: CellSettings) -> str:
    """Return why a slide is left out, the fix being an option of the source."""
    if slide.reason:
        return slide.reason.replace("--source-mpp", "source_mpp=")
    return f"no tile has {settings.minimum:.0%} of tissue; lower tissue={settings.minimum:g}"


def _tiles(
    spec: str,
    slides: Sequence[IndexedSlide],
    settings: CellSettings,
    scales: Scales,
    home: Path,
    remarks: tuple[str, ...],
) -> Tiles:
    corners = [(slide.x, slide.y) for slide in slides if slide.x is not None and slide.y is not None]
    x, y = (np.concatenate([pair[axis] for pair in corners]) for axis in (0, 1))
    which = np.repeat(np.arange(len(slides), dtype=np.int32), [len(pair[0]) for pair in corners])
    called = pa.array([slide.name for slide in slides], pa.large_string())
    texts = [pa.array(values).cast(pa.large_string()) for values in (x, y)]
    between = [pa.scalar(part, pa.large_string()) for part in ("/x", "_y", "")]
    columns = (called.take(pa.array(which)), between[0], texts[0], between[1], texts[1], between[2])
    names = pc.binary_join_element_wise(*columns)
    return Tiles(
        spec=spec,
        names=Names(names),
        source=SlideViews(slides, which, x, y, settings, scales, home),
        slide=np.array([*(slide.name for slide in slides), None], dtype=object)[which],
        mpp=np.full(len(which), settings.mpp),
        x=x.astype(np.float64),
        y=y.astype(np.float64),
        remarks=remarks,
    )
