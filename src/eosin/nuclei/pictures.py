"""Images and slides as a network for nuclei sees them: at its µm/px, in windows, where there is tissue."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.nuclei.crops import mirrored
from eosin.slides import FoundSlide, Grid, Slide, TissueConfig, coverage, find_tissue, open_slide, tissue_scale
from eosin.slides.discover import PLAIN_SUFFIXES
from eosin.slides.errors import UnusableSlide
from eosin.slides.plain import PlainSlide

__all__ = ["Picture", "Strip", "open_picture"]

UInt8Array = npt.NDArray[np.uint8]

# Decoded source tiles that each thread keeps, in bytes: a row of them.
_CACHE = 64 << 20
# A TIFF of more pixels than this is a slide even where it has one level and says no µm/px.
_LARGE = 1 << 26
# Nuclei lie in what little stains beside the tissue that was found, in µm.
_BESIDE = 16.0


@dataclass(frozen=True)
class Strip:
    """Windows side by side: outputs of row `row`, columns `first` to before `stop`, of a grid from (0, 0) on."""

    row: int
    first: int
    stop: int


class Picture:
    """An image or a slide, opened by `open_picture`; read by several threads, each with a file of its own.

    Attributes:
        name: Unique among those predicted together.
        path: The file.
        kind: "slide", of which the tissue is looked at, or "image".
        width, height: In px as the network sees it.
        step: px of the file (level 0) per px as the network sees it, along x and y.
        mpp: µm/px as the network sees it; None where unknown.
        notes: What a user should know.
    """

    def __init__(self, found: FoundSlide, slide: Slide, kind: str, mpp: float | None, own: float | None) -> None:
        self.name, self.path, self.kind = found.name, found.path, kind
        self.notes = slide.notes
        self._own = own
        self._plain = slide.format == "plain"
        self._slide = slide
        self._turns = threading.Lock()
        self._reduced = threading.Lock()
        self._closed = False
        self._local = threading.local()
        self._others: list[Slide] = []
        if slide.mpp is None or mpp is None:
            self.step, self.mpp = (1.0, 1.0), None if slide.mpp is None else slide.mpp[0]
        else:
            self.step, self.mpp = (mpp / slide.mpp[0], mpp / slide.mpp[1]), mpp
        self._scaled = slide.mpp is not None and mpp is not None
        self.width, self.height = _length(slide.width, self.step[0]), _length(slide.height, self.step[1])

    def close(self) -> None:
        """Close the files; once is enough."""
        self.close_readers()
        if not self._closed:
            self._closed = True
            self._slide.close()

    def close_readers(self) -> None:
        """Close the files of threads that have read windows; none is read after it."""
        with self._turns:
            others, self._others = self._others, []
        for slide in others:
            slide.close()

    def read(self, x: int, y: int, width: int, height: int) -> UInt8Array:
        """Read a part that lies inside: uint8 [height, width, 3].

        Raises:
            UnusableSlide: If the file is damaged there.
        """
        if self._plain:
            # Decoded once, by whoever comes first.
            with self._turns:
                return self._read(self._slide, x, y, width, height)
        return self._read(self._mine(), x, y, width, height)

    def _mine(self) -> Slide:
        slide: Slide | None = getattr(self._local, "slide", None)
        if slide is None:
            slide = open_slide(self.path, source_mpp=self._own, cache_bytes=_CACHE)
            self._local.slide = slide
            with self._turns:
                self._others.append(slide)
        return slide

    def _read(self, slide: Slide, x: int, y: int, width: int, height: int) -> UInt8Array:
        if self._scaled:
            assert self.mpp is not None
            return slide.read(x * self.step[0], y * self.step[1], self.mpp, width, height)
        return slide.read_level(0, x, y, width, height)

    def windows(self, strip: Strip, window: int, output: int) -> UInt8Array:
        """Read windows side by side; beyond the borders the picture is mirrored, its last pixel not repeated.

        Args:
            strip: Which.
            window: Side of a window in px.
            output: Side of a window's middle in px, by which windows are apart.

        Returns:
            uint8 [n, window, window, 3].

        Raises:
            UnusableSlide: If the file is damaged there.
        """
        margin = (window - output) // 2
        count = strip.stop - strip.first
        length = (count - 1) * output + window
        columns = mirrored(strip.first * output - margin, length, self.width)
        rows = mirrored(strip.row * output - margin, window, self.height)
        x, y = int(columns.min()), int(rows.min())
        pixels = self.read(x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y)
        pixels = pixels[rows - y][:, columns - x]
        return np.stack([pixels[:, at * output : at * output + window] for at in range(count)])

    def looked_at(self, output: int, tissue: TissueConfig | None) -> npt.NDArray[np.bool_]:
        """Tell which outputs of the grid show tissue: bool [rows, columns].

        Args:
            output: Side of an output in px.
            tissue: How tissue is found; None takes all.

        Raises:
            UnusableSlide: If the file is damaged.
        """
        rows, columns = math.ceil(self.height / output), math.ceil(self.width / output)
        if tissue is None or self.kind == "image":
            return np.ones((rows, columns), dtype=bool)
        from scipy import ndimage

        own = self._slide.require_mpp()
        size = self._slide.width, self._slide.height
        mpp = tissue_scale(size, own, tissue)
        with self._alone():
            thumbnail = self._slide.thumbnail(mpp)
        mask = find_tissue(thumbnail, (mpp, mpp), tissue).mask
        mask = ndimage.binary_dilation(mask, ndimage.generate_binary_structure(2, 2), math.ceil(_BESIDE / mpp))
        x = np.floor(np.arange(columns) * output * self.step[0]).astype(np.int64)
        y = np.floor(np.arange(rows) * output * self.step[1]).astype(np.int64)
        across, down = output * self.step[0] + 1, output * self.step[1] + 1
        grid = Grid(np.tile(x, rows), np.repeat(y, columns), across, down, float(self.mpp or mpp), output)
        extent = mask.shape[1] * mpp / own[0], mask.shape[0] * mpp / own[1]
        return coverage(mask, grid, extent).reshape(rows, columns) > 0

    def thumbnail(self, longest: int) -> tuple[UInt8Array, float]:
        """Return the picture, reduced where it is longer than that, and px as the network sees it per px of it."""
        factor = max(1.0, max(self.width, self.height) / longest)
        with self._alone():
            if factor == 1:
                return self._read(self._slide, 0, 0, self.width, self.height), 1.0
            return self._slide.thumbnail_by(factor * self.step[0]), factor

    def _alone(self) -> threading.Lock:
        """Hold this to read with the picture's first file, in whatever thread."""
        return self._turns if self._plain else self._reduced


def _length(length: int, step: float) -> int:
    """How many px of a size cover a length, the last one perhaps in part."""
    return max(1, math.ceil(length / step - 1e-6))


def open_picture(
    found: FoundSlide, *, mpp: float | None, source_mpp: float | None = None, fallback_mpp: float | None = None
) -> Picture:
    """Open an image or a slide.

    PNG, JPEG and the like are images, and so are TIFFs of one level that say no µm/px and have fewer than 67 million
    px; all else are slides. An image without µm/px is taken as it is; a slide must have one.

    Args:
        found: The file and its name.
        mpp: µm/px at which the network sees; None where it is not known, so that images are taken as they are.
        source_mpp: µm/px of the file, instead of what it says.
        fallback_mpp: µm/px of the file where it does not say it.

    Raises:
        UnusableSlide: If it is none, is damaged, or its µm/px are not known or too coarse.
        EosinError: If a given µm/px cannot be one.
    """
    suffix = found.path.suffix.lower()
    given = source_mpp
    slide = _opened(found.path, source_mpp, fallback_mpp)
    try:
        if source_mpp is None and slide.mpp_source == "given":
            given = fallback_mpp
        small = len(slide.levels) == 1 and slide.width * slide.height < _LARGE
        image = suffix in PLAIN_SUFFIXES or (
            suffix in (".tif", ".tiff") and small and slide.mpp_source in ("", "given")
        )
        if not image:
            slide.require_mpp()
            if mpp is None:
                raise UnusableSlide("the network does not know its µm/px; give --mpp with that of its training images")
        picture = Picture(found, slide, "image" if image else "slide", mpp, given)
        # A scale that the file does not serve is told now.
        picture.read(0, 0, 1, 1)
        return picture
    except (UnusableSlide, EosinError):
        slide.close()
        raise


def _opened(path: Path, source_mpp: float | None, fallback_mpp: float | None) -> Slide:
    try:
        return open_slide(path, source_mpp=source_mpp, fallback_mpp=fallback_mpp, cache_bytes=_CACHE)
    except UnusableSlide as refusal:
        # A TIFF in one piece is no slide, but many public sets of nuclei are such images.
        if path.suffix.lower() not in (".tif", ".tiff"):
            raise
        try:
            plain = PlainSlide(path)
        except UnusableSlide:
            raise refusal from None
        own = source_mpp if source_mpp is not None or plain.scale.mpp is not None else fallback_mpp
        return Slide(path, plain, own)
