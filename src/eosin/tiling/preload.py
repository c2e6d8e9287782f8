"""What a process that cuts slides needs, imported once by the server from which all are forked.

The rooms themselves import these where they use them, so that commands that cut no slide do not wait for them.
"""

from __future__ import annotations

import imagecodecs
import openslide
import PIL.ImageDraw
import PIL.ImageFont
import PIL.PngImagePlugin
import scipy.ndimage
import tifffile

import eosin.tiling.tasks

__all__ = ["CODECS", "LOADED"]

LOADED = (PIL, scipy.ndimage, tifffile, openslide, eosin.tiling.tasks)

# imagecodecs loads a codec when its name is first used.
CODECS = (imagecodecs.jpeg8_decode, imagecodecs.jpeg8_encode, imagecodecs.jpeg2k_decode, imagecodecs.png_encode)
