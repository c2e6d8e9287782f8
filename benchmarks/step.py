"""A whole training step from decoded tiles, against the same method written as lightly's published examples are.

Augmentation, forward, backward and optimiser, in one process: ours with the pieces of `eosin pretrain` in the order of
its loop, from a uint8 batch; lightly's with its transforms on PIL images, its heads, losses and `update_momentum`, one
forward pass per view, as its examples/pytorch have it. Both train the same timm network with heads of the same widths.
Ours follows the authors where the examples do less: bicubic crops, stochastic depth, clipping, weight decay, batch norm
in groups, and the loop's collapse watch; all of that is in its time.

One JSON line a claim: both in float32, both in bf16 mixed precision, and each at its defaults, which for ours is bf16
and for lightly's examples float32. Each of the four runs in a process of its own, since `eosin pretrain` sets how its
process keeps memory; they take their steps in turns. Medians, on one CPU thread in CPU time of the process, or on a GPU
where there is one.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
from abc import abstractmethod
from collections.abc import Callable
from multiprocessing.connection import Connection
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from lightly.loss import BarlowTwinsLoss, DINOLoss, NTXentLoss, SwaVLoss
from lightly.models.modules import (
    BarlowTwinsProjectionHead,
    DINOProjectionHead,
    MoCoProjectionHead,
    SwaVProjectionHead,
    SwaVPrototypes,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import DINOTransform, MoCoV2Transform, SwaVTransform
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from PIL import Image
from timing import now, report
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils.data import default_collate

from eosin.augment import Views
from eosin.core.draws import Draws
from eosin.core.memory import keep_freed_memory
from eosin.pretrain.build import build_method
from eosin.pretrain.config import PretrainConfig
from eosin.pretrain.watch import pair_similarities, spread, view_retrieval
from eosin.training.optimizers import build_optimizer, clip_gradients, set_hyperparameters

SIDE = 256
"""Side of the decoded tiles."""

REPEATS = 5

STEPS = 10_000
"""Length of the run whose first steps are timed."""

Pictures = list[Image.Image]


def tiles(count: int, side: int) -> Tensor:
    """Smooth colored noise: uint8 [count, 3, side, side]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, side // 8, side // 8, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
    return (fine.clamp(0, 1) * 255).to(torch.uint8)


class Ours:
    """The loop's step, without files, log lines and several processes."""

    def __init__(self, fields: dict[str, Any], batch: int, device: torch.device) -> None:
        values = {"batch_size": batch, "samples": batch * STEPS, **fields}
        self.config = PretrainConfig.parse(values, "benchmark").resolved(1_000_000)[0]
        self.device, self.step = device, 0
        keep_freed_memory()
        self.method = build_method(self.config).to(device).to(memory_format=torch.channels_last).train()
        self.trained = [(name, value) for name, value in self.method.named_parameters() if value.requires_grad]
        self.optimizer = build_optimizer(self.config.optimizer, self.trained)
        self.views = Views(self.config.augment)
        self.positions = np.arange(batch)

    def __call__(self, images: Tensor) -> None:
        """Take one step."""
        config = self.config
        set_hyperparameters(self.optimizer, config.optimizer, self.step, STEPS, config.batch_size)
        draws = Draws(config.seed, self.step, self.positions)
        views = self.views(images.to(self.device, non_blocking=True), draws)
        views = [view.contiguous(memory_format=torch.channels_last) for view in views]
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
            output = self.method(views, draws.within("network"))
        output.loss.backward()
        watched = (*pair_similarities(*output.pairs), spread(output.pairs[0]), view_retrieval(*output.pairs))
        torch.stack([value.detach().double() for value in (output.loss, *watched, *output.scalars.values())])
        if config.optimizer.clip is not None:
            clip_gradients([value for _, value in self.trained], config.optimizer.clip)
        self.method.before_step()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step()
        self.step += 1


class Example(nn.Module):
    """A method as lightly's examples write it."""

    optimizer: Optimizer

    def __init__(self, transform: Callable[[Image.Image], list[Tensor]], precision: str, device: torch.device) -> None:
        super().__init__()
        self.transform, self.device, self.mixed = transform, device, precision == "bf16"

    @abstractmethod
    def loss(self, views: list[Tensor]) -> Tensor:
        """Pass the views through the networks."""

    def follow(self) -> None:
        """Move a momentum encoder, where there is one."""

    def step(self, pictures: Pictures) -> None:
        """Take one step."""
        views = [view.to(self.device) for view in default_collate([self.transform(picture) for picture in pictures])]
        self.follow()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.mixed):
            loss = self.loss(views)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def network(architecture: str, size: int) -> nn.Module:
    options = {"img_size": size, "dynamic_img_size": True} if architecture.startswith("vit") else {}
    return timm.create_model(architecture, num_classes=0, **options)


class MoCoExample(Example):
    """MoCo v2: a query and a key encoder, negatives in the loss's memory bank."""

    def __init__(self, architecture: str, size: int, queue: int, precision: str, device: torch.device) -> None:
        super().__init__(MoCoV2Transform(input_size=size), precision, device)
        self.backbone = network(architecture, size)
        width = self.backbone.num_features
        self.head = MoCoProjectionHead(width, width, 128)
        self.slow_backbone, self.slow_head = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
        deactivate_requires_grad(self.slow_backbone)
        deactivate_requires_grad(self.slow_head)
        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(queue, 128))
        self.to(device)
        self.optimizer = SGD(self.parameters(), lr=0.06)

    def follow(self) -> None:
        """See `Example.follow`."""
        update_momentum(self.backbone, self.slow_backbone, m=0.99)
        update_momentum(self.head, self.slow_head, m=0.99)

    def loss(self, views: list[Tensor]) -> Tensor:
        """See `Example.loss`."""
        query = self.head(self.backbone(views[0]))
        key = self.slow_head(self.slow_backbone(views[1])).detach()
        return self.criterion(query.float(), key.float())


class DINOExample(Example):
    """DINO: a student and a teacher with heads of the authors' widths."""

    def __init__(
        self, architecture: str, sizes: tuple[int, int, int], prototypes: int, precision: str, device: torch.device
    ) -> None:
        size, local, count = sizes
        transform = DINOTransform(global_crop_size=size, local_crop_size=local, n_local_views=count)
        super().__init__(transform, precision, device)
        self.backbone = network(architecture, size)
        width = self.backbone.num_features
        self.head = DINOProjectionHead(width, 2048, 256, prototypes)
        self.slow_backbone, self.slow_head = (
            copy.deepcopy(self.backbone),
            DINOProjectionHead(width, 2048, 256, prototypes),
        )
        deactivate_requires_grad(self.slow_backbone)
        deactivate_requires_grad(self.slow_head)
        self.criterion = DINOLoss(prototypes, teacher_temp=0.04)
        self.to(device)
        self.optimizer = Adam(self.parameters(), lr=0.001)

    def follow(self) -> None:
        """See `Example.follow`."""
        update_momentum(self.backbone, self.slow_backbone, m=0.99)
        update_momentum(self.head, self.slow_head, m=0.99)

    def loss(self, views: list[Tensor]) -> Tensor:
        """See `Example.loss`."""
        teacher = [self.slow_head(self.slow_backbone(view)).float() for view in views[:2]]
        student = [self.head(self.backbone(view)).float() for view in views]
        return self.criterion(teacher, student, epoch=0)


class SwAVExample(Example):
    """SwAV: scores of all crops against normalised prototypes."""

    def __init__(
        self, architecture: str, sizes: tuple[int, int, int], prototypes: int, precision: str, device: torch.device
    ) -> None:
        size, local, count = sizes
        super().__init__(SwaVTransform(crop_sizes=(size, local), crop_counts=(2, count)), precision, device)
        self.backbone = network(architecture, size)
        width = self.backbone.num_features
        self.head, self.prototypes = SwaVProjectionHead(width, width, 128), SwaVPrototypes(128, prototypes)
        self.criterion = SwaVLoss()
        self.to(device)
        self.optimizer = Adam(self.parameters(), lr=0.001)

    def loss(self, views: list[Tensor]) -> Tensor:
        """See `Example.loss`."""
        self.prototypes.normalize()
        vectors = [nn.functional.normalize(self.head(self.backbone(view)), dim=1) for view in views]
        scores = [self.prototypes(vector).float() for vector in vectors]
        return self.criterion(scores[:2], scores[2:])


class BarlowTwinsExample(Example):
    """Barlow Twins: one network, two views."""

    def __init__(self, architecture: str, size: int, dim: int, precision: str, device: torch.device) -> None:
        views = BYOLTransform(BYOLView1Transform(input_size=size), BYOLView2Transform(input_size=size))
        super().__init__(views, precision, device)
        self.backbone = network(architecture, size)
        self.head = BarlowTwinsProjectionHead(self.backbone.num_features, dim, dim)
        self.criterion = BarlowTwinsLoss()
        self.to(device)
        self.optimizer = SGD(self.parameters(), lr=0.06)

    def loss(self, views: list[Tensor]) -> Tensor:
        """See `Example.loss`."""
        return self.criterion(self.head(self.backbone(views[0])).float(), self.head(self.backbone(views[1])).float())


class Case(NamedTuple):
    """One comparison.

    Attributes:
        claim: Method, network and views.
        fields: Our configuration.
        example: Builds lightly's, given precision and device.
    """

    claim: str
    fields: dict[str, Any]
    example: Callable[[str, torch.device], Example]


def mocov2() -> Case:
    size, queue, architecture = 96, 4096, "resnet10t"
    fields = {
        "method": {"name": "mocov2", "queue_size": queue},
        "encoder": {"architecture": architecture, "size": size},
        "augment": {"views": {"global": {"size": size}}},
    }
    return Case(
        f"MoCo v2, {architecture}, K {queue}, 2 x {size} px",
        fields,
        lambda precision, device: MoCoExample(architecture, size, queue, precision, device),
    )


def dino() -> Case:
    size, local, count, prototypes, architecture = 224, 96, 4, 65536, "vit_small_patch16_224"
    fields = {
        "method": {"name": "dino", "prototypes": prototypes, "freeze_last_layer_samples": 0},
        "encoder": {"architecture": architecture, "size": size},
        "augment": {"views": {"local": {"size": local, "count": count}}},
    }
    return Case(
        f"DINO, {architecture}, K {prototypes}, 2 x {size} + {count} x {local} px",
        fields,
        lambda precision, device: DINOExample(architecture, (size, local, count), prototypes, precision, device),
    )


def swav() -> Case:
    size, local, count, prototypes, architecture = 96, 48, 6, 3000, "resnet10t"
    fields = {
        "method": {"name": "swav", "prototypes": prototypes, "freeze_samples": 0},
        "encoder": {"architecture": architecture, "size": size},
        "augment": {"views": {"global": {"size": size}, "local": {"size": local, "count": count}}},
    }
    return Case(
        f"SwAV, {architecture}, K {prototypes}, 2 x {size} + {count} x {local} px",
        fields,
        lambda precision, device: SwAVExample(architecture, (size, local, count), prototypes, precision, device),
    )


def barlowtwins() -> Case:
    size, dim, architecture = 96, 2048, "resnet10t"
    fields = {
        "method": {"name": "barlowtwins", "dim": dim, "hidden": dim},
        "encoder": {"architecture": architecture, "size": size},
        "augment": {"views": {"first": {"size": size}, "second": {"size": size}}},
    }
    return Case(
        f"Barlow Twins, {architecture}, d {dim}, 2 x {size} px",
        fields,
        lambda precision, device: BarlowTwinsExample(architecture, size, dim, precision, device),
    )


CASES = {"mocov2": (mocov2, 64), "dino": (dino, 8), "swav": (swav, 32), "barlowtwins": (barlowtwins, 64)}
"""Each comparison, and its batch on a CPU."""


def device_here() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def serve(connection: Connection, name: str, who: str, precision: str, batch: int) -> None:
    """Take a step whenever asked, and answer with its seconds."""
    torch.set_num_threads(1)
    device = device_here()
    case = CASES[name][0]()
    images = tiles(batch, SIDE)
    pictures = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images]
    ours = Ours({**case.fields, "precision": precision}, batch, device) if who == "ours" else None
    peer = None if ours else case.example(precision, device)
    while connection.recv():
        start = now(device)
        if ours:
            ours(images)
        else:
            peer.step(pictures)
        connection.send(now(device) - start)


def compare(name: str, batch: int, repeats: int) -> None:
    """Time four runs in turns, and report ours against lightly's at equal precision and at each one's default."""
    context = multiprocessing.get_context("spawn")
    runs: dict[tuple[str, str], Connection] = {}
    for precision in ("fp32", "bf16"):
        for who in ("ours", "peer"):
            runs[who, precision], end = context.Pipe()
            context.Process(target=serve, args=(end, name, who, precision, batch), daemon=True).start()
    seconds: dict[tuple[str, str], list[float]] = {run: [] for run in runs}
    for turn in range(repeats + 1):
        for run, connection in runs.items():
            connection.send(True)
            taken = connection.recv()
            if turn:
                seconds[run].append(taken)
    for connection in runs.values():
        connection.send(False)
    device = device_here()
    where = "one CPU thread, CPU time" if device.type == "cpu" else torch.cuda.get_device_name(device)
    for how, own, other in (
        ("both fp32", "fp32", "fp32"),
        ("both bf16", "bf16", "bf16"),
        ("each at its default: ours bf16, lightly fp32", "bf16", "fp32"),
    ):
        ours_s, peer_s = median(seconds["ours", own]), median(seconds["peer", other])
        n = f"{repeats} repeats of a batch of {batch} tiles of {SIDE} px, {where}"
        claim = f"training step, {CASES[name][0]().claim}, {how}"
        report(claim, batch / ours_s, batch / peer_s, "lightly's example", "images/s", peer_s / ours_s, n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--batch", type=int, help="tiles a step (default: 8 to 64 on a CPU, 256 on a GPU)")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    arguments = parser.parse_args()
    for name in arguments.only:
        batch = CASES[name][1] if device_here().type == "cpu" else 256
        compare(name, arguments.batch or batch, arguments.repeats)


if __name__ == "__main__":
    main()
