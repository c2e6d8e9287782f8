"""Reading, decoding and resizing JPEG tiles into batches: eosin's TrainingLoader against torchvision's ImageFolder.

Same files, batch size, worker processes and result (uint8 batches of the short side resized and the center cut). One
JSON line a claim, medians of interleaved repeats: in one process tiles a second of CPU time, so that a busy machine
matters less; with workers tiles a second of wall time after the first batch. On real tissue when EOSIN_TEST_DATA names
the folder that holds it, else on smooth noise.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

from eosin.data import Quarantine, TrainingLoader, default_workers, open_tiles


def make_images(folder: Path, count: int, side: int) -> Path:
    """Write smooth colored noise as JPEG files of the quality and size of usual tiles."""
    (folder / "class").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 256, (side // 6, side // 6, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        image.save(folder / "class" / f"{number:05d}.jpg", quality=82)
    return folder


def ours(folder: Path, size: int, batch: int, passes: int, workers: int) -> Iterator[int]:
    tiles = open_tiles(folder)
    steps = passes * (len(tiles) // batch)
    loader = TrainingLoader(
        tiles, size=size, batch_size=batch, seed=0, steps=steps, workers=workers, quarantine=Quarantine(None)
    )
    for part in loader:
        yield len(part.images)


def peer(folder: Path, size: int, batch: int, passes: int, workers: int) -> Iterator[int]:
    transform = Compose([Resize(size), CenterCrop(size), PILToTensor()])
    loader = DataLoader(
        ImageFolder(str(folder), transform),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    for _ in range(passes):
        for images, _ in loader:
            yield len(images)


def rate(batches: Iterator[int], clock: Callable[[], float]) -> float:
    """Tiles a second after the first batch."""
    next(batches)
    start = clock()
    count = sum(batches)
    return count / (clock() - start)


def compare(folder: Path, size: int, batch: int, passes: int, workers: int, repeats: int) -> None:
    clock = time.perf_counter if workers else time.process_time
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    # The first turn warms the file cache and is not counted.
    for turn in range(repeats + 1):
        for name, function in (("ours", ours), ("peer", peer)):
            value = rate(function(folder, size, batch, passes, workers), clock)
            if turn:
                rates[name].append(value)
    tiles = open_tiles(folder)
    middle = {name: median(values) for name, values in rates.items()}
    record = {
        "claim": f"JPEG tiles of {tiles.image(0).shape[1]} px to batches of {size} px, "
        + (f"{workers} workers" if workers else "one process"),
        "ours": round(middle["ours"], 1),
        "peer": round(middle["peer"], 1),
        "peer_name": "torchvision ImageFolder, torch DataLoader",
        "unit": "tiles/s" if workers else "tiles/s of CPU time",
        "ratio": round(middle["ours"] / middle["peer"], 2),
        "n": f"{repeats} repeats of {passes} passes over {len(tiles)} tiles, batch {batch}",
    }
    print(json.dumps(record), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=max(1, default_workers()))
    arguments = parser.parse_args()
    real = os.environ.get("EOSIN_TEST_DATA")
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(real) / "oral" if real else make_images(Path(scratch) / "small", 1000, 224)
        large = Path(real) / "osteosarcoma" if real else make_images(Path(scratch) / "large", 24, 1024)
        for workers in (0, arguments.workers):
            compare(small, 128, 64, 1 + workers, workers, arguments.repeats)
            compare(small, 224, 64, 1 + workers, workers, arguments.repeats)
            compare(large, 224, 8, 5 * (1 + workers), workers, arguments.repeats)


if __name__ == "__main__":
    main()
