"""MoCo v2's two views of a tile on one CPU thread: eosin's batches against lightly's PIL pipeline.

One JSON line a claim; medians of interleaved repeats, in CPU time of the process, so that a busy machine matters less.
Both start from decoded pixels, in the form each tool takes (a uint8 batch, PIL images), and end with float32 batches.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from lightly.transforms import MoCoV2Transform
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from eosin.augment import AugmentConfig, ViewConfig, Views
from eosin.core.draws import Draws


def tiles(count: int, side: int) -> Tensor:
    """Smooth colored noise: uint8 [count, 3, side, side]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, side // 8, side // 8, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
    return (fine.clamp(0, 1) * 255).to(torch.uint8)


def interleaved(ours: Callable[[int], object], peer: Callable[[int], object], repeats: int) -> tuple[float, float]:
    """Median CPU seconds of each, taking turns."""
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for step in range(repeats + 1):
        for name, function in (("ours", ours), ("peer", peer)):
            start = time.process_time()
            function(step)
            if step > 0:
                times[name].append(time.process_time() - start)
    return median(times["ours"]), median(times["peer"])


def compare(source: int, size: int, count: int, repeats: int) -> None:
    images = tiles(count, source)
    pictures = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images]
    views = Views(AugmentConfig(views={"global": ViewConfig(size=size)}))
    transform = MoCoV2Transform(input_size=size)
    positions = np.arange(count)

    def ours(step: int) -> list[Tensor]:
        return views(images, Draws(0, step, positions))

    def peer(step: int) -> list[Tensor]:
        return default_collate([transform(picture) for picture in pictures])

    shapes = [[tuple(view.shape) for view in function(0)] for function in (ours, peer)]
    if shapes[0] != shapes[1]:
        raise SystemExit(f"the two give different shapes: {shapes}")
    ours_s, peer_s = interleaved(ours, peer, repeats)
    record = {
        "claim": f"MoCo v2, 2 views of {size} px from decoded {source} px tiles, one CPU thread",
        "ours": round(count / ours_s, 1),
        "peer": round(count / peer_s, 1),
        "peer_name": "lightly MoCoV2Transform (PIL)",
        "unit": "tiles/s of CPU time",
        "ratio": round(peer_s / ours_s, 2),
        "n": f"{repeats} repeats of a batch of {count}",
    }
    print(json.dumps(record), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    compare(128, 96, 128, arguments.repeats)
    compare(512, 224, 32, arguments.repeats)


if __name__ == "__main__":
    main()
