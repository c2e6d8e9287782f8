"""Whole-slide images: opened, read at a physical scale, searched for tissue, and laid out in tiles."""

from __future__ import annotations

from eosin.slides.errors import UnusableSlide

__all__ = [
    "UnusableSlide",
]
