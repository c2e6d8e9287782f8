"""The re-stainings: pure functions of pixels, seed and position."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from eosin.augment.hed import RGB_FROM_HED
from eosin.augment.stain_statistics import STAINS, load_statistics
from eosin.core.errors import EosinError
from eosin.evaluate.stain_shift import DEFAULT_SHIFTS, SHIFTS, Restaining, open_shift, open_shifts

NAMES = [*SHIFTS, *(name for name in DEFAULT_SHIFTS if name not in SHIFTS)]


def tissue(count: int = 9, size: int = 24, seed: int = 0) -> torch.Tensor:
    """Noise around the colors of stained tissue, with a corner of glass."""
    generator = np.random.default_rng(seed)
    color = np.array([180, 110, 160]) + generator.integers(-25, 25, (count, 3))
    images = color[:, :, None, None] + generator.integers(-45, 45, (count, 3, size, size))
    images[:, :, :6, :6] = 244
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8))


def restain(name: str, images: torch.Tensor, seed: int = 0, positions=None, rows=None) -> torch.Tensor:
    positions = np.arange(len(images)) if positions is None else positions
    rows = np.arange(len(images)) if rows is None else rows
    return Restaining(open_shift(name), seed, positions)(images, rows)


@pytest.mark.parametrize("name", NAMES)
def test_a_tile_does_not_depend_on_its_batch(name):
    images = tissue()
    whole = restain(name, images, positions=np.arange(100, 109))
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    for rows in np.split(np.arange(9), [1, 4, 5]):
        part = restain(name, images[rows], positions=np.arange(100, 109), rows=rows)
        assert torch.equal(part, whole[rows])
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(restain(name, channels_last, positions=np.arange(100, 109)), whole)
    assert torch.equal(images, tissue())


@pytest.mark.parametrize("name", NAMES)
def test_large_tiles_are_done_in_parts_with_the_same_result(name):
    images = tissue(3, size=230)
    whole = restain(name, images)
    for row in range(3):
        assert torch.equal(
            restain(name, images[row : row + 1], rows=np.array([row]), positions=np.arange(3)), whole[[row]]
        )


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("hed", "template"))])
def test_draws_change_with_seed_and_position_only(name):
    images = tissue(1).repeat(12, 1, 1, 1)
    first = restain(name, images)
    assert len({image.numpy().tobytes() for image in first}) > 6
    assert torch.equal(restain(name, images), first)
    assert torch.equal(restain(name, images[:3], positions=np.array([4, 0, 7])), first[[4, 0, 7]])
    assert not torch.equal(restain(name, images, seed=1), first)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, 128, 255])
def test_tiles_of_one_color_and_of_one_pixel_are_borne(name, value):
    for size in (1, 8):
        changed = restain(name, torch.full((2, 3, size, size), value, dtype=torch.uint8))
        assert changed.shape == (2, 3, size, size)
    if value == 255 and (name[-1] in "+-" or name.startswith("template")):
        assert (changed == 255).all()


def test_none_changes_nothing():
    images = tissue()
    assert torch.equal(restain("none", images), images)


@pytest.mark.parametrize(("name", "theta"), [("hed-light", 0.05), ("hed-strong", 0.2)])
def test_hed_shifts_are_the_plain_formula_of_signs(name, theta):
    images = tissue(16)
    changed = restain(name, images).numpy()
    density = -np.log(np.maximum(images.numpy().transpose(0, 2, 3, 1) / 255.0, 1 / 255))
    stains = density @ np.linalg.inv(RGB_FROM_HED)
    drawn = open_shift(name).operation.sample(
        Restaining(open_shift(name), 0, np.arange(16)).draws(np.arange(16)), images
    )
    size = theta / np.sqrt(3)
    np.testing.assert_allclose(np.abs(drawn["alpha"] - 1), size)
    # Tellez' shift, five times in natural-log optical density; see eosin.augment.hed.
    np.testing.assert_allclose(np.abs(drawn["beta"]), 5 * size)
    signs = np.concatenate([drawn["alpha"] > 1, drawn["beta"] > 0], axis=1)
    assert 0.25 < signs.mean() < 0.75
    assert len(np.unique(signs, axis=0)) > 8
    stains = stains * drawn["alpha"][:, None, None] + drawn["beta"][:, None, None]
    expected = 255 * np.clip(np.exp(-stains @ RGB_FROM_HED), 0, 1)
    assert np.abs(changed.transpose(0, 2, 3, 1) - expected).max() < 0.51


@pytest.mark.parametrize(("name", "place", "factor"), [("hematoxylin+", 0, 1.25), ("eosin-", 1, 0.8)])
def test_single_stains_are_scaled(name, place, factor):
    images = tissue(4)
    changed = restain(name, images).numpy().transpose(0, 2, 3, 1)
    stains = -np.log(images.numpy().transpose(0, 2, 3, 1) / 255.0) @ np.linalg.inv(RGB_FROM_HED)
    stains[..., place] *= factor
    expected = 255 * np.clip(np.exp(-stains @ RGB_FROM_HED), 0, 1)
    assert np.abs(changed - expected).max() < 0.51


def test_templates_give_tissue_the_drawn_averages():
    from skimage.color import rgb2lab

    images = tissue(12, size=48)[:, :, 8:, 8:]
    shift = open_shift("template:monuseg-lab")
    drawn = shift.operation.sample(Restaining(shift, 0, np.arange(12)).draws(np.arange(12)), images)
    assert drawn["on"].all()
    changed = restain("template:monuseg-lab", images).numpy().transpose(0, 2, 3, 1)
    lab = rgb2lab(changed) * [2.55, 1, 1] + [0, 128, 128]
    # Colors out of gamut are cut, which pulls the averages of the darkest and palest templates inwards.
    close = np.abs(lab.mean(axis=(1, 2)) - drawn["target"][:, :3]) < 2.0
    assert close.mean() > 0.8


def test_a_template_is_known_by_its_content(tmp_path):
    shutil.copy(STAINS / "crc-lab.json", tmp_path / "mine.json")
    shipped, copied = open_shift("template:crc-lab"), open_shift(f"template:{tmp_path / 'mine.json'}")
    assert shipped.key == copied.key
    assert torch.equal(restain(shipped.name, tissue()), restain(copied.name, tissue()))
    values = json.loads((tmp_path / "mine.json").read_text())
    values["source"] = "elsewhere"
    (tmp_path / "mine.json").write_text(json.dumps(values))
    assert open_shift(copied.name).key == shipped.key
    values["independent"]["mean"][0] += 1
    (tmp_path / "mine.json").write_text(json.dumps(values))
    assert open_shift(copied.name).key != shipped.key
    with pytest.raises(EosinError, match=r"'template:crc-lab' and 'template:.*again.json' are the same; keep one"):
        shutil.copy(STAINS / "crc-lab.json", tmp_path / "again.json")
        open_shifts(["template:crc-lab", f"template:{tmp_path / 'again.json'}"])


def test_keys_differ_between_shifts_seeds_and_positions():
    shifts = [open_shift(name) for name in NAMES]
    keys = [Restaining(shift, 0, np.arange(4)).key for shift in shifts]
    keys.append(Restaining(shifts[1], 1, np.arange(4)).key)
    keys.append(Restaining(shifts[1], 0, np.arange(1, 5)).key)
    assert len(set(keys)) == len(NAMES) + 2


def test_a_mixture_is_drawn_from_where_there_is_one():
    shift = open_shift("template:synthetic-lab")
    has = load_statistics("synthetic-lab").mixture is not None
    assert shift.operation.config.model == ("gmm" if has else "independent")
    assert open_shift("template:crc-lab").operation.config.model == "independent"


# Means of R, G, B over nine tiles: a change means other pixels, hence a new version of the shift.
PINNED = {
    "none": [185.68, 121.23, 161.45],
    "hed-light": [183.79, 121.63, 162.2],
    "hed-strong": [176.92, 133.24, 170.4],
    "hematoxylin+": [179.05, 115.97, 158.11],
    "hematoxylin-": [191.55, 125.91, 164.24],
    "eosin+": [184.55, 114.23, 159.94],
    "eosin-": [186.61, 127.7, 162.68],
    "template:crc-lab": [179.88, 147.84, 176.48],
    "template:monuseg-lab": [164.12, 119.97, 155.88],
}


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_those_of_this_version(name):
    mean = restain(name, tissue()).double().mean(dim=(0, 2, 3)).tolist()
    assert (open_shift(name).version, mean) == (1, pytest.approx(PINNED[name], abs=0.05))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hed-ligth", "unknown stain shift 'hed-ligth'; did you mean 'hed-light'?"),
        ("zebra", "unknown stain shift 'zebra'; valid: eosin+"),
        ("template", "did you mean 'template:"),
        ("template:", "names no statistics"),
        ("template:crc-labb", "did you mean 'crc-lab'"),
        ("template:missing.json", "missing.json: no such file"),
    ],
)
def test_unknown_shifts_are_told_in_one_line(name, said):
    with pytest.raises(EosinError) as caught:
        open_shift(name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_tiles_as_they_are_come_first_and_once():
    assert [shift.name for shift in open_shifts([])] == ["none"]
    assert [shift.name for shift in open_shifts(["eosin+", "none", "hed-light"])] == ["none", "eosin+", "hed-light"]
