"""Slides to tiles, and reading the store: eosin against tiatoolbox, OpenSlide and the JPEG library alone.

One JSON line a claim, medians of interleaved repeats.

* A small real slide (CMU-1-Small-Region.svs below EOSIN_TEST_DATA, else a synthetic one of its size): open it, find its
  tissue, hold all 224 px tiles of level 0 in memory. CPU time of the process. tiatoolbox, whose many requirements do
  not go with ours, runs in an environment of its own: --tiatoolbox PYTHON.
* A large synthetic pyramid to a store with two processes, against the pure work in two processes: decode the source
  tiles under each tile, encode the tile. Wall time, without Python's imports; and each process's largest memory.
* Slides on the fly: training views against OpenSlide's regions. CPU time of one process.
* The store: random reads without decoding; decoding tiles against the JPEG library alone; the training loader against
  that. CPU time of one process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import imagecodecs
import numpy as np
import openslide
import tifffile
from skimage.filters import threshold_otsu
from timing import report

from eosin.core.memory import keep_freed_memory
from eosin.data import Quarantine, TrainingLoader, open_tiles
from eosin.slides import TissueConfig, coverage, find_tissue, lay_grid, open_slide
from eosin.synthetic import write_slide

SIZE = 224
BATCH = 64
Timed = Callable[[], tuple[float, int]]


def by_eosin(path: Path) -> int:
    with open_slide(path) as slide:
        mpp = slide.require_mpp()
        size = (slide.width, slide.height)
        thumbnail = slide.thumbnail(8.0)
        shape = thumbnail.shape
        at = (mpp[0] * size[0] / shape[1], mpp[1] * size[1] / shape[0])
        tissue = find_tissue(thumbnail, at, TissueConfig())
        grid = lay_grid(size, mpp, mpp=mpp[0], size=SIZE, stride=SIZE)
        assert coverage(tissue.mask, grid, size).max() > 0
        tiles = [slide.read(int(x), int(y), mpp[0], SIZE, SIZE) for x, y in zip(grid.x, grid.y, strict=True)]
    return len(tiles)


def by_openslide(path: Path) -> int:
    """The loop of a tutorial: a thumbnail, Otsu's threshold on its gray values, one region a tile."""
    with openslide.OpenSlide(str(path)) as slide:
        width, height = slide.dimensions
        thumbnail = np.asarray(slide.get_thumbnail((width // 16, height // 16)).convert("L"))
        assert (thumbnail < threshold_otsu(thumbnail)).any()
        tiles = [
            np.asarray(slide.read_region((x, y), 0, (SIZE, SIZE)).convert("RGB"))
            for y in range(0, height - SIZE + 1, SIZE)
            for x in range(0, width - SIZE + 1, SIZE)
        ]
    return len(tiles)


def here(function: Callable[[], int]) -> Timed:
    """Time a function in CPU time of this process."""

    def timed() -> tuple[float, int]:
        started = time.process_time()
        count = function()
        return time.process_time() - started, count

    return timed


@contextlib.contextmanager
def tiatoolbox(python: str, path: Path):
    """Run tiatoolbox in its own Python; yields its version and what times one turn of it."""
    script = Path(__file__).parent / "peers/tiatoolbox_slides.py"
    with subprocess.Popen([python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        version = ""
        while not version:
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"{python}: tiatoolbox does not start")
            with contextlib.suppress(ValueError, KeyError, TypeError):
                version = json.loads(line)["version"]

        def timed() -> tuple[float, int]:
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            return answer["seconds"], answer["tiles"]

        yield version, timed
        process.stdin.close()


def turns(functions: dict[str, Timed], repeats: int) -> tuple[dict[str, float], dict[str, int]]:
    """Median seconds and the count of each, in turns; the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    counts = {}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            taken, counts[name] = function()
            if turn:
                seconds[name].append(taken)
    return {name: median(values) for name, values in seconds.items()}, counts


def small_slide(path: Path, repeats: int, python: str | None) -> None:
    with contextlib.ExitStack() as stack:
        functions = {"ours": here(lambda: by_eosin(path)), "OpenSlide loop": here(lambda: by_openslide(path))}
        if python:
            version, timed = stack.enter_context(tiatoolbox(python, path))
            functions[f"tiatoolbox {version}"] = timed
        seconds, counts = turns(functions, repeats)
    for name in list(functions)[1:]:
        claim = f"{path.name}: open, tissue, all {counts['ours']} tiles of {SIZE} px to memory"
        n = f"{repeats} repeats, {name} cuts {counts[name]} tiles"
        report(
            claim,
            seconds["ours"] * 1e3,
            seconds[name] * 1e3,
            name,
            "ms of CPU time",
            seconds[name] / seconds["ours"],
            n,
        )


def pure_work(path: Path, tiles: list[tuple[int, int, int]], ready: Any, begin: Any) -> None:
    """Decode the source tiles that each 512 px tile covers, and encode it."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        tables, across = page.jpegtables, -(-page.imagewidth // page.tilewidth)
        side, offsets, lengths = page.tilewidth, page.dataoffsets, page.databytecounts
        descriptor = os.open(path, os.O_RDONLY)
        ready.put(True)
        begin.wait()
        for x, y, size in tiles:
            pixels = np.empty((size, size, 3), np.uint8)
            for row in range(0, size, side):
                for column in range(0, size, side):
                    index = (y + row) // side * across + (x + column) // side
                    data = os.pread(descriptor, lengths[index], offsets[index])
                    pixels[row : row + side, column : column + side] = imagecodecs.jpeg8_decode(data, tables=tables)
            imagecodecs.jpeg8_encode(pixels, level=90, subsampling="444")


def pure_rate(path: Path, store: Path, processes: int) -> float:
    """Tiles a second of wall time of the pure work on the store's own tiles."""
    opened = open_tiles(store)
    tiles = [(int(x), int(y), 512) for x, y in zip(opened.x, opened.y, strict=True)]
    context = multiprocessing.get_context("spawn")
    ready, begin = context.Queue(), context.Event()
    parts = [tiles[number::processes] for number in range(processes)]
    # Neighbors stay together, as each source tile lies under one tile only.
    workers = [context.Process(target=pure_work, args=(path, part, ready, begin)) for part in parts]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.get()
    started = time.perf_counter()
    begin.set()
    for worker in workers:
        worker.join()
    return len(tiles) / (time.perf_counter() - started)


RUN = """
import sys, time
from pathlib import Path
from eosin.tiling import TilingConfig, tile_slides
from eosin.tiling.pools import LocalPool

if __name__ == "__main__":
    pool = LocalPool(1)
    pool.submit("started", time.sleep, 0)
    pool.next()
    pool.close()
    started = time.perf_counter()
    config = TilingConfig(mpp=(0.5,), size=512)
    tile_slides([Path(sys.argv[1])], Path(sys.argv[2]), config, processes=int(sys.argv[3]))
    print(time.perf_counter() - started)
"""


def eosin_tile(path: Path, out: Path, processes: int) -> tuple[float, int, float]:
    """Tile a slide in a Python whose imports are done, as those of the pure work are.

    Returns:
        Seconds of wall time, tiles, and the largest memory of a process in GB.
    """
    ran = subprocess.run(
        [sys.executable, "-c", RUN, str(path), str(out), str(processes)], check=True, capture_output=True, text=True
    )
    seconds = float(ran.stdout.split()[-1])
    return seconds, len(open_tiles(out)), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6


def large_slide(folder: Path, scratch: Path, side: int, repeats: int) -> Path:
    """Tile a pyramid with two processes; returns the last store."""
    path = folder / f"pyramid-{side}.tiff"
    if not path.exists():
        write_slide(path, width=side, height=side, mpp=0.5, levels=(1, 4, 16), seed=1, tissue=0.6)
    rates: dict[str, list[float]] = {"ours": [], "pure": []}
    memory = 0.0
    out = scratch
    for turn in range(repeats):
        out = scratch / f"store-{turn}"
        seconds, tiles, memory = eosin_tile(path, out, 2)
        rates["ours"].append(tiles / seconds)
        rates["pure"].append(pure_rate(path, out, 2))
    ours, pure = median(rates["ours"]), median(rates["pure"])
    claim = f"{side:,} × {side:,} px JPEG pyramid to a store of 512 px tiles, 2 processes: tissue, tiles, store"
    n = f"{repeats} repeats, {tiles:,} tiles, at most {memory:.2f} GB a process"
    report(claim, ours, pure, "decoding and encoding alone", "tiles/s", ours / pure, n)
    return out


def store_reading(store: Path, repeats: int) -> None:
    # As `eosin pretrain` does on a CPU; both sides make batches of new memory.
    keep_freed_memory()
    tiles = open_tiles(store)
    order = np.random.default_rng(0).permutation(len(tiles)).tolist()
    count = 20_000

    def reads() -> int:
        for number in range(count):
            tiles.read(order[number % len(order)])
        return count

    seconds, _ = turns({"ours": here(reads)}, repeats)
    rate = count / seconds["ours"]
    report(
        "random reads of a store's tiles, not decoded",
        rate,
        50_000,
        "the goal",
        "tiles/s",
        rate / 50_000,
        f"{repeats} repeats",
    )
    some = [tiles.read(row) for row in order[:2048]]

    def decode() -> int:
        """The bytes at hand, each image into its place in a batch."""
        for start in range(0, len(some), BATCH):
            batch = np.empty((BATCH, 512, 512, 3), np.uint8)
            for place, data in zip(batch, some[start : start + BATCH], strict=True):
                imagecodecs.jpeg8_decode(data, out=place)
        return len(some)

    def images() -> int:
        for row in order[: len(some)]:
            tiles.image(row)
        return len(some)

    def loader() -> int:
        steps = len(some) // BATCH
        part = tiles.select(np.sort(np.array(order[: len(some)])))
        loading = TrainingLoader(part, size=512, batch_size=BATCH, seed=0, steps=steps, quarantine=Quarantine(None))
        return sum(len(batch.images) for batch in loading)

    functions = {"JPEG library": here(decode), "images": here(images), "loader": here(loader)}
    seconds, counts = turns(functions, repeats)
    alone = counts["JPEG library"] / seconds["JPEG library"]
    for name, claim in (("images", "tiles read and decoded"), ("loader", "training loader, 512 px tiles as they are")):
        rate = counts[name] / seconds[name]
        report(
            claim,
            rate,
            alone,
            "imagecodecs, from memory into batches",
            "tiles/s of CPU time",
            rate / alone,
            f"{repeats} repeats",
        )


def on_the_fly(folder: Path, side: int, repeats: int) -> None:
    """Training views read from a slide at level 0, against OpenSlide's read_region at as many random places."""
    path = folder / f"fly-{side}.svs"
    if not path.exists():
        write_slide(path, width=side, height=side, mpp=0.25, levels=(1, 4), seed=2, tissue=0.6, kind="svs")
    os.environ["EOSIN_HOME"] = str(folder / "home")
    tiles = open_tiles(f"slides:{path}?mpp=0.25&size=256")
    steps = 8

    def views() -> int:
        loading = TrainingLoader(tiles, size=256, batch_size=BATCH, seed=0, steps=steps, quarantine=Quarantine(None))
        return sum(len(batch.images) for batch in loading)

    def regions() -> int:
        generator = np.random.default_rng(0)
        with openslide.OpenSlide(str(path)) as slide:
            for _ in range(steps * BATCH):
                place = generator.integers(0, side - 256, 2).tolist()
                np.asarray(slide.read_region(tuple(place), 0, (256, 256)).convert("RGB"))
        return steps * BATCH

    seconds, counts = turns({"ours": here(views), "peer": here(regions)}, repeats)
    ours, peer = counts["ours"] / seconds["ours"], counts["peer"] / seconds["peer"]
    claim = "training views of 256 px read from a slide, at random places of its tissue"
    name = "OpenSlide read_region at random places"
    report(claim, ours, peer, name, "views/s of CPU time", ours / peer, f"{repeats} repeats of {counts['ours']} views")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--side", type=int, default=40_000, help="of the large pyramid, px")
    parser.add_argument("--large-repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the pyramid is kept between runs")
    parser.add_argument("--tiatoolbox", help="the Python of an environment that has tiatoolbox")
    parser.add_argument("--only", nargs="*", choices=["small", "large", "fly"], default=["small", "large", "fly"])
    arguments = parser.parse_args()
    real = os.environ.get("EOSIN_TEST_DATA")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        if "small" in arguments.only:
            path = Path(real or "") / "slides/CMU-1-Small-Region.svs"
            if not real or not path.exists():
                path = write_slide(Path(scratch) / "small.svs", width=2220, height=2967, levels=(1,), kind="svs")
            small_slide(path, arguments.repeats, arguments.tiatoolbox)
        if "large" in arguments.only:
            store_reading(
                large_slide(folder, Path(scratch), arguments.side, arguments.large_repeats), arguments.repeats
            )
        if "fly" in arguments.only:
            on_the_fly(folder, 8192, arguments.repeats)


if __name__ == "__main__":
    main()
