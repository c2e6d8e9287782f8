"""Training views are pure functions of (seed, epoch, row); center views are those of embeddings."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from eosin.augment.geometry import crop_boxes
from eosin.core.draws import Draws
from eosin.core.errors import EosinError
from eosin.evaluate.pixels import CropLaw, DrawnViews, center_views, drawn_views, exact_convolutions

ROWS = np.array([3, 20, 7, 11])


def views(task, seed=0, scope="a", **law):
    return DrawnViews(task.data.tiles, CropLaw(32, **law), seed, scope)


def test_a_view_depends_on_seed_epoch_row_and_scope_alone(pixel_task):
    task = pixel_task()
    whole = views(task)((ROWS, [2, 5]))
    assert whole.shape == (2, 4, 3, 32, 32)
    assert whole.dtype == torch.uint8
    for place, row in enumerate(ROWS):
        assert torch.equal(views(task)((np.array([row]), [5]))[0, 0], whole[1, place])
    assert torch.equal(views(task)((ROWS[::-1].copy(), [5, 2])), whole.flip(0, 1))
    for other in (views(task, seed=1), views(task, scope="b")):
        assert not any(torch.equal(a, b) for a, b in zip(other((ROWS, [2]))[0], whole[0], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(whole[0], whole[1], strict=True))
    keys = [(ROWS[:2], [2, 5]), (ROWS[2:], [2, 5])]
    assert torch.equal(torch.cat(list(drawn_views(views(task), keys, 2)), dim=1), whole)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_view_is_the_plain_crop_resize_and_flip(pixel_task, interpolation):
    task = pixel_task()
    found = views(task, seed=4, interpolation=interpolation)((ROWS, [9]))[0]
    draws = Draws(4, 9, ROWS, "a")
    boxes = crop_boxes(draws.uniform("crop", 22), 40, 40, (0.2, 1.0), (3 / 4, 4 / 3))
    flips = draws.uniform("flip", 2) < 0.5
    assert flips.any()
    for place, row in enumerate(ROWS):
        square = torch.from_numpy(task.data.tiles.image(row)[:, :, 3:43])
        top, left, height, width = boxes[place]
        crop = square[None, :, top : top + height, left : left + width]
        plain = F.interpolate(crop, (32, 32), mode=interpolation, antialias=True)[0]
        if flips[place, 0]:
            plain = plain.flip(-1)
        if flips[place, 1]:
            plain = plain.flip(-2)
        assert torch.equal(found[place], plain)


def test_shares_of_crops_and_flips_are_those_asked_for(pixel_task):
    task = pixel_task()
    still = views(task, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)((ROWS, [0, 1]))
    assert torch.equal(still[0], still[1])
    turned = views(task, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0)((ROWS, [0]))
    assert torch.equal(turned[0], still[0].flip(-1, -2))


def test_a_huge_image_is_decoded_no_larger_than_its_crops_need(pixel_task, monkeypatch):
    task = pixel_task()
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 255, (30, 40, 3)).astype(np.uint8))
    file = io.BytesIO()
    small.resize((1600, 1200), Image.Resampling.BICUBIC).save(file, "jpeg", quality=95)
    monkeypatch.setattr(type(task.data.tiles), "read", lambda self, row: file.getvalue())
    law = CropLaw(32)
    view = DrawnViews(task.data.tiles, law, 0, "a")
    assert view._square(0).shape[-1] == 72  # 32 / √0.2
    found = view((np.arange(8), [0]))[0].float()
    exact = DrawnViews(task.data.tiles, replace(law, scale=(1e-9, 1.0)), 0, "a")
    assert exact._square(0).shape[-1] == 1200
    uniforms = Draws(0, 0, np.arange(8), "a").uniform("crop", 22)
    boxes = crop_boxes(uniforms, 72, 72, law.scale, law.ratio) * 1200 // 72
    plain = DrawnViews(task.data.tiles, law, 0, "a")
    flips = Draws(0, 0, np.arange(8), "a").uniform("flip", 2) < 0.5
    square = exact._square(0)
    for place, (top, left, height, width) in enumerate(boxes):
        crop = square[:, :, top : top + height, left : left + width]
        image = F.interpolate(crop, (32, 32), mode="bilinear", antialias=True)[0].float()
        for axis, flipped in ((-1, flips[place, 0]), (-2, flips[place, 1])):
            image = image.flip(axis) if flipped else image
        assert (image - found[place]).abs().mean() < 6
    assert plain.law == law


def test_center_views_are_those_of_the_embeddings(pixel_task):
    task = pixel_task()
    rows = np.array([30, 2, 17])
    images = torch.cat(list(center_views(task.data.tiles, rows, size=32, batch=2, workers=0, interpolation="bilinear")))
    with torch.inference_mode(), exact_convolutions():
        features = task.encoder(task.encoder.normalize(images)).numpy()
    np.testing.assert_allclose(features, task.data.features[rows], rtol=1e-4, atol=1e-5)


def test_a_tile_that_vanished_is_named(pixel_task, tmp_path):
    task = pixel_task()
    (tmp_path / "images" / "007.png").write_bytes(b"no image")
    with pytest.raises(EosinError, match=r"tile '007.png' could be read when it was embedded, and no more"):
        views(task)((ROWS, [0]))
    with pytest.raises(EosinError, match=r"tile '007.png' could be read when it was embedded, and no more"):
        list(center_views(task.data.tiles, ROWS, size=32, batch=2, workers=0, interpolation="bilinear"))
