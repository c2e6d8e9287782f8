"""A tiny run: 64 tiles of 40 px, a narrow network, steps of a few milliseconds."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from eosin.core.config import apply_overrides
from eosin.pretrain import load_recipe
from eosin.pretrain.config import PretrainConfig


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
            "optimizer": {"lr": 0.5, "warmup_samples": 40, "stair_samples": 0},
            "checkpoint": {"every_steps": 10},
            "watch": {"tiles": 16, "every_steps": 10, "grace_steps": 0},
        } | {name.replace("__", "."): value for name, value in fields.items()}
        return load_recipe("mocov2-small", values)

    return build


FEW = {"size": 32, "scale": [0.5, 1.0]}
SMALL = {"size": 16, "scale": [0.2, 0.5]}
TINY_METHODS = {
    "mocov2": {
        "method": {"dim": 8, "queue_size": 32, "momentum": 0.9, "norm_group": 4},
        "augment": {"views": {"global": FEW}},
    },
    "swav": {
        "method": {"dim": 8, "prototypes": 12, "queue_size": 32, "queue_start_samples": 40, "freeze_samples": 80},
        "augment": {"views": {"global": FEW, "local": SMALL | {"count": 2}}},
    },
    "barlowtwins": {
        "method": {"dim": 24, "hidden": 16},
        "augment": {"views": {"first": FEW, "second": FEW}},
    },
    "dino": {
        "method": {
            "prototypes": 32,
            "hidden": 16,
            "bottleneck": 8,
            "momentum": 0.9,
            "drop_path": 0.0,
            "freeze_last_layer_samples": 80,
        },
        "augment": {"views": {"global_1": FEW, "global_2": FEW, "local": SMALL | {"count": 2}}},
    },
}
"""Fields that make a method's run one of milliseconds a step; the optimiser stays the authors'."""


@pytest.fixture(scope="session")
def tiny_of(tile_folder):
    """Build the tiny configuration of a method, with fields set by dotted name."""

    def build(name, **fields):
        values = {
            "samples": 320,
            "batch_size": 8,
            "precision": "fp32",
            "log": {"every_steps": 4},
            "data": {"source": str(tile_folder), "size": 40, "workers": 0},
            "encoder": {"architecture": "test_resnet", "size": 40},
            "optimizer": {"warmup_samples": 40, "stair_samples": 0},
            "checkpoint": {"every_steps": 10},
            "watch": {"tiles": 16, "every_steps": 10, "grace_steps": 0},
            "augment": TINY_METHODS[name]["augment"],
            "method": {"name": name, **TINY_METHODS[name]["method"]},
        }
        overrides = {name.replace("__", "."): value for name, value in fields.items()}
        return PretrainConfig.parse(apply_overrides(values, overrides), name)

    return build
