"""What a process that searches for nuclei needs, imported once by the server from which all are forked."""

from __future__ import annotations

import PIL.ImageDraw
import PIL.ImageFont
import PIL.PngImagePlugin
import scipy.ndimage
import tifffile

import eosin.nuclei.results
import eosin.nuclei.stitch

__all__ = ["LOADED"]

LOADED = (PIL, scipy.ndimage, tifffile, eosin.nuclei.results, eosin.nuclei.stitch)
