"""Small labelled tiles on which color decides most, and a benchmark over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eosin.benchmark import BenchmarkConfig


def write_tiles(folder: Path, patients: int = 12, split: bool = True, seed: int = 1) -> Path:
    """Write three classes of tiles, six a patient, and return the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    lines = ["file,label,patient" + (",split" if split else "")]
    for number in range(6 * patients):
        label, patient = "abc"[number % 3], number // 6
        tile = generator.integers(0, 200, (4, 4, 3)) + np.array([18 * (number % 3), 0, 0])
        name = f"tile-{number:02d}.png"
        Image.fromarray(tile.clip(0, 255).astype(np.uint8)).resize((40, 40)).save(folder / name)
        part = ("train", "train", "val", "test")[patient % 4]
        lines.append(f"{name},{label},p{patient}" + (f",{part}" if split else ""))
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
    return folder / "index.csv"


@pytest.fixture(scope="session")
def write_index():
    return write_tiles


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("tiles"))


@pytest.fixture
def configure(index: Path, tmp_path: Path) -> Callable[..., BenchmarkConfig]:
    def make(**changes: object) -> BenchmarkConfig:
        values = {
            "encoders": ("color=color:stats", "histogram=color:histogram"),
            "tasks": (f"csv:{index}?name=tiles",),
            "out": tmp_path / "bench",
            "workers": 0,
        }
        return BenchmarkConfig.parse(values | changes, "benchmark")

    return make
