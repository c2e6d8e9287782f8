from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from eosin.synthetic import write_slide

WriteSlide = Callable[..., Path]


def tissue_at(x: int, y: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Purple tissue with a fine texture left of 1,024 px and above 768 px, glass elsewhere."""
    columns, rows = np.meshgrid(np.arange(x, x + width), np.arange(y, y + height))
    texture = (columns * 7 + rows * 13) % 32
    tissue = np.stack([170 + texture, 90 + texture, 160 + texture], axis=-1)
    glass = np.full_like(tissue, 244)
    inside = (columns < 1024) & (rows < 768)
    return np.where(inside[..., None], tissue, glass).astype(np.uint8)


@pytest.fixture
def write() -> WriteSlide:
    """Write a small slide: 1,280 by 1,024 px, 0.5 µm/px, of which 1,024 by 768 px are tissue."""

    def make(path: Path, **options: object) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        arguments = {"width": 1280, "height": 1024, "mpp": 0.5, "levels": (1, 4), "pattern": tissue_at} | options
        return write_slide(path, **arguments)

    return make


@pytest.fixture
def tissue() -> Callable[[int, int, int, int], npt.NDArray[np.uint8]]:
    """What is drawn at (x, y, width, height)."""
    return tissue_at
