"""Whole views: what they depend on, what they keep, and the configuration that makes them."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as v2

from eosin.augment import (
    AugmentConfig,
    BlurConfig,
    HEDJitterConfig,
    JitterConfig,
    MacenkoConfig,
    RandStainNAConfig,
    SolarizeConfig,
    ViewConfig,
    Views,
)
from eosin.augment import views as views_module
from eosin.augment.color import ORDERS
from eosin.augment.fused import FusedColors
from eosin.core.draws import Draws
from eosin.core.errors import EosinError
from eosin.synthetic import render_tile

pytestmark = pytest.mark.usefixtures("computed")

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
EVERYTHING = ViewConfig(
    size=40,
    vertical_flip=0.5,
    blur=BlurConfig(probability=0.7),
    solarize=SolarizeConfig(probability=0.3),
    interpolation="bicubic",
)
STAINED = EVERYTHING.model_copy(
    update={
        "count": 1,
        "rotate90": 0.5,
        "macenko": MacenkoConfig(probability=0.5),
        "hed": HEDJitterConfig(probability=0.5),
        "randstainna": RandStainNAConfig(probability=0.5),
    }
)
STILL = ViewConfig(
    size=32,
    scale=(1.0, 1.0),
    ratio=(1.0, 1.0),
    horizontal_flip=0.0,
    jitter=JitterConfig(probability=0.0),
    grayscale=0.0,
    blur=BlurConfig(probability=0.0),
)


def tiles(n, side=64, seed=0):
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_views_equal_torchvision_image_by_image():
    """The whole chain, rebuilt from the drawn parameters with torchvision's functionals in MoCo's order."""
    images = tiles(12)
    views = Views(AugmentConfig(views={"global": EVERYTHING}))
    parameters = views.parameters(images, Draws(3, 5, np.arange(12)))
    ours = views.apply(images, parameters)
    adjust = (v2.adjust_brightness, v2.adjust_contrast, v2.adjust_saturation, v2.adjust_hue)
    names = ("brightness", "contrast", "saturation", "hue")
    for drawn, view in zip(parameters, ours, strict=True):
        for row, image in enumerate(images):
            box = drawn["crop"]["box"][row].tolist()
            x = v2.resized_crop(image, *box, [40, 40], interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
            x = x.float() / 255
            order = drawn["jitter"]["order"][row]
            for number in ORDERS[order] if order >= 0 else ():
                x = adjust[number](x, float(drawn["jitter"][names[number]][row]))
            if drawn["grayscale"]["on"][row]:
                x = v2.rgb_to_grayscale(x, num_output_channels=3)
            sigma = float(drawn["blur"]["sigma"][row])
            if sigma > 0:
                x = v2.gaussian_blur(x, [13, 13], [sigma, sigma])
            near_threshold = (x - 128 / 255).abs() < 1e-4
            if drawn["solarize"]["on"][row]:
                x = v2.solarize(x, 128 / 255)
            # MoCo flips last; here the crop is flipped, which is the same view.
            flips = [axis for axis, name in ((-1, "horizontal"), (-2, "vertical")) if drawn["flip"][name][row]]
            x, near_threshold = x.flip(flips), near_threshold.flip(flips)
            difference = (view[row] - v2.normalize(x, **IMAGENET)).abs()
            assert difference[~near_threshold].max() < 2e-4


@settings(max_examples=15)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**40), step=st.integers(0, 2**40), data=st.data())
def test_a_view_depends_on_its_own_image_seed_step_and_position_only(n, seed, step, data):
    images = tiles(n, side=24, seed=n)
    positions = np.arange(n) * 3 + 1
    views = Views(AugmentConfig(views={"a": EVERYTHING, "b": STAINED.model_copy(update={"size": 17})}))
    whole = views(images, Draws(seed, step, positions))
    rows = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True))
    part = views(images[rows], Draws(seed, step, positions[rows]))
    assert len(whole) == len(part) == len(views) == 3
    for all_rows, some in zip(whole, part, strict=True):
        assert torch.equal(all_rows[rows], some)


def test_seed_step_position_view_and_name_all_matter():
    images = tiles(1).repeat(4, 1, 1, 1)
    views = Views(AugmentConfig(views={"a": ViewConfig(size=24), "b": ViewConfig(size=24)}))
    base = views(images, Draws(0, 0, np.arange(4)))
    others = [
        views(images, Draws(1, 0, np.arange(4)))[0],
        views(images, Draws(0, 1, np.arange(4)))[0],
        views(images, Draws(0, 0, np.arange(4) + 4))[0],
        *base[1:],
    ]
    for other in others:
        assert not torch.equal(base[0], other)
    flat = base[0].flatten(1)
    assert len(torch.unique(flat, dim=0)) == 4


def test_replay_gives_the_same_bits_and_leaves_the_input_alone():
    images = tiles(9)
    before = images.clone()
    views = Views(AugmentConfig(views={"global": EVERYTHING}))
    parameters = views.parameters(images, Draws(0, 0, np.arange(9)))
    first, second = views.apply(images, parameters), views.apply(images, parameters)
    assert torch.equal(images, before)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
        assert a.is_contiguous()
        assert not a.requires_grad


def test_a_view_without_change_is_the_normalised_image():
    images = tiles(3, side=32)
    (first, second) = Views(AugmentConfig(views={"global": STILL}))(images, Draws(0, 0, np.arange(3)))
    expected = v2.normalize(images.float() / 255, **IMAGENET)
    torch.testing.assert_close(first, expected, rtol=0, atol=2e-6)
    assert torch.equal(first, second)


@settings(max_examples=25)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    kind=st.sampled_from(["black", "white", "single", "noise"]),
    size=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_views_are_finite_and_in_range_for_any_tile(height, width, kind, size, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (5, 3, height, width), dtype=torch.uint8, generator=generator)
    if kind == "single":
        images = images[:, :, :1, :1].expand(5, 3, height, width)
    elif kind != "noise":
        images = torch.full_like(images, 255 if kind == "white" else 0)
    config = AugmentConfig(
        mean=(0, 0, 0),
        std=(1, 1, 1),
        views={"g": ViewConfig(size=size, solarize=SolarizeConfig(probability=0.3), vertical_flip=0.5)},
    )
    for view in Views(config)(images, Draws(seed, 0, np.arange(5))):
        assert view.shape == (5, 3, size, size)
        assert view.dtype == torch.float32
        assert torch.isfinite(view).all()
        assert view.min() >= -1e-5
        assert view.max() <= 1 + 1e-5
        if kind in ("black", "white", "single"):
            assert (view.amax(dim=(2, 3)) - view.amin(dim=(2, 3))).max() < 1e-4


@settings(max_examples=30)
@given(
    side=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kind=st.sampled_from(["black", "white", "single", "noise", "tissue"]),
    size=st.integers(1, 40),
    statistics=st.sampled_from(["synthetic-lab", "synthetic-hsv", "synthetic-hed"]),
    strengths=st.tuples(st.floats(0, 1), st.floats(0, 10), st.floats(0, 3), st.floats(0, 1)),
    switches=st.tuples(*[st.booleans()] * 4),
    seed=st.integers(0, 999),
)
def test_stained_views_are_colors_for_any_tile_and_parameters(side, kind, size, statistics, strengths, switches, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (4, 3, *side), dtype=torch.uint8, generator=generator)
    if kind == "single":
        images = images[:, :, :1, :1].expand(images.shape)
    elif kind == "tissue":
        images = (images // 4 + torch.tensor([150, 80, 130]).view(3, 1, 1)).byte()
    elif kind != "noise":
        images = torch.full_like(images, 255 if kind == "white" else 0)
    alpha, beta, spread, strength = strengths
    rand = RandStainNAConfig(
        probability=0.7,
        statistics=statistics,
        model="gmm" if switches[0] else "independent",
        spread=spread,
        strength=strength,
        keep_background=switches[1],
    )
    macenko = MacenkoConfig(probability=0.7, alpha=alpha, beta=beta, normalize=switches[2], residual=switches[3])
    chain = STAINED.model_copy(
        update={
            "size": size,
            "macenko": macenko,
            "hed": HEDJitterConfig(probability=0.7, alpha=alpha, beta=beta),
            "randstainna": rand,
        }
    )
    views = Views(AugmentConfig(mean=(0, 0, 0), std=(1, 1, 1), views={"g": chain}))
    parameters = views.parameters(images, Draws(seed, 0, range(4)))
    (view,) = views.apply(images, parameters)
    assert view.shape == (4, 3, size, size)
    assert view.dtype == torch.float32
    assert torch.isfinite(view).all()
    assert view.min() >= -1e-5
    assert view.max() <= 1 + 1e-5
    assert torch.equal(views.apply(images, parameters)[0], view)


@settings(max_examples=15)
@given(size=st.integers(1, 40), seed=st.integers(0, 999), model=st.sampled_from(["gmm", "independent"]))
def test_operations_without_strength_change_no_bit(size, seed, model):
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    still = STILL.model_copy(update={"size": size})
    nothing = still.model_copy(
        update={
            "macenko": MacenkoConfig(probability=1, alpha=0, beta=0),
            "hed": HEDJitterConfig(probability=1, alpha=0, beta=0),
            "randstainna": RandStainNAConfig(probability=1, model=model, strength=0),
            "jitter": JitterConfig(probability=1, **off),
            "solarize": SolarizeConfig(probability=0),
        }
    )
    images = tiles(3, side=30, seed=seed)
    draws = Draws(seed, 0, range(3))
    (plain, _), (changed, _) = (Views(AugmentConfig(views={"g": kind}))(images, draws) for kind in (still, nothing))
    assert torch.equal(changed, plain)


def test_order_and_sizes_follow_the_configuration():
    views = Views(AugmentConfig(views={"global": ViewConfig(size=32), "local": ViewConfig(size=16, count=3)}))
    result = views(tiles(2), Draws(0, 0, [0, 1]))
    assert [tuple(view.shape) for view in result] == [(2, 3, 32, 32)] * 2 + [(2, 3, 16, 16)] * 3


def test_real_tissue_keeps_its_pixels_where_nothing_is_drawn(real_data):
    from PIL import Image

    paths = sorted((real_data / "oral").rglob("*.jpg"))[:4]
    images = torch.stack([torch.from_numpy(np.array(Image.open(p).convert("RGB"))).permute(2, 0, 1) for p in paths])
    still = STILL.model_copy(update={"size": 224, "count": 1})
    config = AugmentConfig(mean=(0, 0, 0), std=(1, 1, 1), views={"global": still})
    (view,) = Views(config)(images.contiguous(), Draws(0, 0, np.arange(len(images))))
    assert torch.equal((view * 255).round().byte(), images)


def test_a_kind_of_none_is_left_out():
    views = Views(AugmentConfig(views={"global": ViewConfig(size=32), "local": ViewConfig(size=16, count=0)}))
    assert [view.shape[-1] for view in views(tiles(2), Draws(0, 0, [0, 1]))] == [32, 32]


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"views": {"global": {"jitter": {"probability": 1.2}}}}, ["jitter.probability", "1.2"]),
        ({"views": {"global": {"grayscale": -0.1}}}, ["grayscale"]),
        ({"views": {"global": {"scale": [0.8, 0.2]}}}, ["scale", "low, high"]),
        ({"views": {"global": {"scale": [0.2, 1.5]}}}, ["scale"]),
        ({"views": {"global": {"scale": [0.0, 1.0]}}}, ["scale"]),
        ({"views": {"global": {"ratio": [2.0, 0.5]}}}, ["ratio", "low, high"]),
        ({"views": {"global": {"size": 0}}}, ["size"]),
        ({"views": {"global": {"count": -1}}}, ["count"]),
        ({"views": {"global": {"interpolation": "nearest"}}}, ["interpolation", "bicubic"]),
        ({"views": {"global": {"blur": {"sigma": [2.0, 0.1]}}}}, ["sigma", "low, high"]),
        ({"views": {"global": {"blur": {"sigma": [0.0, 1.0]}}}}, ["sigma"]),
        ({"views": {"global": {"jitter": {"hue": 0.7}}}}, ["hue"]),
        ({"views": {"global": {"jitter": {"brightness": -1}}}}, ["brightness"]),
        ({"views": {"global": {"gray_scale": 0.1}}}, ["gray_scale", "grayscale"]),
        ({"views": {"global": {"jitter": {"contrst": 0.1}}}}, ["contrst", "contrast"]),
        ({"views": {}}, ["views"]),
        ({"std": [0.2, 0.2, 0.0]}, ["std"]),
        ({"std": [0.2, 0.2, 1e-30]}, ["std"]),
        ({"mean": [123.7, 116.3, 103.5]}, ["mean.0", "less than or equal to 1"]),
        ({"views": {"a": {"blur": {"sigma": [1.0, 1e6]}}}}, ["blur.sigma.1", "less than or equal to 100"]),
    ],
)
def test_a_wrong_configuration_is_one_clear_line(values, parts):
    with pytest.raises(EosinError) as error:
        AugmentConfig.parse(values, "recipe")
    message = str(error.value)
    assert "\n" not in message
    for part in ["recipe", *parts]:
        assert part in message


def test_the_configuration_survives_a_round_trip():
    config = AugmentConfig(views={"global": EVERYTHING})
    assert AugmentConfig.parse(config.plain(), "saved") == config


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 3, 8, 8), torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.zeros(3, 3, 8, 8).byte()]
)
def test_a_wrong_batch_is_refused(images):
    with pytest.raises(ValueError):
        Views(AugmentConfig())(images, Draws(0, 0, [0, 1]))


@pytest.mark.gpu
def test_the_gpu_gives_the_same_views_up_to_rounding():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    smooth = torch.nn.functional.interpolate(torch.rand(16, 3, 8, 8), size=(96, 96), mode="bilinear")
    images = (smooth * 255).byte()
    views = Views(AugmentConfig(mean=(0, 0, 0), std=(1, 1, 1), views={"global": ViewConfig(size=64)}))
    draws = Draws(0, 0, np.arange(16))
    for cpu, gpu in zip(views(images, draws), views(images.cuda(), draws), strict=True):
        # A grey level of difference after the resampling; a hue near gray may turn further.
        assert (cpu - gpu.cpu()).abs().mean() < 1 / 255


@pytest.mark.parametrize("size", [224, 301])
def test_threads_change_no_bit(size):
    """Workers have one thread, the process that trains has more."""
    images = torch.from_numpy(np.stack([render_tile("tumor", size=256, slide=slide).image for slide in range(2)]))
    stained = {"randstainna": RandStainNAConfig(probability=1), "macenko": MacenkoConfig(probability=1)}
    kind = ViewConfig(count=1, size=size, hed=HEDJitterConfig(probability=1), **stained)
    views = Views(AugmentConfig(views={"global": kind}))
    assert views._views[0][1].photometric["randstainna"].statistics.tissue_only
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(views(images, Draws(0, 0, range(2))))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_views_go_to_workers_after_a_device_has_compiled_them(monkeypatch):
    """A run tries the device first, then hands the same views to its workers."""
    monkeypatch.setattr(views_module, "FusedColors", partial(FusedColors, backend="aot_eager"))
    views = Views(AugmentConfig(views={"global": ViewConfig(size=16)}))
    images = tiles(3, side=20)
    ((_, view), *_) = views._views
    parameters = views.parameters(images, Draws(0, 0, range(3)))
    view._color_at_once(view.crop.apply(images, parameters[0]["crop"]), parameters[0])
    there = pickle.loads(pickle.dumps(views))
    for one, other in zip(there.apply(images, parameters), views.apply(images, parameters), strict=True):
        assert torch.equal(one, other)
    assert view.fused is not None


def test_mixed_precision_leaves_the_pixels_alone():
    images = tiles(3)
    views = Views(AugmentConfig(views={"global": STAINED.model_copy(update={"blur": BlurConfig(probability=1)})}))
    expected = views(images, Draws(0, 0, range(3)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = views(images, Draws(0, 0, range(3)))
    assert torch.equal(mixed[0], expected[0])


@pytest.mark.parametrize("space", ["lab", "hsv", "hed"])
def test_no_operation_waits_for_the_device(space):
    """A device of shapes without values: whatever would read one of them fails."""
    stain = RandStainNAConfig(probability=0.5, statistics=f"synthetic-{space}")
    views = Views(AugmentConfig(compile=False, views={"g": STAINED.model_copy(update={"randstainna": stain})}))
    images = torch.empty(12, 3, 48, 48, dtype=torch.uint8, device="meta")
    draws = Draws(0, 0, range(12))
    assert [view.shape for view in views(images, draws)] == [(12, 3, 40, 40)]
    ((_, view),) = views._views
    colors = torch.empty(12, 3, 40, 40, device="meta")
    for operation in view.photometric.values():
        assert operation.apply(colors.clone(), operation.sample(draws, colors)).shape == colors.shape


def test_colors_at_once_are_the_colors_chunk_by_chunk():
    """What a GPU does with a batch is what a CPU does with its chunks."""
    kind = ViewConfig(
        size=32,
        jitter=JitterConfig(probability=0.8),
        hed=HEDJitterConfig(probability=0.5),
        randstainna=RandStainNAConfig(probability=0.5),
        macenko=MacenkoConfig(probability=0.5),
        solarize=SolarizeConfig(probability=0.3),
        rotate90=0.5,
    )
    views = Views(AugmentConfig(compile=False, views={"global": kind}))
    images = torch.randint(60, 256, (12, 3, 48, 48), dtype=torch.uint8)
    (_, view), *_ = views._views
    parameters = views.parameters(images, Draws(0, 0, range(12)))[0]
    crops = view.crop.apply(images, parameters["crop"])
    at_once, chunked = view._color_at_once(crops.clone(), parameters), view._color(crops.clone(), parameters)
    # Where solarize turns a value at its threshold over, the two may fall on different sides.
    assert ((at_once - chunked).abs() < 1e-3).float().mean() > 0.999
