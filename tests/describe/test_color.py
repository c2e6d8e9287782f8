from __future__ import annotations

import numpy as np
import pytest
import torch

from eosin.augment.image_statistics import image_statistics
from eosin.augment.stain_statistics import load_statistics
from eosin.describe import describe
from eosin.describe.color import _components, rgb_of


def lab(pixels, tissue_only=True):
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    return image_statistics(image, "lab", tissue_only)[0][0].double().numpy()


def test_components_find_the_deviations_that_were_drawn():
    generator = np.random.default_rng(0)
    codes = np.repeat(np.arange(400), generator.integers(2, 30, 400))
    values = (generator.normal(0, [8.0, 3.0, 0.0], (400, 3)))[codes] + generator.normal(
        0, [2.0, 6.0, 5.0], (len(codes), 3)
    )
    between, within = _components(values, codes)
    np.testing.assert_allclose(within, [2.0, 6.0, 5.0], rtol=0.05)
    np.testing.assert_allclose(between, [8.0, 3.0, 0.0], rtol=0.12, atol=0.6)


def test_components_need_two_groups_and_one_of_them_with_two_tiles():
    values = np.zeros((4, 3))
    assert _components(values, np.zeros(4, dtype=np.int64)) == (None, None)
    assert _components(values, np.arange(4)) == (None, None)
    assert _components(values[:0], np.arange(0)) == (None, None)


def test_the_stain_is_that_of_the_tiles(write, tissue):
    index = write(tissue, slide=[f"s{number // 4}" for number in range(12)])
    stain = describe(str(index), workers=0).stain
    values = np.stack([lab(pixels) for pixels in tissue])
    np.testing.assert_allclose(stain.values, values, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(stain.mean, values.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(stain.std, values.std(axis=0, ddof=1), rtol=1e-3)
    assert stain.origin == "slide"
    groups = {group.name: group for group in stain.groups}
    np.testing.assert_allclose(groups["s1"].mean, values[4:8, :3].mean(axis=0), rtol=1e-4)
    assert [group.away for group in stain.groups] == sorted((group.away for group in stain.groups), reverse=True)


def test_a_slide_in_another_color_is_named(write, tissue):
    images = [pixels[..., [1, 0, 2]] if number in (3, 4, 5) else pixels for number, pixels in enumerate(tissue)]
    found = describe(str(write(images, slide=[f"s{number // 3}" for number in range(12)])), workers=0)
    assert found.stain.groups[0].name == "s1"
    assert found.stain.groups[0].away > 2 * found.stain.groups[1].away


def test_the_shipped_distributions_are_compared_over_the_pixels_they_were_made_of(write, tissue):
    stain = describe(str(write(tissue)), workers=0).stain
    compared = {entry.name: entry for entry in stain.compared}
    assert {"crc-lab", "synthetic-lab"} <= compared.keys()
    for name in ("crc-lab", "synthetic-lab"):
        known = load_statistics(name)
        values = np.stack([lab(pixels, known.tissue_only) for pixels in tissue])[:, :3]
        scores = (values - known.independent.mean[:3]) / known.independent.std[:3]
        np.testing.assert_allclose(compared[name].away, scores.mean(axis=0), atol=1e-3)
        assert compared[name].inside == pytest.approx((np.abs(scores) <= 2).all(axis=1).mean())


def test_colors_come_back():
    pixels = np.broadcast_to(np.array([180, 90, 150], dtype=np.uint8), (16, 16, 3)).copy()
    assert rgb_of(lab(pixels)[None, :3]) == ["#b45a96"]
