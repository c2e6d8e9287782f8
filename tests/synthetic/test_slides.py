import csv
import subprocess
import sys

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from eosin.core.errors import EosinError
from eosin.synthetic import write_slide, write_slides
from eosin.synthetic.scene import SlideScene
from eosin.synthetic.slide_folder import FAULTS


def ramps(x, y, width, height):
    """Pixels that tell their own place: two ramps that wrap around, and a checkerboard."""
    column, row = np.arange(x, x + width)[None, :], np.arange(y, y + height)[:, None]
    return np.stack(np.broadcast_arrays(column % 251, row % 241, (column // 3 + row // 5) % 2 * 255), axis=2).astype(
        np.uint8
    )


def levels_of(path):
    """All levels, finest first, straight from the directories of the file."""
    with tifffile.TiffFile(path) as tiff:
        first = tiff.pages[0]
        pages = [first, *(first.pages or [page for page in tiff.pages[1:] if page.is_tiled])]
        return [page.asarray() for page in pages]


@pytest.mark.parametrize("kind", ["tiff", "svs", "ome-tiff"])
def test_levels_are_exact_means_of_level_0(tmp_path, kind):
    size = (701, 530)
    path = write_slide(
        tmp_path / "a.tif",
        width=size[0],
        height=size[1],
        levels=(1, 2, 6),
        tile=64,
        kind=kind,
        quality=None,
        pattern=ramps,
    )
    whole = ramps(0, 0, *size)
    levels = levels_of(path)
    assert (levels[0] == whole).all()
    for factor, pixels in zip((2, 6), levels[1:], strict=True):
        height, width = size[1] // factor, size[0] // factor
        blocks = whole[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
        mean = blocks.astype(np.float64).mean(axis=(1, 3))
        assert pixels.shape == (height, width, 3)
        assert np.abs(pixels - mean).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("kind", "vendor", "levels"), [("svs", "aperio", 3), ("tiff", "generic-tiff", 3), ("ome-tiff", "generic-tiff", 1)]
)
def test_openslide_and_tifffile_agree(tmp_path, kind, vendor, levels):
    path = write_slide(
        tmp_path / "a.tif", width=1000, height=700, levels=(1, 2, 4), kind=kind, mpp=0.499, seed=2, cell=192
    )
    with openslide.OpenSlide(path) as slide, tifffile.TiffFile(path) as tiff:
        assert slide.properties["openslide.vendor"] == vendor
        assert slide.level_count == levels
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.499, abs=1e-6)
        pages = tiff.series[0].levels
        assert [level.shape for level in pages] == [(700, 1000, 3), (350, 500, 3), (175, 250, 3)]
        for level in range(levels):
            read = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))[:, :, :3]
            assert (read == pages[level].asarray()).all()
        if kind == "svs":
            assert slide.properties["openslide.objective-power"] == "20"
            assert slide.properties["aperio.MPP"] == "0.499"
            assert slide.associated_images["thumbnail"].size == (1000, 700)
            assert tiff.pages[1].is_tiled is False
        if kind == "ome-tiff":
            assert tiff.is_ome
            assert 'PhysicalSizeX="0.499"' in tiff.ome_metadata
            assert len(tiff.pages[0].pages) == 2
        assert "synthetic, not real tissue" in tiff.pages[0].software


@pytest.mark.parametrize("kind", ["tiff", "svs", "ome-tiff"])
def test_no_mpp_is_left_out(tmp_path, kind):
    path = write_slide(tmp_path / "a.tif", width=300, height=300, levels=(1,), kind=kind, mpp=None, pattern=ramps)
    with openslide.OpenSlide(path) as slide:
        assert "openslide.mpp-x" not in slide.properties
        assert "aperio.MPP" not in slide.properties
    with tifffile.TiffFile(path) as tiff:
        assert "PhysicalSize" not in (tiff.ome_metadata or "")
        assert tiff.pages[0].tags["ResolutionUnit"].value != 3


def test_two_axes_may_differ_in_scale(tmp_path):
    path = write_slide(tmp_path / "a.tif", width=300, height=300, levels=(1,), mpp=(0.25, 0.5), pattern=ramps)
    with openslide.OpenSlide(path) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5)
    with pytest.raises(EosinError, match="^mpp: an SVS holds one number"):
        write_slide(tmp_path / "b.svs", width=300, height=300, levels=(1,), mpp=(0.25, 0.5), kind="svs")


def test_a_window_is_part_of_the_whole():
    scene = SlideScene(900, 700, seed=4, tissue=0.5, pen=["green", "black"], border=30, cell=192)
    whole = scene.pixels(0, 0, 900, 700)
    for x, y, width, height in ((0, 0, 900, 64), (0, 640, 900, 60), (333, 101, 257, 500), (899, 699, 1, 1)):
        part = scene.pixels(x, y, width, height)
        # Sums in another order may round differently.
        assert np.abs(part.astype(int) - whole[y : y + height, x : x + width]).max() <= 1
    assert (whole[:30] == 0).all()
    assert (whole[:, -30:] == 0).all()
    assert whole[30:-30, 30:-30].mean() > 100


def test_tissue_has_the_share_asked_for():
    for share in (0.0, 0.15, 0.6, 1.0):
        mask = SlideScene(4000, 3000, seed=1, tissue=share, cell=192).tissue_mask((300, 400))
        assert mask.mean() == pytest.approx(share, abs=0.01)


def test_tissue_is_darker_than_glass_and_no_two_tiles_are_alike():
    scene = SlideScene(4096, 4096, seed=1, tissue=0.5, cell=192)
    pixels = scene.pixels(0, 0, 4096, 4096)
    mask = scene.tissue_mask((4096, 4096))
    assert pixels[mask].mean() < pixels[~mask].mean() - 20
    inside = np.asarray(Image.fromarray(mask).resize((16, 16), Image.Resampling.BOX))
    tiles = [
        pixels[256 * row : 256 * row + 256, 256 * column : 256 * column + 256] for row, column in np.argwhere(inside)
    ]
    assert len({tile.tobytes() for tile in tiles}) == len(tiles) > 50


def test_the_same_seed_gives_the_same_file(tmp_path):
    made = [
        write_slide(tmp_path / name, width=600, height=500, seed=seed, cell=192).read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 0}, "^width: "),
        ({"tile": 100}, "^tile: "),
        ({"levels": (2, 4)}, "^levels: "),
        ({"levels": (1, 400)}, "^levels: "),
        ({"mpp": 0.0}, "^mpp: "),
        ({"kind": "ndpi"}, "^kind: "),
        ({"quality": 0}, "^quality: "),
        ({"tissue": 1.5}, "^tissue: "),
        ({"pen": ("pink",)}, "^pen: no ink is called 'pink'"),
    ],
)
def test_wrong_arguments_are_named_and_leave_nothing(tmp_path, wrong, message):
    with pytest.raises(EosinError, match=message):
        write_slide(tmp_path / "a.tif", **({"width": 300, "height": 300} | wrong))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "slides"
    return folder, write_slides(folder, 14, broken=0.5, seed=3, shortest=400, longest=800)


def test_a_messy_folder_holds_what_its_table_says(messy):
    folder, made = messy
    assert len(made) == 14
    with (folder / "made.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [slide.file for slide in made]
    assert [row["fault"] for row in rows] == [slide.fault for slide in made]
    faults = [slide.fault for slide in made if slide.fault]
    assert sorted(faults) == sorted([*FAULTS, FAULTS[0]])
    slides = {
        path.relative_to(folder).as_posix()
        for path in folder.glob("site-*/**/P*")
        if path.is_file() and "all sites" not in str(path)
    }
    assert slides == {slide.file for slide in made}
    assert (folder / "site-1" / "all sites").resolve() == folder.resolve()
    names = [slide.file.rpartition("/")[2] for slide in made]
    assert len(names) - len(set(names)) == 1


def test_each_fault_is_what_it_is_called(messy):
    folder, made = messy
    for slide in made:
        path = folder / slide.file
        if slide.fault == "zero bytes":
            assert path.stat().st_size == 0
        elif slide.fault == "not an image":
            assert b"synthetic" in path.read_bytes()
        elif slide.fault == "truncated":
            with pytest.raises((openslide.OpenSlideError, ValueError)), openslide.OpenSlide(path) as opened:
                opened.read_region((0, 0), 0, opened.dimensions)
                levels_of(path)
        else:
            with openslide.OpenSlide(path) as opened:
                assert opened.dimensions == (slide.width, slide.height)
                mpp = opened.properties.get("openslide.mpp-x")
                assert (mpp is None) == (slide.mpp is None) == (slide.fault == "no mpp")
                if slide.fault == "smaller than a tile":
                    assert max(opened.dimensions) < 224


def test_the_command_writes_a_folder(tmp_path):
    command = [sys.executable, "-m", "eosin.synthetic"]
    made = subprocess.run(
        [*command, "--slides", str(tmp_path / "made"), "--count", "1"], check=True, capture_output=True, text=True
    )
    assert "1 slides, 0 of them broken" in made.stderr
    assert (tmp_path / "made" / "site-1" / "P0000-1.svs").is_file()
    again = subprocess.run([*command, "--slides", str(tmp_path / "made")], capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    neither = subprocess.run(command, capture_output=True, text=True, check=False)
    assert neither.returncode == 2
    assert neither.stderr.startswith("give --sheet")
