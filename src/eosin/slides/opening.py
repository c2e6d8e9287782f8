"""Which reader serves which file: by its content, then by its name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from eosin.slides.backend import Backend
from eosin.slides.errors import UnusableSlide
from eosin.slides.mpp import check_given
from eosin.slides.openslide_backend import OpenSlideSlide, detect
from eosin.slides.plain import PlainSlide
from eosin.slides.slide import Slide
from eosin.slides.tiff import TiffSlide
from eosin.slides.tiff_decode import NotFast

__all__ = ["open_slide"]

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_READ_AS_TIFF = (None, "aperio", "generic-tiff")


def open_slide(
    path: str | Path,
    *,
    source_mpp: float | None = None,
    fallback_mpp: float | None = None,
    cache_bytes: int = 256 << 20,
) -> Slide:
    """Open a slide.

    TIFFs of Aperio, OME-TIFFs and other pyramids are read tile by tile; the other scanners' formats by OpenSlide; PNG,
    JPEG, BMP and JPEG 2000 as one level by Pillow.

    Args:
        path: The file; of a MIRAX slide the .mrxs file, of a DICOM slide any of its files or the folder with them.
        source_mpp: µm/px of level 0, instead of what the file says.
        fallback_mpp: µm/px of level 0, where the file does not say it.
        cache_bytes: Most bytes of decoded source tiles to keep.

    Raises:
        UnusableSlide: If the file is missing, empty, truncated, no slide, or may not be read. The message leaves out
            the path.
        EosinError: If a given µm/px is not between 0.05 and 20.
    """
    path = Path(path)
    for given in (source_mpp, fallback_mpp):
        if given is not None:
            check_given(given)
    try:
        file = _dicom_file(path) if path.is_dir() else path
        with open(file, "rb") as opened:
            head = opened.read(16)
            size = os.fstat(opened.fileno()).st_size
        if not size:
            raise UnusableSlide("empty (0 bytes); copy it again")
        backend = _backend(file, head, cache_bytes)
    except OSError as error:
        raise UnusableSlide(_unreadable(error)) from None
    if source_mpp is None and backend.scale.mpp is None:
        source_mpp = fallback_mpp
    return Slide(path, backend, source_mpp)


def _dicom_file(path: Path) -> Path:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".dcm" and not file.name.startswith("."))
    if not files:
        raise UnusableSlide("is a folder; give a slide's file, or a folder of DICOM files")
    return next((file for file in files if detect(file) is not None), files[0])


def _backend(path: Path, head: bytes, cache_bytes: int) -> Backend:
    vendor = detect(path)
    refusal = ""
    if head[:4] in _TIFF_MAGIC and vendor in _READ_AS_TIFF:
        try:
            return TiffSlide(path, cache_bytes)
        except NotFast as reason:
            refusal = str(reason)
    if refusal:
        # OpenSlide opens any tiled TIFF, and finds what it cannot read when it reads. Pillow is not asked: what its
        # TIFF reader cannot do, it writes to the terminal.
        try:
            if vendor is not None:
                slide = OpenSlideSlide(path, cache_bytes)
                slide.read(0, 0, 0, 1, 1)
                return slide
        except UnusableSlide:
            pass
        raise UnusableSlide(f"a TIFF that is not read ({refusal}); save it as 8-bit RGB in tiles")
    if vendor is not None:
        return OpenSlideSlide(path, cache_bytes)
    if path.suffix.lower() == ".mrxs":
        raise UnusableSlide(
            f"its pixels lie in the folder {path.stem} beside it, which is missing or incomplete; copy it too"
        )
    return PlainSlide(path)


def _unreadable(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "does not exist"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "may not be read; change its permissions"
    if error.errno == errno.ELOOP:
        return "is a link that leads back to itself; remove it"
    return f"cannot be read ({error.strerror or error})"
