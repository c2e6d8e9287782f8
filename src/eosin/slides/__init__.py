"""Whole-slide images: opened, read at a physical scale, searched for tissue, and laid out in tiles."""

from __future__ import annotations

from eosin.slides.discover import SLIDE_SUFFIXES, FoundSlide, find_slides
from eosin.slides.errors import InterruptedSlide, UnusableSlide
from eosin.slides.grid import Grid, coverage, lay_grid
from eosin.slides.levels import Level
from eosin.slides.opening import open_slide
from eosin.slides.regions import Polygon, Regions, read_mask, read_regions, region_mask
from eosin.slides.resample import resample_area
from eosin.slides.slide import Slide
from eosin.slides.tables import SlideNames, given_mpp, slide_table
from eosin.slides.tissue import Tissue, TissueConfig, find_tissue, tissue_scale

__all__ = [
    "SLIDE_SUFFIXES",
    "FoundSlide",
    "Grid",
    "InterruptedSlide",
    "Level",
    "Polygon",
    "Regions",
    "Slide",
    "SlideNames",
    "Tissue",
    "TissueConfig",
    "UnusableSlide",
    "coverage",
    "find_slides",
    "find_tissue",
    "given_mpp",
    "lay_grid",
    "open_slide",
    "read_mask",
    "read_regions",
    "region_mask",
    "resample_area",
    "slide_table",
    "tissue_scale",
]
