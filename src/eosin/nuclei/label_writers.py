"""Label maps into files: PNG of 16 bits, TIFF or NPY.

Of 32 bits where there are more than 65,535 nuclei; PNG then gives way to TIFF.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from eosin.core.files import atomic_file
from eosin.nuclei.found import Nuclei, loaded
from eosin.nuclei.labels import Labels

__all__ = ["LabelFormat", "write_labels", "write_tiled_labels"]

LabelFormat = Literal["png", "tiff", "npy"]

_TILE = 512
_UINT16 = 65_535


class _Unnamed:
    """A file whose name is not looked at: that of one opened by its number is a number, which tifffile cannot take."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        if name == "name":
            raise AttributeError(name)
        return getattr(self._file, name)


def write_labels(labels: Labels, path: Path, form: LabelFormat) -> Path:
    """Write a label map, whole or not at all, its ids as they are.

    Args:
        labels: Integer [H, W], ids up to 4,294,967,295.
        path: The file, without a suffix.
        form: Of the file; `png` becomes `tiff` where ids are above 65,535.

    Returns:
        The file.

    Raises:
        EosinError: If it cannot be written.
    """
    top = int(labels.max()) if labels.size else 0
    narrow = labels.astype(np.uint16 if top <= _UINT16 else np.uint32)
    if form == "png" and top > _UINT16:
        form = "tiff"
    file = path.with_name(f"{path.name}.{form}")
    with atomic_file(file) as opened:
        if form == "npy":
            np.save(opened, narrow)
        elif form == "png":
            from PIL import Image

            Image.fromarray(narrow).save(opened, "PNG")
        else:
            import tifffile

            tifffile.imwrite(_Unnamed(opened), narrow, compression="zlib", photometric="minisblack")
    return file


def write_tiled_labels(
    parts: Sequence[Nuclei | Path],
    width: int,
    height: int,
    path: Path,
    mpp: float | None = None,
    go_on: Callable[[], object] = lambda: None,
) -> Path:
    """Write the label map of a slide tile by tile, in a TIFF of 32 bits, whole or not at all.

    Args:
        parts: The nuclei, or the files that hold them, which are read where they are shown; ids are 1 to n in their
            order.
        width: Of the map in px.
        height: Of the map in px.
        path: The file, without a suffix.
        mpp: µm/px of the map.
        go_on: Called for each tile; what it raises ends the work, and no file is left.
    """
    import tifffile

    sizes, reach = [0], []
    for each in parts:
        go_on()
        part = loaded(each)
        sizes.append(len(part))
        reach.append((part.boxes[:, 1].min(initial=height), part.boxes[:, 3].max(initial=0)))
    firsts = 1 + np.cumsum(sizes)

    def tiles() -> Iterator[npt.NDArray[np.uint32]]:
        held: dict[int, Nuclei] = {}
        for y in range(0, height, _TILE):
            near = [at for at, (top, bottom) in enumerate(reach) if top < y + _TILE and bottom > y]
            held = {at: held[at] if at in held else loaded(parts[at]) for at in near}
            for x in range(0, width, _TILE):
                go_on()
                tile = np.zeros((_TILE, _TILE), dtype=np.uint32)
                for at, part in held.items():
                    part.paint(tile, (x, y), int(firsts[at]))
                yield tile

    file = path.with_name(f"{path.name}.tiff")
    scale: dict[str, Any] = (
        {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    )
    with atomic_file(file) as opened:
        tifffile.imwrite(
            _Unnamed(opened),
            tiles(),
            shape=(height, width),
            dtype=np.uint32,
            tile=(_TILE, _TILE),
            compression="zlib",
            photometric="minisblack",
            bigtiff=True,
            **scale,
        )
    return file
