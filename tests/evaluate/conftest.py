"""A tiny task of images, for the protocols that look at pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from eosin.data import open_tiles
from eosin.encoders import Encoder, load_encoder
from eosin.evaluate import Fit, Material, ProbeData, embed, fit_of, material_of

COLORS = np.array([[200, 90, 150], [120, 60, 190], [220, 190, 210]])


@dataclass
class PixelTask:
    """36 images of three classes: 18 to train on, 9 to choose on, 9 to test."""

    data: ProbeData
    encoder: Encoder

    def material(self, **more: Any) -> Material:
        return material_of(self.data, self.encoder, **more)

    def fit(self, seed: int = 0) -> Fit:
        return fit_of(self.data, seed)


@pytest.fixture
def pixel_task(tmp_path: Path) -> Callable[..., PixelTask]:
    """Make the task with an encoder; the classes differ in color, `skill` times as much as they can."""

    def make(spec: str = "random:test_resnet?size=32", skill: float = 1.0, side: int = 40) -> PixelTask:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        for number in range(36):
            center = COLORS.mean(axis=0) + skill * (COLORS[number % 3] - COLORS.mean(axis=0))
            pixels = center + rng.normal(0, 25, (side, side + 6, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}.png")
        tiles, encoder = open_tiles(str(folder)), load_encoder(spec)
        rows = np.arange(36)
        data = ProbeData(
            embed(encoder, tiles, device="cpu").features, rows % 3, ("a", "b", "c"), rows[:18], rows[18:27], rows[27:],
            np.asarray(tiles.names).astype(str), None, "image", 0, tiles,
        )  # fmt: skip
        return PixelTask(data, encoder)

    return make
