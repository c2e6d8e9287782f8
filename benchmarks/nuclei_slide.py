"""How much of the time of a slide's prediction the network is at work.

A slide is drawn (`--side` px, all tissue), its nuclei are found by HoVer-Net with weights as drawn, but for the last
step: maps are those of the drawn nuclei, so that post-processing has the nuclei of real tissue to find, and the network
computes what it always does. One JSON line a claim; `ratio` is the network's share over the goal of 0.9.

    python benchmarks/nuclei_slide.py --side 1500 --encoder random:resnet50 --width 1.0
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import tifffile
import torch

from eosin.encoders import load_encoder
from eosin.nuclei.config import NetworkConfig, PostprocessConfig
from eosin.nuclei.model import Maps, build_network, window_maps
from eosin.nuclei.predict import PredictConfig, predict
from eosin.nuclei.targets import targets
from eosin.synthetic import render_tile

_GOAL = 0.9
_TILE = 512


class Timed:
    """A network of given size whose answers are those for the drawn nuclei, which the pixels carry as colors."""

    name, fingerprint, mpp, classes = "timed", "0", 0.25, ("left", "right")
    postprocess = PostprocessConfig(scale=1.0)

    def __init__(self, config: NetworkConfig, device: torch.device, pace: float | None) -> None:
        self.device = torch.device("cuda") if pace else device
        network = build_network(config, load_encoder(config.encoder), len(self.classes))
        self.window, self.output = network.window, network.kept
        self._network = network.to(device).to(memory_format=torch.channels_last)
        self._pace = pace
        self.precision: Literal["bf16", "fp32"] = "bf16" if self.device.type == "cuda" else "fp32"

    def maps(self, images: torch.Tensor) -> Maps:
        """Compute what is thrown away, and read the answer off the colors."""
        if self._pace is None:
            window_maps(self._network, images, self.precision)
            return self._read_off(images)
        started = time.perf_counter()
        answer = self._read_off(images)
        time.sleep(max(0.0, len(images) / self._pace - (time.perf_counter() - started)))
        return answer

    def _read_off(self, images: torch.Tensor) -> Maps:
        margin = (self.window - self.output) // 2
        inner = images[:, :, margin:-margin, margin:-margin].numpy().astype(np.float32)
        left = inner[:, 1:2] < 127
        kinds = np.concatenate([inner[:, :1] < 100, left, ~left], axis=1).astype(np.float32)
        return Maps(inner[:, 0] / 255, inner[:, 1:] / 127 - 1, kinds)


def drawn(path: Path, side: int) -> int:
    """Write a slide whose colors are the maps of drawn nuclei; return how many nuclei it has."""
    kinds = ("tumor", "glands", "lymphocytes", "stroma")
    tiles = []
    for index, kind in enumerate(kinds):
        labels = render_tile(kind, size=_TILE, mpp=0.25, slide=index).instances
        wanted = targets(labels)
        maps = [wanted.np * 200.0, *((wanted.hv + 1) * 127).clip(0, 254)]
        tiles.append((np.stack(maps, axis=-1).astype(np.uint8), int(labels.max())))
    count = -(-side // _TILE)
    canvas = np.zeros((count * _TILE, count * _TILE, 3), dtype=np.uint8)
    nuclei = 0
    for row in range(count):
        for column in range(count):
            pixels, inside = tiles[(row + column) % len(tiles)]
            canvas[row * _TILE : (row + 1) * _TILE, column * _TILE : (column + 1) * _TILE] = pixels
            nuclei += inside
    tifffile.imwrite(
        path,
        canvas[:side, :side],
        tile=(256, 256),
        compression="zlib",
        photometric="rgb",
        resolution=(4e4, 4e4),
        resolutionunit="CENTIMETER",
    )
    return nuclei


def main() -> None:
    """Draw, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--encoder", default="random:resnet50")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--no-overlays", action="store_true")
    parser.add_argument("--pace", type=float, default=None)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = Timed(NetworkConfig(encoder=options.encoder, width=options.width), device, options.pace)
    # The first pass on a GPU chooses kernels.
    first = (options.batch_size or 16) if device.type == "cuda" and options.pace is None else 1
    model.maps(torch.zeros((first, 3, model.window, model.window), dtype=torch.uint8))
    with tempfile.TemporaryDirectory() as folder:
        slide = Path(folder) / "slide.tif"
        drawn(slide, options.side)
        config = PredictConfig(whole=True, overlays=not options.no_overlays, batch_size=options.batch_size)
        started, used = time.perf_counter(), time.process_time()
        done = predict(model, [slide], Path(folder) / "out", config, progress=False)
        seconds, used = time.perf_counter() - started, time.process_time() - used
    share = done.network_seconds / seconds
    network = f"{options.encoder} x {options.width:g}, {device.type}"
    if options.pace is not None:
        network = f"a pause for {options.pace:g} windows/s, {len(os.sched_getaffinity(0))} cores"
    line = {
        "claim": f"network's share of a slide's prediction, {network}",
        "ours": round(share, 4),
        "peer": _GOAL,
        "peer_name": "goal",
        "unit": "share",
        "ratio": round(share / _GOAL, 3),
        "n": done.windows,
        "nuclei": done.nuclei,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used, 2),
        "megapixels_per_second": round(options.side**2 / 1e6 / seconds, 4),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
