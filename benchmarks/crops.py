"""Random resized crops from a batch as the loader hands it on (channels-last) against one in planes, on one CPU thread.

One JSON line a claim: 224 px from 512 px uint8, medians of interleaved repeats in CPU time; that both give the same
bits is checked first.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from timing import interleaved, report

from eosin.augment.geometry import resized_crop
from eosin.synthetic import render_tile

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    count = 16
    drawn = [render_tile("tumor", size=512, slide=0, index=index).image for index in range(count)]
    planes = torch.from_numpy(np.stack(drawn))
    pixels = planes.contiguous(memory_format=torch.channels_last)
    generator = np.random.default_rng(0)
    sides = generator.integers(200, 480, (count, 2))
    corners = generator.integers(0, 512 - sides + 1)
    boxes = np.concatenate([corners, sides], axis=1)
    for interpolation in ("bilinear", "bicubic"):
        if not torch.equal(
            resized_crop(pixels, boxes, 224, interpolation), resized_crop(planes, boxes, 224, interpolation)
        ):
            raise SystemExit("the two differ")
        ours_s, peer_s = interleaved(
            lambda how=interpolation: resized_crop(pixels, boxes, 224, how),
            lambda how=interpolation: resized_crop(planes, boxes, 224, how),
            arguments.repeats,
            CPU,
        )
        n = f"{arguments.repeats} repeats of a batch of {count}"
        claim = f"224 px crop of a 512 px tile, {interpolation}"
        report(claim, ours_s / count * 1e3, peer_s / count * 1e3, "planes", "ms of CPU time", peer_s / ours_s, n)


if __name__ == "__main__":
    main()
