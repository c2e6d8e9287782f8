"""Stain operations on one CPU thread, 224 px: eosin's batches against the published per-image laws.

One JSON line a claim; medians of interleaved turns over the same synthetic tiles, in CPU time of the process. Each
starts from 8-bit pixels as it takes them: ours a uint8 [B, 3, H, W] batch, which it converts to floats, the peers one
[H, W, 3] array after the other (torchstain's tensors: [3, H, W]). Each ends with what it hands on: ours one float32
batch in 0..1, OpenCV and torchstain 8-bit images, scikit-image floats. That the outputs are equal, up to the peer's
rounding to 8 bits, is checked before anything is timed.

* RandStainNA in LAB, its transform for given targets, as its authors write it with OpenCV and NumPy: whole image, no
  mask, uint8 LAB in and out. With our mask of the background, which they do not have, on a line of its own.
* HED jitter: scikit-image's rgb2hed on float32 (its faster form), an affine change, hed2rgb. Its stains are clamped at
  0, ours are not: compared where the clamp does nothing.
* Macenko's normalisation: torchstain, without its extra H and E images; NumPy and PyTorch backends.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import torch
from skimage.color import hed2rgb, rgb2hed
from timing import interleaved, report
from torch import Tensor
from torchstain.numpy.normalizers.macenko import NumpyMacenkoNormalizer
from torchstain.torch.normalizers.macenko import TorchMacenkoNormalizer

from eosin.augment.chunks import chunks
from eosin.augment.hed import HED_FROM_RGB, HEDJitter, HEDJitterConfig
from eosin.augment.macenko import Macenko, MacenkoConfig
from eosin.augment.operations import Parameters
from eosin.augment.randstainna import restain
from eosin.core.draws import Draws
from eosin.synthetic import render_tile

CPU = torch.device("cpu")
SIDE = 224
UNIT = "tiles/s of CPU time"
Array = npt.NDArray[np.uint8]


def tiles(count: int) -> Tensor:
    """Stained tissue of several slides: uint8 [count, 3, 224, 224]."""
    kinds = ("tumor", "stroma", "glands", "lymphocytes")
    drawn = [render_tile(kinds[i % 4], size=SIDE, slide=i // 4, index=i).image for i in range(count)]
    return torch.from_numpy(np.stack(drawn))


def by_chunks(images: Tensor, change: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """Convert to floats and change in place, a few tiles at a time, as eosin's views do."""
    changed = torch.empty(images.shape, dtype=torch.float32)
    for rows in chunks(images):
        changed[rows] = change(images[rows].to(torch.float32).mul_(1 / 255), rows)
    return changed


def rows_of(parameters: Parameters, rows: slice) -> Parameters:
    return {name: values[rows] for name, values in parameters.items()}


def check(claim: str, ours: Tensor, peer: Tensor, levels: float) -> None:
    """Stop unless two batches in 0..255 agree up to a number of 8-bit levels."""
    difference = float((ours - peer).abs().max())
    if not difference <= levels:
        raise SystemExit(f"{claim}: the two differ by {difference:.2f} of 255 levels, more than {levels}")


def compare(
    claim: str, ours: Callable[[], object], peers: dict[str, Callable[[], object]], count: int, repeats: int
) -> None:
    for name, peer in peers.items():
        ours_s, peer_s = interleaved(ours, peer, repeats, CPU)
        n = f"{repeats} repeats of a batch of {count}"
        report(claim, count / ours_s, count / peer_s, name, UNIT, peer_s / ours_s, n)


def published_restain(image: Array, target: npt.NDArray[np.float64]) -> Array:
    """Reinhard's transfer of whole-image LAB statistics, in the 8-bit LAB of OpenCV, step by step as published.

    Statistics of one channel after the other, the affine change in float64, cut down to 8 bits.
    """
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    channels = [lab[:, :, place] for place in range(3)]
    mean = np.array([np.mean(channel) for channel in channels])
    deviation = np.clip(np.array([np.std(channel) for channel in channels]), 1e-4, 255)
    changed = (lab - mean) * (target[3:] / deviation) + target[:3]
    return np.asarray(cv2.cvtColor(np.clip(changed, 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB))


def randstainna(images: Tensor, arrays: list[Array], repeats: int) -> None:
    """Targets near the published averages of NCT-CRC."""
    uniform = np.random.default_rng(0).uniform(-1, 1, (len(images), 6))
    targets = np.array([158.0, 151.2, 116.8, 36.9, 8.1, 6.1]) + uniform * np.array([20, 5, 4, 6, 1, 1])
    goal = torch.from_numpy(targets).float()

    def ours(keep_background: bool = False) -> Tensor:
        return by_chunks(
            images, lambda part, rows: restain(part, goal[rows], space="lab", keep_background=keep_background)
        )

    def peer() -> list[Array]:
        return [published_restain(image, target) for image, target in zip(arrays, targets, strict=True)]

    claim = "RandStainNA LAB, one CPU thread"
    expected = torch.from_numpy(np.stack(peer())).permute(0, 3, 1, 2).float()
    difference = (ours() * 255 - expected).abs()
    # One level of 8-bit LAB is up to a few of RGB; what remains is the published law's rounding.
    if difference.mean() > 2 or difference.quantile(0.999) > 10:
        raise SystemExit(f"{claim}: the two differ by {float(difference.mean()):.2f} of 255 levels on average")
    name = "OpenCV and NumPy, the published law"
    compare(claim, ours, {name: peer}, len(images), repeats)
    compare(
        f"{claim}, background kept", lambda: ours(True), {f"{name}, background stained": peer}, len(images), repeats
    )


def hed(images: Tensor, arrays: list[Array], repeats: int) -> None:
    scale = math.log(1e6)
    uniform = np.random.default_rng(1).uniform(-1, 1, (2, len(images), 3))
    alpha, beta = 1 + 0.05 * uniform[0], 0.25 * uniform[1]
    jitter = HEDJitter(HEDJitterConfig(probability=1.0))
    parameters = {"on": np.ones(len(images), dtype=bool), "alpha": alpha, "beta": beta}

    def ours() -> Tensor:
        return by_chunks(images, lambda part, rows: jitter.apply(part, rows_of(parameters, rows)))

    def peer() -> list[npt.NDArray[np.float32]]:
        jittered = []
        for image, factor, shift in zip(arrays, alpha.astype(np.float32), beta.astype(np.float32), strict=True):
            stains = rgb2hed(image.astype(np.float32) / 255)
            jittered.append(hed2rgb(stains * factor + shift / scale))
        return jittered

    claim = "HED jitter, one CPU thread"
    stains = -np.log(np.maximum(np.stack(arrays) / 255.0, 1 / 255)) @ HED_FROM_RGB
    free = torch.from_numpy((stains >= 0).all(axis=3))[:, None]
    if free.float().mean() < 0.2:
        raise SystemExit(f"{claim}: scikit-image clamps nearly all pixels, nothing is compared")
    expected = torch.from_numpy(np.stack(peer())).permute(0, 3, 1, 2)
    check(claim, ours() * 255 * free, expected * 255 * free, 0.02)
    compare(claim, ours, {"scikit-image rgb2hed, hed2rgb (float32)": peer}, len(images), repeats)


def macenko(images: Tensor, arrays: list[Array], repeats: int) -> None:
    numpy, pytorch = NumpyMacenkoNormalizer(), TorchMacenkoNormalizer()
    tensors = list(images)
    peers: dict[str, Callable[[], object]] = {
        "torchstain, PyTorch": lambda: [pytorch.normalize(image, stains=False)[0] for image in tensors],
        "torchstain, NumPy": lambda: [numpy.normalize(image, stains=False)[0] for image in arrays],
    }
    claim = "Macenko normalisation, one CPU thread"
    normalisation = Macenko(MacenkoConfig(probability=1.0, alpha=0.0, beta=0.0, normalize=True))
    parameters = normalisation.sample(Draws(0, 0, range(len(images))), images)
    expected = np.stack([numpy.normalize(image, stains=False)[0] for image in arrays])

    def ours() -> Tensor:
        return by_chunks(images, lambda part, rows: normalisation.apply(part, rows_of(parameters, rows)))

    # torchstain rounds down.
    check(claim, (ours() * 255).floor(), torch.from_numpy(expected).permute(0, 3, 1, 2), 1)
    compare(claim, ours, peers, len(images), repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--count", type=int, default=16, help="tiles in a batch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = tiles(arguments.count)
    arrays = list(np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy()))
    for operation in (randstainna, hed, macenko):
        operation(images, arrays, arguments.repeats)


if __name__ == "__main__":
    main()
