"""What moves pixels moves nuclei; medians, blur and noise against other programs; every draw pure."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage.transform import AffineTransform

from eosin.augment import HEDJitterConfig, JitterConfig, MacenkoConfig, RandStainNAConfig
from eosin.core.draws import Draws
from eosin.core.errors import EosinError
from eosin.nuclei.augment import Augmentation, NucleiAugment, binomial_blur, median_blur
from eosin.nuclei.windows import WindowBatch, relabel_windows

PLAIN = NucleiAugment.none()


def with_changes(**changes):
    return NucleiAugment.parse(PLAIN.plain() | changes, "test")


def draws(count=3, seed=0, step=0, first=0):
    return Draws(seed, step, np.arange(first, first + count))


def cells(count, side, seed=0, pitch=9):
    """A grid of squares, the id of each drawn as its color: what is true of pixels can be read off the image."""
    rng = np.random.default_rng(seed)
    number = np.arange(side) // pitch
    grid = number[:, None] * (number.max() + 1) + number[None, :] + 1
    gap = (np.arange(side) % pitch < 1)[:, None] | (np.arange(side) % pitch < 1)[None, :]
    maps = []
    for _ in range(count):
        ids = rng.permutation(grid.max()) + 1
        maps.append(np.where(gap, 0, ids[grid - 1]))
    instances = torch.from_numpy(np.stack(maps).astype(np.int32))
    top = int(instances.max())
    types = [np.concatenate([[0], rng.integers(1, 4, top)]) for _ in range(count)]
    return WindowBatch(image=painted(instances), instances=instances, types=types)


def painted(instances):
    """Red and green hold the id, blue says whether there is one."""
    return torch.stack([instances % 256, instances // 256, (instances > 0).int() * 255], dim=1).to(torch.uint8)


def read(image):
    return image[:, 0].int() + 256 * image[:, 1].int()


def check_kept(moved, before, shown):
    """The new ids divide the old ones that the image shows into connected parts, each with its nucleus's type."""
    for row in range(len(shown)):
        new, old = moved["instances"][row].numpy(), shown[row].numpy()
        assert ((new > 0) == (old > 0)).all()
        assert np.unique(new[new > 0]).tolist() == list(range(1, new.max() + 1))
        assert len(moved["types"][row]) == new.max() + 1
        assert moved["types"][row][0] == 0
        for number in range(1, new.max() + 1):
            owners = np.unique(old[new == number])
            assert len(owners) == 1
            assert ndimage.label(new == number)[1] == 1
            assert moved["types"][row][number] == before["types"][row][owners[0]]
        parts = sum(ndimage.label(old == number)[1] for number in np.unique(old[old > 0]))
        assert parts == new.max()


@given(seed=st.integers(0, 1000), size=st.sampled_from([20, 25]))
def test_pixels_and_nuclei_move_along_one_grid(seed, size):
    config = NucleiAugment(interpolation="nearest", rotate90=0.5, translate=0.1)
    batch = cells(3, config.window(size), seed)
    moved = Augmentation(config).move(batch, draws(seed=seed), size)
    assert moved["image"].shape == (3, 3, size, size)
    check_kept(moved, batch, read(moved["image"]))


def test_interpolated_pixels_move_with_their_nuclei():
    config = NucleiAugment()
    batch = cells(4, config.window(48), pitch=12)
    batch["image"] = ((batch["instances"] % 2 + 1) * (batch["instances"] > 0) * 100).to(torch.uint8)
    batch["image"] = batch["image"][:, None].repeat(1, 3, 1, 1)
    batch["types"] = [np.arange(int(batch["instances"].max()) + 1) % 2 for _ in range(4)]
    moved = Augmentation(config).move(batch, draws(4), 48)
    inside = 0
    for image, instances, types in zip(moved["image"], moved["instances"].numpy(), moved["types"], strict=True):
        for number in range(1, instances.max() + 1):
            core = ndimage.binary_erosion(instances == number, iterations=2)
            inside += core.sum()
            assert (image[0].numpy()[core] == (100, 200)[types[number]]).all()
    assert inside > 1000


@given(
    flips=st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])),
    turn=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 50),
)
def test_flips_and_quarter_turns_are_exact(flips, turn, seed):
    batch = cells(2, 21, seed)
    config = with_changes(horizontal_flip=flips[0], vertical_flip=flips[1], rotate90=turn)
    augment = Augmentation(config)
    assert config.window(21) == 21
    moved = augment.move(batch, draws(2, seed), 21)
    quarters = augment._turn.sample(draws(2, seed).within("nuclei"), batch["image"])["quarters"]
    for row in range(2):
        expected = np.rot90(batch["instances"][row].numpy(), quarters[row])
        expected = expected[:: -1 if flips[1] else 1, :: -1 if flips[0] else 1]
        assert (read(moved["image"])[row].numpy() == expected).all()
    check_kept(moved, batch, read(moved["image"]))


@pytest.mark.parametrize("size", [20, 21])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_a_map_that_is_a_quarter_turn_moves_each_pixel_onto_one(size, interpolation, monkeypatch):
    config = with_changes(rotation=180.0, interpolation=interpolation)
    batch = cells(1, config.window(size), 3)
    low = (config.window(size) - size) // 2
    for quarter in range(4):
        angle = np.pi / 2 * quarter
        turn = np.array([[[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]]])
        augment = Augmentation(config)
        monkeypatch.setattr(augment, "matrices", lambda d, s, turn=turn: turn)
        moved = augment.move(batch, draws(1), size)
        middle = batch["image"][0, :, low : low + size, low : low + size]
        # Downwards on the image, y grows: a turn from x to y is one with the clock.
        assert (moved["image"][0] == torch.rot90(middle, -quarter, (1, 2))).all()


def test_the_map_is_scikit_images_with_a_leaning_y_axis():
    config = NucleiAugment(translate=0.2)
    matrices = Augmentation(config).matrices(draws(4000), 50)
    u = draws(4000).uniform("affine", 6)
    for row in range(20):
        expected = AffineTransform(
            scale=(0.8 + 0.4 * u[row, 0], 0.8 + 0.4 * u[row, 1]),
            translation=10 * (2 * u[row, 2:4] - 1),
            rotation=np.radians(179 * (2 * u[row, 4] - 1)),
        ).params
        leaning = np.radians(5 * (2 * u[row, 5] - 1))
        y_axis = np.array([[np.cos(leaning), -np.sin(leaning)], [np.sin(leaning), np.cos(leaning)]]) @ expected[:2, 1]
        np.testing.assert_allclose(matrices[row], np.column_stack([expected[:2, 0], y_axis, expected[:2, 2]]))
    assert np.abs(matrices[:, :, 2]).max() == pytest.approx(10, rel=0.01)
    lengths = np.linalg.norm(matrices[:, :, :2], axis=1)
    assert (lengths.min(), lengths.max()) == (pytest.approx(0.8, abs=1e-3), pytest.approx(1.2, abs=1e-3))


@pytest.mark.parametrize(
    "changes", [{}, {"rotation": 20.0}, {"rotation": 0.0}, {"scale": (0.5, 2.0), "shear": 30.0, "translate": 0.2}]
)
def test_a_window_holds_all_that_is_shown_and_little_more(changes):
    config = NucleiAugment.parse(changes, "test")
    size = 100
    side = config.window(size)
    matrices = Augmentation(config).matrices(draws(20_000), size)
    corners = (size / 2) * np.array([[-1, -1, 1, 1], [-1, 1, -1, 1]])
    reached = np.abs(np.linalg.inv(matrices[:, :, :2]) @ (corners - matrices[:, :, 2:])).max()
    assert reached <= side / 2
    assert reached > 0.85 * side / 2
    assert (side - size) % 2 == 0
    assert NucleiAugment.none().window(size) == size


def test_relabelling():
    instances = torch.zeros(2, 6, 8, dtype=torch.int32)
    instances[0, :3, :2], instances[0, 5:, :2] = 7, 7  # one nucleus in two parts
    instances[0, 0, 4], instances[0, 1, 5] = 2, 2  # parts that touch by a corner
    instances[0, :3, 2] = 3  # another that touches the first
    instances[1, 0] = 7  # right below the last row of the other window
    kinds = np.array([0, 10, 20, 30, 40, 50, 60, 70])
    found, types = relabel_windows(instances, [kinds, kinds])
    expected = torch.zeros_like(instances)
    expected[0, :3, :2], expected[0, :3, 2], expected[0, 0, 4] = 1, 2, 3
    expected[0, 1, 5], expected[0, 5:, :2], expected[1, 0] = 4, 5, 1
    assert (found == expected).all()
    assert [kind.tolist() for kind in types] == [[0, 70, 30, 20, 20, 70], [0, 70]]
    empty, types = relabel_windows(torch.zeros(2, 4, 4, dtype=torch.int32), [kinds[:1], kinds[:1]])
    assert not empty.any()
    assert [kind.tolist() for kind in types] == [[0], [0]]
    assert relabel_windows(instances, None)[1] is None


EVERYTHING = NucleiAugment(
    rotate90=0.5,
    macenko=MacenkoConfig(probability=0.5),
    hed=HEDJitterConfig(probability=0.5),
    randstainna=RandStainNAConfig(probability=0.5),
)


@pytest.mark.parametrize("config", [NucleiAugment(), EVERYTHING], ids=["default", "everything"])
def test_a_window_is_a_pure_function_of_seed_step_and_position(config):
    size = 24
    batch = cells(6, config.window(size))
    batch["image"] = torch.randint(0, 256, batch["image"].shape, generator=torch.Generator().manual_seed(0)).byte()
    kept = batch["image"].clone(), batch["instances"].clone()
    augment = Augmentation(config)
    whole = augment(batch, draws(6), size)
    assert (batch["image"] == kept[0]).all()
    assert (batch["instances"] == kept[1]).all()
    for row in range(6):
        alone = WindowBatch(
            image=batch["image"][row : row + 1],
            instances=batch["instances"][row : row + 1],
            types=batch["types"][row : row + 1],
        )
        single = Augmentation(config)(alone, draws(1, first=row), size)
        assert (single["image"][0] == whole["image"][row]).all()
        assert (single["instances"][0] == whole["instances"][row]).all()
        assert (single["types"][0] == whole["types"][row]).all()
    for other in (draws(6, seed=1), draws(6, step=1), draws(6, first=1)):
        assert (augment(batch, other, size)["image"] != whole["image"]).any()
    moved = augment.move(batch, draws(6), size)
    assert (augment.color(moved["image"], draws(6)) == whole["image"]).all()


def test_nothing_is_nothing():
    batch = cells(2, 30)
    same = Augmentation(PLAIN)(batch, draws(2), 30)
    assert (same["image"] == batch["image"]).all()
    middle = Augmentation(PLAIN)(batch, draws(2), 20)
    assert (middle["image"] == batch["image"][:, :, 5:25, 5:25]).all()


@pytest.mark.parametrize("side", [3, 5, 7])
def test_medians(side):
    images = torch.randint(0, 256, (2, 3, 17, 13), generator=torch.Generator().manual_seed(side)).byte()
    found = median_blur(images, side).numpy()
    expected = ndimage.median_filter(images.numpy(), size=(1, 1, side, side), mode="nearest")
    assert (found == expected).all()
    assert (found[0, 0] == cv2.medianBlur(images[0, 0].numpy(), side)).all()


@pytest.mark.parametrize("side", [3, 5])
def test_blur_is_opencvs(side):
    images = torch.randint(0, 256, (1, 3, 40, 30), generator=torch.Generator().manual_seed(side)).byte()
    expected = cv2.GaussianBlur(
        images[0].permute(1, 2, 0).numpy(), (side, side), sigmaX=0, borderType=cv2.BORDER_REFLECT_101
    )
    apart = np.abs(binomial_blur(images, side)[0].permute(1, 2, 0).numpy().astype(int) - expected)
    assert apart.max() <= 1
    kernel = np.array([[1, 2, 1], [1, 4, 6, 4, 1]][side // 2 - 1])
    weights = np.outer(kernel, kernel) / kernel.sum() ** 2
    plain = [ndimage.correlate(channel.numpy().astype(float), weights, mode="mirror") for channel in images[0]]
    assert (binomial_blur(images, side)[0].numpy() == np.floor(np.stack(plain) + 0.5)).all()


def test_one_of_blur_median_and_noise():
    config = with_changes(one_of=1.0)
    flat = torch.full((300, 3, 12, 12), 128, dtype=torch.uint8)
    flat[:, :, 6, 6] = 255
    changed = Augmentation(config).color(flat, draws(300)).int() - flat.int()
    noisy = changed[:, :, 0, 0].ne(0).any(dim=1) | changed[:, :, 2, 3].ne(0).any(dim=1)
    noisy |= changed[:, :, 9, 10].ne(0).any(dim=1)
    without_spot = (changed[:, 0, 6, 6] == -127) & ~noisy
    blurred = (changed[:, 0, 6, 6] < 0) & ~without_spot & ~noisy
    untouched = changed.flatten(1).eq(0).all(dim=1)
    # Two of three kernels of blur and median do something; deviations of less than half a grey level do nothing.
    for share, expected in ((noisy, 1 / 3), (without_spot, 2 / 9), (blurred, 2 / 9), (untouched, 2 / 9)):
        assert share.float().mean() == pytest.approx(expected, abs=0.08)
    single = (changed[noisy] == changed[noisy][:, :1]).flatten(1).all(dim=1).float().mean()
    assert single == pytest.approx(0.5, abs=0.15)
    deviations = changed[noisy].float().flatten(1).std(dim=1)
    assert deviations.max() == pytest.approx(0.05 * 255, rel=0.15)


def test_stain_and_jitter_change_colors_only():
    batch = cells(3, 24)
    batch["image"] = torch.randint(80, 220, batch["image"].shape, generator=torch.Generator().manual_seed(0)).byte()
    for changes in (
        {"jitter": JitterConfig(probability=1.0).plain()},
        {"hed": HEDJitterConfig(probability=1.0).plain()},
        {"macenko": MacenkoConfig(probability=1.0).plain()},
        {"randstainna": RandStainNAConfig(probability=1.0).plain()},
    ):
        changed = Augmentation(with_changes(**changes))(batch, draws(3), 24)
        assert (changed["image"] != batch["image"]).any(dim=(1, 2, 3)).all()
        assert ((changed["instances"] > 0) == (batch["instances"] > 0)).all()


def test_what_is_refused():
    for changes, message in (
        ({"scale": [1.2, 0.8]}, "scale must be given as low, high"),
        ({"blur": 4}, "blur must be odd"),
        ({"rotate": 90}, "unknown field 'rotate'"),
        ({"noise": 2.0}, "noise"),
    ):
        with pytest.raises(EosinError, match=message):
            NucleiAugment.parse(changes, "test")
    augment = Augmentation(PLAIN)
    batch = cells(2, 20)
    with pytest.raises(ValueError, match="square windows of at least 24 px"):
        augment(batch, draws(2), 24)
    with pytest.raises(ValueError, match="2 windows but 3 draws"):
        augment(batch, draws(3), 20)
