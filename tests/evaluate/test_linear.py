"""Linear evaluation on crops: heads trained at once equal heads trained alone; views survive a kill."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eosin.core.errors import EosinError
from eosin.evaluate.linear import Linear, _norm, _passes, _steps, train_heads
from eosin.evaluate.pixels import CropLaw, DrawnViews, pixels_of
from eosin.evaluate.protocol import Fit
from eosin.evaluate.view_features import SHARD, ViewFeatures

SETTINGS = Linear(epochs=4, least_steps=0, batch=10, views=3)


def drawn(n=47, classes=4, width=6, views=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    features = rng.normal(size=(n, views, width)) * 3 + 2 + np.eye(width)[labels][:, None]
    fit = Fit(labels, np.arange(n), np.array([0]), np.array([0]), seed=7)
    return features.astype(np.float32), labels, fit


def alone(steps, width, classes, rate, decay):
    """One head by PyTorch's own layers and optimizer."""
    head = torch.nn.Linear(width, classes)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)
    for step in steps:
        optimizer.param_groups[0]["lr"] = rate * step.factor
        optimizer.zero_grad()
        F.cross_entropy(head(torch.from_numpy(step.features)), torch.from_numpy(step.labels)).backward()
        optimizer.step()
    return head.weight.detach().numpy(), head.bias.detach().numpy()


@pytest.mark.parametrize(("n", "classes"), [(47, 4), (12, 2), (9, 9), (3, 2)])
def test_heads_trained_at_once_equal_heads_trained_alone(n, classes):
    views, labels, fit = drawn(n, classes, width=10)
    mean, scale = _norm(views, np.arange(n))
    steps = list(_steps(replace(SETTINGS, least_steps=60), views, np.arange(n), labels, fit, mean, scale))
    assert len(steps) >= 60
    grid = [(rate, decay) for rate in (1e-3, 0.05, 0.5) for decay in (0.0, 5e-4, 0.1)]
    weights, biases = train_heads(
        iter(steps), width=10, classes=classes, rates=[r for r, _ in grid], decays=[d for _, d in grid]
    )
    for head, (rate, decay) in enumerate(grid):
        weight, bias = alone(steps, 10, classes, rate, decay)
        np.testing.assert_allclose(weights[head], weight, rtol=1e-3, atol=2e-5)
        np.testing.assert_allclose(biases[head], bias, rtol=1e-3, atol=2e-5)


def test_passes_show_each_image_once_and_its_views_in_turn():
    views, labels, fit = drawn()
    mean, scale = np.zeros(6), np.ones(6)
    steps = list(_steps(SETTINGS, views, np.arange(47), labels, fit, mean, scale))
    assert [len(step.labels) for step in steps] == [10, 10, 9, 9, 9] * 4
    shown = []
    for epoch in range(4):
        rows = []
        for step in steps[5 * epoch : 5 * epoch + 5]:
            for features, label in zip(step.features, step.labels, strict=True):
                image, view = np.argwhere((views == features).all(axis=2))[0]
                assert labels[image] == label
                rows.append((image, view))
        assert sorted(image for image, _ in rows) == list(range(47))
        shown.append(dict(rows))
        assert [image for image, _ in rows] != sorted(image for image, _ in rows)
    for image in range(47):
        seen = [epoch[image] for epoch in shown]
        assert sorted(seen[:3]) == [0, 1, 2]
        assert seen[3] == seen[0]
    # The first view is drawn, so that a batch is not of one view.
    assert len(set(shown[0].values())) == 3


def test_the_schedule_is_vissls():
    views, labels, fit = drawn(20)
    steps = list(_steps(Linear(least_steps=0, batch=10), views, np.arange(20), labels, fit, np.zeros(6), np.ones(6)))
    factors = [step.factor for step in steps]
    assert len(factors) == 2 * 28
    np.testing.assert_allclose(factors, np.repeat([1, 0.1, 0.01, 0.001], [16, 16, 16, 8]))
    assert _passes(Linear(), 100_000) == 28
    assert _passes(Linear(), 700) == 334  # three steps a pass, 1,000 at least


def test_the_norm_is_that_of_all_training_views():
    views, _, _ = drawn(1500, classes=3, width=3)
    views[:, :, 2] = 0.1
    rows = np.arange(3, 1400)
    mean, scale = _norm(views, rows)
    plain = views[rows].reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(mean, plain.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(scale[:2], 1 / plain.std(axis=0)[:2], rtol=1e-9)
    assert scale[2] == 0


class Counted:
    """Counts the forward passes of an encoder, and stops them when told to."""

    def __init__(self, encoder, monkeypatch, most=10**9):
        self.images = 0
        inner = encoder.forward

        def forward(images):
            if self.images + len(images) > most:
                raise KeyboardInterrupt
            self.images += len(images)
            return inner(images)

        monkeypatch.setattr(encoder, "forward", forward)


def features_of(task, work, rows, views=2):
    law = CropLaw(32, scale=(0.08, 1.0))
    source = ViewFeatures(pixels_of(task.material(), "linear"), law, views, precision="fp32", workers=0, work=work)
    return source.of(rows)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr("eosin.evaluate.view_features.SHARD", 8)


def test_features_of_views_are_the_encoders(pixel_task):
    task = pixel_task()
    rows = np.array([1, 5, 9, 30])
    found = features_of(task, None, rows)
    assert found.shape == (4, 2, 96)
    pixels = DrawnViews(task.data.tiles, CropLaw(32, scale=(0.08, 1.0)), 0, "linear")((rows, [0, 1]))
    with torch.inference_mode():
        for view in range(2):
            plain = task.encoder(task.encoder.normalize(pixels[view])).numpy()
            np.testing.assert_allclose(found[:, view], plain, rtol=1e-4, atol=1e-5)


def test_a_network_that_fails_on_views_is_one_line(pixel_task):
    task = pixel_task()

    def fail(module, images):
        raise AssertionError("no such size\nmore")

    task.encoder.backbone.register_forward_pre_hook(fail)
    with pytest.raises(EosinError, match=r"the network fails on images of 32 px \(no such size\);"):
        features_of(task, None, np.arange(4))


def test_views_go_on_after_a_kill_and_are_computed_once(pixel_task, tmp_path, monkeypatch):
    task = pixel_task()
    rows = np.arange(30)
    whole = features_of(task, None, rows)
    with monkeypatch.context() as patch:
        Counted(task.encoder, patch, most=20)
        with pytest.raises(KeyboardInterrupt):
            features_of(task, tmp_path / "work", rows)
    with monkeypatch.context() as patch:
        counted = Counted(task.encoder, patch)
        np.testing.assert_array_equal(features_of(task, tmp_path / "work", rows), whole)
        assert counted.images == 2 * 22  # one shard of eight rows was saved
        # Neither the same rows nor some of them are computed again.
        np.testing.assert_array_equal(features_of(task, tmp_path / "work", rows), whole)
        np.testing.assert_array_equal(features_of(task, tmp_path / "work", rows[5:20:3]), whole[5:20:3])
        assert counted.images == 2 * 22
    assert SHARD == 64


def test_a_damaged_shard_is_computed_again(pixel_task, tmp_path, monkeypatch, capsys):
    task = pixel_task()
    rows = np.arange(20)
    whole = features_of(task, tmp_path / "work", rows)
    shards = sorted((tmp_path / "work").glob("views-*/*.safetensors"))
    assert len(shards) == 3
    content = bytearray(shards[1].read_bytes())
    content[-5] ^= 1
    shards[1].write_bytes(content)
    shards[2].write_bytes(content[:50])
    counted = Counted(task.encoder, monkeypatch)
    np.testing.assert_array_equal(features_of(task, tmp_path / "work", rows), whole)
    assert counted.images == 2 * 12
    assert capsys.readouterr().err.count("damaged; computing these views again") == 2


def test_large_features_are_held_in_a_file(pixel_task, tmp_path, monkeypatch):
    task = pixel_task()
    rows = np.arange(20)
    whole = features_of(task, None, rows)
    monkeypatch.setattr("eosin.evaluate.view_features._IN_MEMORY", 100)
    held = features_of(task, tmp_path / "work", rows)
    assert isinstance(held, np.memmap)
    np.testing.assert_array_equal(held, whole)


def test_heads_that_diverge_lose(pixel_task):
    task = pixel_task()
    quick = Linear(rates=(1e-2, 1e38), decays=(0.0,), epochs=3, least_steps=20, views=1)
    (answer,) = quick.answers(task.material(), [task.fit()])
    assert answer.result.chosen["rate"] == 1e-2
    assert answer.result.chosen["grid"][1]["validation_balanced_accuracy"] is None
    (answer,) = replace(quick, rates=(1e38,)).answers(task.material(), [task.fit()])
    assert isinstance(answer.result, EosinError)
    assert "every head diverged; try smaller rates" in str(answer.result)


def test_views_are_kept_apart_by_all_that_makes_them(pixel_task, tmp_path):
    pixels = pixels_of(pixel_task().material(), "linear")

    def key(law, views=2, precision="fp32"):
        return ViewFeatures(pixels, law, views, precision=precision, workers=0, work=tmp_path).key

    plain = CropLaw(32)
    keys = [key(plain), key(plain, views=3), key(plain, precision="bf16")]
    keys += [
        key(CropLaw(16)),
        key(CropLaw(32, "bicubic")),
        key(CropLaw(32, scale=(0.1, 1.0))),
        key(CropLaw(32, flip=0)),
    ]
    assert len(set(keys)) == len(keys)
