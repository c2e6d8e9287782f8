"""tiatoolbox's way from a slide to its tiles in memory, for `slides.py`, which runs this in tiatoolbox's own Python.

Answers each line on standard input, a slide's path, with the seconds of CPU time that opening, finding tissue and
cutting all tiles took, and the number of tiles.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
from tiatoolbox import __version__
from tiatoolbox.tools.patchextraction import get_patch_extractor
from tiatoolbox.wsicore.wsireader import WSIReader


def cut(path: str, size: int) -> list[np.ndarray]:
    reader = WSIReader.open(path)
    reader.tissue_mask(method="otsu", resolution=8.0, units="mpp")
    extractor = get_patch_extractor(
        "slidingwindow",
        input_img=reader,
        patch_size=(size, size),
        stride=(size, size),
        resolution=0,
        units="level",
        within_bound=True,
    )
    return [np.asarray(patch) for patch in extractor]


print(json.dumps({"version": __version__}), flush=True)
for line in sys.stdin:
    started = time.process_time()
    tiles = cut(line.strip(), 224)
    print(json.dumps({"seconds": time.process_time() - started, "tiles": len(tiles)}), flush=True)
