"""The collapse watch, proven: collapses made on purpose are flagged within 200 steps, and healthy runs are not.

The loop here is a run's without its files: the same method, watch and intervals, on 256 tiles of 12 px held in memory and
a network of two convolutions, so that a step takes two milliseconds.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from eosin.core.draws import Draws
from eosin.encoders import Encoder
from eosin.encoders.base import Card
from eosin.methods import METHODS, MoCo
from eosin.pretrain.watch import CollapseWatch, effective_rank, pair_signals

STEPS, BATCH, LOG, LOOK, GRACE = 200, 32, 5, 10, 100

FIELDS = {
    "mocov2": {"dim": 16, "queue_size": 128, "momentum": 0.9, "norm_group": 16},
    "swav": {"dim": 16, "prototypes": 24, "queue_start_samples": 0, "freeze_samples": 10 * BATCH},
    "barlowtwins": {"dim": 256, "hidden": 64},
    "dino": {
        "prototypes": 64,
        "hidden": 64,
        "bottleneck": 16,
        "head_norm": True,
        "momentum": 0.9,
        "drop_path": 0.0,
        "teacher_temperature": 0.04,
        "warmup_teacher_temperature": 0.04,
        "freeze_last_layer_samples": 10 * BATCH,
    },
}


class Small(Encoder):
    """Two convolutions and an average: the least that tells textures apart."""

    def __init__(self) -> None:
        card = Card(spec="small", architecture="small", size=8, mean=(0, 0, 0), std=(1, 1, 1), licence="none", width=32)
        layers = []
        for inputs, outputs in ((3, 16), (16, 32)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        super().__init__(card, nn.Sequential(*layers))

    def forward(self, images):
        return self.backbone(images).mean(dim=(2, 3))


def textures(generator):
    coarse = torch.randn(256, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, size=12, mode="bicubic")


def crops(tiles, side, generator):
    """Cut a square at a random place of each tile, in other colors and with noise."""
    count = len(tiles)
    top, left = torch.randint(0, 12 - side + 1, (2, count), generator=generator)
    span = torch.arange(side)
    rows, columns = (top[:, None] + span)[:, None, :, None], (left[:, None] + span)[:, None, None, :]
    cut = tiles[torch.arange(count)[:, None, None, None], torch.arange(3)[None, :, None, None], rows, columns]
    gain = 1 + 0.2 * torch.randn(count, 3, 1, 1, generator=generator)
    return cut * gain + 0.1 * torch.randn(cut.shape, generator=generator)


def train(name, seed=0, lr=1e-3, **fields):
    """Train for 200 steps; return (step, message) of every flag."""
    method_class = METHODS[name]
    config = method_class.Config.parse(FIELDS[name] | {"name": name} | fields, "method")
    generator = torch.Generator().manual_seed(seed)
    tiles = textures(generator)
    torch.manual_seed(seed)
    method = method_class(config, lambda **_: Small(), seed)
    method.prepare(BATCH, STEPS)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=lr, foreach=True)
    watch = CollapseWatch(method.chance_loss, BATCH, GRACE)
    sums, flags = {}, []
    for step in range(1, STEPS + 1):
        chosen = torch.randperm(len(tiles), generator=generator)[:BATCH]
        counts = [1 if count is None else count for count in method.views.values()]
        sides = [6 if view == "local" else 8 for view, n in zip(method.views, counts, strict=True) for _ in range(n)]
        views = [crops(tiles[chosen], side, generator) for side in sides]
        output = method.train()(views, Draws(seed, step, chosen.numpy()))
        output.loss.backward()
        method.before_step()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step()
        for key, value in ({"loss": output.loss} | output.scalars | pair_signals(*output.pairs)).items():
            sums[key] = sums.get(key, 0.0) + value.item() / LOG
        if step % LOG == 0:
            record = sums | {"step": step}
            if step % LOOK == 0:
                with torch.no_grad():
                    features = method.encoder.eval()(tiles[:64, :, 2:10, 2:10])
                record["watch/effective_rank"] = float(effective_rank(features))
                record["watch/projection_rank"] = float(effective_rank(output.pairs[0]))
            flags += [(step, message) for message in watch.judge(record)]
            sums = {}
    return flags


@pytest.mark.parametrize("name", FIELDS)
def test_ten_healthy_seeds_raise_no_flag(name):
    for seed in range(10):
        assert train(name, seed) == []


def assert_flagged(flags, words):
    assert any(words in message for _, message in flags), flags
    assert all(step <= STEPS for step, _ in flags)


def test_a_frozen_queue(monkeypatch):
    """Negatives that never change are all got away from by one move."""

    def forget(self):
        self._new_keys = []
        self.steps += 1

    monkeypatch.setattr(MoCo, "after_step", forget)
    assert_flagged(train("mocov2"), "projections of different tiles are nearly equal")


def test_a_key_encoder_that_sees_nothing(monkeypatch):
    encode = MoCo._encode_keys

    def constant(self, view):
        keys = torch.zeros_like(encode(self, view))
        keys[:, 0] = 1
        self._new_keys[-1] = keys
        return keys

    monkeypatch.setattr(MoCo, "_encode_keys", constant)
    assert_flagged(train("mocov2"), "nothing is learned: the loss 4.860 stays at chance (4.860)")


def test_a_learning_rate_far_too_high():
    assert_flagged(train("mocov2", lr=1.0), "projections of different tiles are nearly equal")


def test_assignments_that_are_not_balanced():
    assert_flagged(train("swav", sinkhorn_iterations=0), "all tiles fall on 1.0 prototypes")


def test_no_weight_on_redundancy():
    assert_flagged(train("barlowtwins", redundancy=0.0), "copies of each other")


def test_no_centring():
    sharp = {"teacher_temperature": 0.01, "warmup_teacher_temperature": 0.01}
    assert_flagged(train("dino", center_momentum=1.0, **sharp), "all tiles fall on 1.0 prototypes")


def test_no_sharpening():
    same = {"teacher_temperature": 0.1, "warmup_teacher_temperature": 0.1}
    assert_flagged(train("dino", **same), "all tiles get the same target, spread over 64 prototypes")
