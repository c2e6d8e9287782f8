import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from eosin.core.errors import EosinError
from eosin.synthetic import NUCLEUS_TYPES, TISSUES, render_tile

CELLULAR = ("glands", "lymphocytes", "muscle", "stroma", "tumor")


def digest(tile):
    parts = (tile.image.tobytes(), tile.instances.tobytes(), tile.types.tobytes())
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.mark.parametrize("tissue", TISSUES)
def test_a_tile_is_a_pure_function_of_its_arguments(tissue):
    first = render_tile(tissue, size=64, seed=3, slide=2, index=1)
    for other in ("muscle", "glands"):
        render_tile(other, size=40, mpp=1.0, seed=9)
    assert digest(render_tile(tissue, size=64, seed=3, slide=2, index=1)) == digest(first)
    for change in ({"seed": 4}, {"slide": 3}, {"index": 2}):
        again = render_tile(tissue, size=64, **({"seed": 3, "slide": 2, "index": 1} | change))
        assert digest(again) != digest(first)


def test_another_process_draws_the_same_bits():
    code = (
        "import sys, hashlib; from eosin.synthetic import TISSUES, render_tile\n"
        "for name in reversed(TISSUES):\n"
        "    t = render_tile(name, size=70, mpp=0.7, seed=11, slide=5, index=8)\n"
        "    print(hashlib.sha256(t.image.tobytes() + t.instances.tobytes() + t.types.tobytes()).hexdigest())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [digest(render_tile(name, size=70, mpp=0.7, seed=11, slide=5, index=8)) for name in reversed(TISSUES)]
    assert done.stdout.split() == here


def test_import_leaves_the_heavy_libraries_alone():
    code = "import sys, eosin.synthetic; print({'torch', 'scipy', 'sklearn', 'timm'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@settings(max_examples=40, deadline=None)
@given(
    tissue=st.sampled_from(TISSUES),
    size=st.integers(16, 150),
    mpp=st.floats(0.1, 8.0),
    seed=st.integers(0, 2**63 - 1),
    slide=st.integers(0, 10**6),
    index=st.integers(0, 10**6),
)
def test_any_size_and_mpp(tissue, size, mpp, seed, slide, index):
    tile = render_tile(tissue, size=size, mpp=mpp, seed=seed, slide=slide, index=index)
    assert tile.image.shape == (3, size, size)
    assert tile.image.dtype == np.uint8
    assert tile.instances.shape == tile.types.shape == (size, size)
    assert tile.instances.dtype == np.int32
    assert tile.types.dtype == np.uint8
    assert (tile.tissue, tile.slide, tile.mpp) == (tissue, slide, mpp)
    ids = np.unique(tile.instances)
    assert np.array_equal(ids[ids > 0], np.arange(1, tile.instances.max() + 1))
    assert np.array_equal(tile.types > 0, tile.instances > 0)
    assert set(np.unique(tile.types)) <= {0, *NUCLEUS_TYPES}
    for number in ids[ids > 0]:
        assert len(np.unique(tile.types[tile.instances == number])) == 1
    if mpp > 4:
        assert not tile.instances.any()


def test_a_large_odd_tile():
    tile = render_tile("glands", size=701, mpp=1.3, seed=1)
    assert tile.image.shape == (3, 701, 701)
    assert tile.instances.max() > 500


@pytest.mark.parametrize("tissue", CELLULAR)
@pytest.mark.parametrize("slide", range(6))
def test_nuclei_take_up_more_hematoxylin_than_their_surroundings(tissue, slide):
    tile = render_tile(tissue, size=160, seed=2, slide=slide)
    inside = ndimage.binary_erosion(tile.instances > 0)
    around = ndimage.binary_dilation(tile.instances > 0, iterations=6) & ~ndimage.binary_dilation(
        tile.instances > 0, iterations=2
    )
    # Red light is what hematoxylin absorbs and eosin hardly does.
    density = -np.log((tile.image[0] + 1.0) / 256)
    assert inside.sum() > 30
    assert density[inside].mean() > 1.15 * density[around].mean()


@pytest.mark.parametrize("tissue", CELLULAR)
def test_nuclei_keep_their_size_in_micrometers(tissue):
    def area(size, mpp):
        drawn = [render_tile(tissue, size=size, mpp=mpp, seed=4, slide=s, index=s) for s in range(3)]
        return sum((t.instances > 0).sum() for t in drawn) * mpp**2 / sum(t.instances.max() for t in drawn)

    fine, coarse = area(512, 0.25), area(256, 0.5)
    assert 0.9 < fine / coarse < 1.1
    # Whole nuclei in H&E cover about 15 to 100 µm²; those cut by the border or covered make the mean smaller.
    assert 8 < coarse < 110


@pytest.mark.parametrize("tissue", TISSUES)
def test_half_the_mpp_is_the_same_field_magnified(tissue):
    low = render_tile(tissue, size=96, mpp=0.5, seed=1, slide=1, index=3).image.astype(float)
    high = render_tile(tissue, size=192, mpp=0.25, seed=1, slide=1, index=3).image.astype(float)
    averaged = high.reshape(3, 96, 2, 96, 2).mean((2, 4))
    # What remains is sensor noise and the finest grain, a few gray levels.
    assert np.abs(averaged - low).mean() < 5
    other = render_tile(tissue, size=96, mpp=0.5, seed=1, slide=1, index=4).image.astype(float)
    if tissue not in ("background", "adipose"):
        assert np.abs(averaged - other).mean() > 2 * np.abs(averaged - low).mean()


@pytest.mark.parametrize("tissue", TISSUES)
def test_a_wider_tile_holds_the_narrow_one(tissue):
    narrow = render_tile(tissue, size=80, seed=6, slide=3, index=2)
    wide = render_tile(tissue, size=160, seed=6, slide=3, index=2)
    middle = slice(40, 120)
    gap = wide.image[:, middle, middle].astype(float) - narrow.image
    assert np.abs(gap[:, 4:-4, 4:-4]).mean() < 5
    cut = wide.types[middle, middle] != narrow.types
    assert cut.mean() < 0.01


def test_each_tissue_has_its_own_nuclei():
    def most_common(tissue):
        counts = sum(np.bincount(render_tile(tissue, size=256, slide=s).types.ravel(), minlength=6) for s in range(4))
        return NUCLEUS_TYPES[1 + int(np.argmax(counts[1:]))]

    wanted = {"lymphocytes": "lymphocyte", "muscle": "muscle", "stroma": "fibroblast", "tumor": "tumor"}
    assert {tissue: most_common(tissue) for tissue in wanted} == wanted
    glands = [render_tile("glands", size=256, slide=s).types for s in range(4)]
    assert all((types == 1).any() for types in glands)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tissue", "liver"),
        ("size", 15),
        ("size", 5000),
        ("size", 64.0),
        ("size", True),
        ("mpp", 0.05),
        ("mpp", 9),
        ("mpp", float("nan")),
        ("mpp", "0.5"),
        ("seed", -1),
        ("seed", 2**63),
        ("slide", -1),
        ("index", "0"),
    ],
)
def test_a_bad_argument_is_named(name, value):
    arguments = {"tissue": "tumor", name: value}
    with pytest.raises(EosinError, match=f"^{name}: "):
        render_tile(**arguments)
