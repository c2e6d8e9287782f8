"""`python -m eosin.synthetic --sheet out.png`: draw a contact sheet of synthetic tissue."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eosin.core.errors import EosinError
from eosin.core.files import atomic_file
from eosin.synthetic.collection import NOTICE
from eosin.synthetic.sheet import contact_sheet


def main(sheet: Path, slides: int = 4, size: int = 128, mpp: float = 0.5, seed: int = 0) -> None:
    """Draw every kind of synthetic tissue on several slides into one PNG. None of it is real tissue.

    Args:
        sheet: PNG file to write.
        slides: Rows, each with its own stain.
        size: Side of a tile in pixels.
        mpp: Micrometers per pixel.
        seed: Seed of the collection.
    """
    if not sheet.resolve().parent.is_dir():
        raise EosinError(f"sheet: the folder of {sheet} does not exist; make it first")
    picture = contact_sheet(slides=slides, size=size, mpp=mpp, seed=seed)
    information = PngInfo()
    information.add_text("Description", f"eosin.synthetic: {NOTICE}")
    # A palette of 256 colors takes a third of the bytes and hides nothing at this size.
    small = picture.quantize(256, dither=Image.Dither.NONE)
    with atomic_file(sheet) as file:
        small.save(file, format="PNG", pnginfo=information, optimize=True)


if __name__ == "__main__":
    import tyro

    try:
        tyro.cli(main, prog="python -m eosin.synthetic")
    except EosinError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
