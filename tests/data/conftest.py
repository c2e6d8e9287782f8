"""Images for the tests of `eosin.data`."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def encoded(number: int, size: tuple[int, int] = (24, 20), kind: str = "PNG", **options: object) -> bytes:
    """A smooth random RGB image of (width, height), different for each number."""
    coarse = np.random.default_rng(number).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Give `encoded` to tests: `encode(number, (width, height), "JPEG", quality=85)`."""
    return encoded


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of images: `folder(12)` or `folder(["a/x.png", "b/y.jpg"])`."""

    def make(names: int | list[str], name: str = "tiles", size: tuple[int, int] = (24, 20)) -> Path:
        root = tmp_path / name
        listed = [f"{number:03d}.png" for number in range(names)] if isinstance(names, int) else names
        for number, relative in enumerate(listed):
            path = root / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(number, size, "JPEG" if path.suffix in (".jpg", ".jpeg") else "PNG"))
        return root

    return make
