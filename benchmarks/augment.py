"""All views of a batch of tiles, from decoded pixels to normalised float32 batches, against the field's pipelines.

Ours takes a uint8 batch, lightly PIL images, torchvision v2 uint8 tensors one by one, kornia a float batch on [0, 1]:
each what it is made for, and each its own published transform. MoCo v2 has 2 views of 224 px, DINO 2 of 224 and 8 of
96; the preset `pathology` adds RandStainNA from a Gaussian mixture and vertical flips to MoCo's crops and is held
against lightly's MoCo v2, which has neither.

One JSON line a claim; medians of interleaved repeats: CPU time of the process on one thread, or wall time of a GPU
where there is one. With a GPU the lines compare our views on it with lightly's on one CPU thread; `--peak` adds the
share of the memory bandwidth: bytes read once and views written once, by the measured time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import kornia.augmentation as kornia_augmentation
import numpy as np
import torch
from lightly.transforms import DINOTransform, MoCoV2Transform
from PIL import Image
from timing import interleaved, report
from torch import Tensor, nn
from torch.utils.data import default_collate
from torchvision.transforms import v2

from eosin.augment import AugmentConfig, Views
from eosin.core.draws import Draws
from eosin.pretrain.presets import preset_views

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Batch = Callable[[], list[Tensor]]


def tiles(count: int, side: int) -> Tensor:
    """Smooth noise in the colors of stained tissue: uint8 [count, 3, side, side]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 2, side // 8, side // 8, generator=generator)
    dye = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    stains = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    return (255 * torch.exp(-torch.einsum("bshw,sc->bchw", dye, stains))).to(torch.uint8)


def ours(config: AugmentConfig, images: Tensor) -> Batch:
    views, positions = Views(config), np.arange(len(images))
    steps = iter(range(1_000_000))
    return lambda: views(images, Draws(0, next(steps), positions))


def lightly(transform: Callable[[Image.Image], list[Tensor]], images: Tensor) -> Batch:
    pictures = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images.cpu()]
    return lambda: default_collate([transform(picture) for picture in pictures])


def torchvision_moco(size: int, images: Tensor) -> Batch:
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    return lambda: [torch.stack([transform(image) for image in images]) for _ in range(2)]


def kornia_moco(size: int, images: Tensor) -> Batch:
    transform = nn.Sequential(
        kornia_augmentation.RandomResizedCrop((size, size), scale=(0.2, 1.0)),
        kornia_augmentation.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        kornia_augmentation.RandomGrayscale(p=0.2),
        kornia_augmentation.RandomGaussianBlur((13, 13), (0.1, 2.0), p=0.5),
        kornia_augmentation.RandomHorizontalFlip(),
        kornia_augmentation.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )
    return lambda: [transform(images.float() / 255) for _ in range(2)]


def compare(claim: str, config: AugmentConfig, images: Tensor, name: str, peer: Batch, repeats: int) -> None:
    """Time ours and one peer in turns, and print the line."""
    device, count = images.device, len(images)
    own = ours(config, images)
    shapes = [[tuple(view.shape) for view in batch()] for batch in (own, peer)]
    if sorted(shapes[0]) != sorted(shapes[1]):
        raise SystemExit(f"the two give different shapes: {shapes}")
    ours_s, peer_s = interleaved(own, peer, repeats, device)
    where = "one CPU thread" if device.type == "cpu" else torch.cuda.get_device_name(device)
    n = f"{repeats} repeats of a batch of {count} on {where}"
    report(claim, count / ours_s, count / peer_s, name, "tiles/s", peer_s / ours_s, n)


def bandwidth(claim: str, config: AugmentConfig, images: Tensor, peak: float, repeats: int) -> None:
    """Print which share of the memory bandwidth the views reach."""
    own = ours(config, images)
    written = sum(view.numel() * view.element_size() for view in own())
    seconds, _ = interleaved(own, own, repeats, images.device)
    reached = (images.numel() + written) / seconds / 1e9
    n = f"{repeats} repeats of a batch of {len(images)} on {torch.cuda.get_device_name(images.device)}"
    report(claim, reached, peak, "peak memory bandwidth", "GB/s", reached / peak, n)


def beside_lightly(
    moco: AugmentConfig,
    dino: AugmentConfig,
    stained: AugmentConfig,
    stained_dino: AugmentConfig,
    images: Tensor,
    head: str,
    repeats: int,
) -> None:
    """Time views against lightly's, which are made on one CPU thread."""
    lightly_moco = lightly(MoCoV2Transform(input_size=224), images)
    compare(f"MoCo v2, 2 x 224 px {head}", moco, images, "lightly MoCoV2Transform (PIL)", lightly_moco, repeats)
    lightly_dino = lightly(DINOTransform(n_local_views=8), images)
    compare(f"DINO, 2 x 224 + 8 x 96 px {head}", dino, images, "lightly DINOTransform (PIL)", lightly_dino, repeats)
    claim = f"preset pathology with RandStainNA from a mixture, 2 x 224 px {head}"
    compare(claim, stained, images, "lightly MoCoV2Transform (PIL), which stains nothing", lightly_moco, repeats)
    claim = f"preset pathology, DINO, 2 x 224 + 8 x 96 px {head}"
    compare(claim, stained_dino, images, "lightly DINOTransform (PIL), which stains nothing", lightly_dino, repeats)
    small = preset_views("mocov2", "natural", size=96)
    quarter = tiles(64, 128)
    claim = "MoCo v2, 2 x 96 px views from decoded 128 px tiles"
    compare(claim, small, quarter, "lightly MoCoV2Transform (PIL)", lightly(MoCoV2Transform(96), quarter), repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--gpu-only", action="store_true", help="leave out peers on a CPU thread: minutes a turn")
    parser.add_argument("--peak", type=float, help="memory bandwidth of the GPU in GB/s, such as 4800 for an H200")
    arguments = parser.parse_args()
    repeats = arguments.repeats
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = tiles(16 if device.type == "cpu" else 512, 512).to(device)
    moco, dino = preset_views("mocov2", "natural"), preset_views("dino", "natural")
    stained, stained_dino = preset_views("mocov2", "pathology"), preset_views("dino", "pathology")
    head = "views from decoded 512 px tiles"
    if not arguments.gpu_only:
        beside_lightly(moco, dino, stained, stained_dino, images, head, repeats)
    claim = f"MoCo v2, 2 x 224 px {head}"
    if device.type == "cpu":
        few = images[:16]
        compare(claim, moco, few, "torchvision v2 on uint8 tensors", torchvision_moco(224, few), repeats)
    compare(claim, moco, images, "kornia", kornia_moco(224, images), repeats)
    if device.type == "cuda" and arguments.peak:
        for name, config in (("MoCo v2, 2 x 224 px", moco), ("DINO 2 + 8 with stain", stained_dino)):
            bandwidth(f"{name} {head}, share of the bandwidth", config, images, arguments.peak, repeats)


if __name__ == "__main__":
    main()
