"""How `eosin data describe` tells blurred and copied tiles, and how fast it is: one JSON line a claim.

On real tissue when EOSIN_TEST_DATA names the folder that holds it (the sets of docs/describe.md), else on synthetic
tiles. Blurred: tiles as they are and blurred by Gaussians of known sigma (px at the tiles' own size), saved again as
JPEG of quality 85. Look alike: how many tiles keep a fingerprint within the distance after small changes. Speed: tiles
a second of CPU time in one process, and the seconds for the columns of a million tiles.
"""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from eosin.data import Tiles, open_tiles
from eosin.data.tiles import FileBytes, Names
from eosin.describe.columns import read_columns
from eosin.describe.fingerprints import DISTANCE, fingerprint, near_groups
from eosin.describe.measure import measure
from eosin.describe.run import BLANK
from eosin.describe.sample import choose_rows
from eosin.describe.sharpness import BLURRED, detail_factor, sharpness
from eosin.synthetic import write_tiles

SIGMAS = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
SHOWN = 240


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def gray(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).convert("L"))


def sets(folder: str | None, made: Path) -> Iterator[tuple[str, Tiles]]:
    if folder is None:
        yield "synthetic", open_tiles(write_tiles(made / "synthetic", tiles=200, slides=40, size=224))
        return
    root = Path(folder)
    yield "oral", open_tiles(root / "oral" / "index.csv")
    yield "crc", open_tiles(root / "crc")
    yield "osteosarcoma", open_tiles(root / "osteosarcoma")
    kather = open_tiles(root / "regions")
    yield "kather2016", kather.select(np.array(["kather2016" in name for name in kather.names]))


def stained(tiles: Tiles) -> Iterator[np.ndarray]:
    """Yield the pixels, uint8 [h, w, 3], of up to 240 tiles that are not blank; of large ones the central 256 px."""
    measured = measure(tiles, np.arange(len(tiles)), 0)
    rows = measured.rows[measured.column("tissue") >= BLANK]
    for row in rows[np.unique(np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(int))]:
        pixels = tiles.image(int(row)).transpose(1, 2, 0)
        top, left = (max(0, (side - 256) // 2) for side in pixels.shape[:2])
        yield np.ascontiguousarray(pixels[top : top + 256, left : left + 256])


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    smooth = gaussian_filter(pixels.astype(np.float32), (sigma, sigma, 0)) if sigma else pixels
    return jpeg(np.clip(np.rint(smooth), 0, 255).astype(np.uint8), 85) if sigma else pixels


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "jpeg 30": lambda pixels: jpeg(pixels, 30),
    "three quarters of the size": lambda pixels: np.asarray(
        Image.fromarray(pixels).resize((pixels.shape[1] * 3 // 4, pixels.shape[0] * 3 // 4), Image.Resampling.BICUBIC)
    ),
    "10 % brighter": lambda pixels: np.clip(pixels * 1.1, 0, 255).astype(np.uint8),
    "blur of 1 px": lambda pixels: gaussian_filter(pixels, (1, 1, 0)),
    "shift by 1 px": lambda pixels: np.roll(pixels, 1, axis=1),
    "shift by 4 px": lambda pixels: np.roll(pixels, 4, axis=1),
}


def judge(name: str, tiles: Tiles) -> None:
    pictures = list(stained(tiles))
    shares = {}
    for sigma in SIGMAS:
        grays = [gray(blurred(picture, sigma)) for picture in pictures]
        values = [sharpness(image, detail_factor(math.nan, min(image.shape))) for image in grays]
        shares[f"{sigma:g}"] = round(float(np.mean(np.array(values) < BLURRED)), 3)
    print(json.dumps({"claim": "blurred", "set": name, "tiles": len(pictures), "share by sigma": shares}))
    prints = np.array([fingerprint(gray(picture)) for picture in pictures], dtype=np.uint64)
    kept = {}
    for change, apply in CHANGES.items():
        others = [fingerprint(gray(apply(picture))) for picture in pictures]
        bits = [(int(a) ^ b).bit_count() for a, b in zip(prints, others, strict=True)]
        kept[change] = round(float(np.mean(np.array(bits) <= DISTANCE)), 3)
    groups = len(prints) - len(np.unique(near_groups(prints)))
    print(json.dumps({"claim": "look alike", "set": name, "kept": kept, "too many among the tiles": groups}))


def speed(name: str, tiles: Tiles) -> None:
    torch.set_num_threads(1)
    rows = np.arange(min(len(tiles), 500))
    start = time.process_time()
    measured = measure(tiles, rows, 0)
    rate = len(measured) / (time.process_time() - start)
    side = int(np.median(measured.column("width")))
    print(json.dumps({"claim": "speed", "set": name, "side": side, "tiles a second of CPU": round(rate)}))


def columns(count: int = 1_000_000) -> None:
    slide = np.array([f"slide {number // 50}" for number in range(count)], dtype=object)
    label = np.array([f"label {number % 9}" for number in range(count)], dtype=object)
    names = Names([f"{number}.jpg" for number in range(count)])
    tiles = Tiles("folder:none", names, FileBytes(Path(), names), label=label, slide=slide, patient=slide, split=label)
    start = time.process_time()
    chosen = choose_rows(read_columns(tiles), 2000, 0)
    seconds = time.process_time() - start
    prints = np.random.default_rng(0).integers(0, 1 << 63, count, dtype=np.uint64)
    start = time.process_time()
    near_groups(prints)
    hashed = time.process_time() - start
    line = {"claim": "a million tiles", "columns and choice of tiles, s": round(seconds, 2), "chosen": len(chosen)}
    print(json.dumps(line | {"fingerprints grouped, s": round(hashed, 1)}))


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        for name, tiles in sets(os.environ.get("EOSIN_TEST_DATA"), Path(made)):
            judge(name, tiles)
            speed(name, tiles)
        columns()


if __name__ == "__main__":
    main()
