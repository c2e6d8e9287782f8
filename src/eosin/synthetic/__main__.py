"""`python -m eosin.synthetic`: a contact sheet of synthetic tissue, or a folder of synthetic slides."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from eosin.core.console import console, progress_bar
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file
from eosin.synthetic.collection import NOTICE
from eosin.synthetic.sheet import contact_sheet
from eosin.synthetic.slide_folder import write_slides


def main(
    sheet: Path | None = None,
    rows: int = 4,
    size: int = 128,
    mpp: float = 0.5,
    slides: Path | None = None,
    count: int = 20,
    broken: float = 0.0,
    seed: int = 0,
) -> None:
    """Draw synthetic tissue: a contact sheet of every kind (--sheet), or a folder of slides (--slides).

    None of it is real tissue.

    Args:
        sheet: PNG file to write.
        rows: Rows of the sheet, each a slide with its own stain.
        size: Side of a tile of the sheet in pixels.
        mpp: Micrometers per pixel of the sheet.
        slides: Folder of slides to write: several sites, formats and scales, 2,000 to 5,000 px to a side.
        count: Number of slides.
        broken: Share of the slides that are broken, each in another way.
        seed: Seed of the collection.
    """
    if (sheet is None) == (slides is None):
        raise EosinError("give --sheet FILE.png for a contact sheet, or --slides FOLDER for slides")
    if sheet is not None:
        _draw_sheet(sheet, rows, size, mpp, seed)
    elif slides is not None:
        with progress_bar() as progress:
            task = progress.add_task("slides", total=count)
            made = write_slides(slides, count, broken=broken, seed=seed, advance=lambda: progress.advance(task))
        faults = sum(bool(slide.fault) for slide in made)
        console.print(f"{slides}: {len(made)} slides, {faults} of them broken; made.csv lists them ({NOTICE})")


def _draw_sheet(sheet: Path, rows: int, size: int, mpp: float, seed: int) -> None:
    if not sheet.resolve().parent.is_dir():
        raise EosinError(f"sheet: the folder of {sheet} does not exist; make it first")
    picture = contact_sheet(slides=rows, size=size, mpp=mpp, seed=seed)
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
