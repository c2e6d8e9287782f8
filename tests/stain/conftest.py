"""A small folder of synthetic tissue, with blank and broken images among it where a test asks for them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from eosin.synthetic import write_tiles


@pytest.fixture(scope="session")
def tissue(tmp_path_factory):
    """105 tiles of 48 px on 20 slides, none of them glass."""
    folder = tmp_path_factory.mktemp("tissue") / "tiles"
    write_tiles(folder, tiles=120, slides=20, size=48)
    for path in (folder / "images" / "background").iterdir():
        path.unlink()
    return folder / "images"


@pytest.fixture
def save_image():
    """A function that writes one color, or an array, as PNG."""

    def save(path, pixels, size=48):
        pixels = np.broadcast_to(np.asarray(pixels, dtype=np.uint8), (size, size, 3))
        Image.fromarray(np.ascontiguousarray(pixels)).save(path)

    return save
