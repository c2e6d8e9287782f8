"""Small sources of tiles with known faults."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eosin.synthetic.tiles import render_tile


@pytest.fixture(scope="session")
def tissue() -> list[np.ndarray]:
    """Twelve synthetic tiles with tissue, uint8 [96, 96, 3]."""
    kinds = ("tumor", "stroma", "glands", "muscle")
    tiles = [render_tile(kinds[number % 4], size=96, index=number) for number in range(12)]
    return [np.ascontiguousarray(tile.image.transpose(1, 2, 0)) for tile in tiles]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write images as PNG files and a manifest with the columns given; returns the manifest."""

    def write_images(images: list[np.ndarray | bytes], **columns: list[object]) -> Path:
        rows = []
        for number, image in enumerate(images):
            path = tmp_path / f"{number:03d}.png"
            if isinstance(image, bytes):
                path.write_bytes(image)
            else:
                Image.fromarray(image).save(path)
            rows.append({"file": path.name} | {name: values[number] for name, values in columns.items()})
        index = tmp_path / "index.csv"
        with open(index, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return index

    return write_images
