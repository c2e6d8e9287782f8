"""Synthetic H&E tissue for tests and demonstrations. Nothing it draws is real tissue."""

from eosin.synthetic.collection import write_tiles
from eosin.synthetic.nuclei import NUCLEUS_TYPES
from eosin.synthetic.slide_folder import MadeSlide, write_slides
from eosin.synthetic.slides import write_slide
from eosin.synthetic.stain import SlideStain, beer_lambert, slide_stain
from eosin.synthetic.tiles import TISSUES, SyntheticTile, render_tile

__all__ = [
    "NUCLEUS_TYPES",
    "TISSUES",
    "MadeSlide",
    "SlideStain",
    "SyntheticTile",
    "beer_lambert",
    "render_tile",
    "slide_stain",
    "write_slide",
    "write_slides",
    "write_tiles",
]
