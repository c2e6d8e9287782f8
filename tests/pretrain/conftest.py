"""A tiny run: 64 tiles of 40 px, a narrow network, steps of a few milliseconds."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from eosin.pretrain import load_recipe


@pytest.fixture(scope="session")
def tile_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    generator = np.random.default_rng(0)
    for number in range(64):
        coarse = generator.integers(60, 230, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"tile-{number:02d}.png")
    return folder


@pytest.fixture(scope="session")
def tiny(tile_folder):
    """Build the tiny configuration, with fields set by dotted name."""

    def build(**fields):
        values = {
            "samples": 320,
            "batch_size": 8,
            "precision": "fp32",
            "log": {"every_steps": 4},
            "data": {"source": str(tile_folder), "size": 40, "workers": 0},
            "encoder": {"architecture": "test_resnet", "size": 40, "options": {}},
            "augment": {"views": {"global": {"size": 32}}},
            "method": {"name": "mocov2", "dim": 8, "queue_size": 32, "momentum": 0.9, "norm_group": 4},
            "optimizer": {"lr": 0.5, "warmup_samples": 40},
            "checkpoint": {"every_steps": 10},
            "watch": {"tiles": 16, "every_steps": 10, "grace_steps": 0},
        } | {name.replace("__", "."): value for name, value in fields.items()}
        return load_recipe("mocov2-small", values)

    return build
