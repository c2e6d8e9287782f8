"""Slides as a source of tiles: what a view shows depends on the slides, the seed, the step and the position alone."""

from __future__ import annotations

import importlib
import io
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from eosin.core.errors import EosinError
from eosin.data import Quarantine, TrainingLoader, UnreadableImage, iterate_tiles, load_square, open_tiles
from eosin.data import slide_index as index_module
from eosin.data import slides as slides_module
from eosin.data.export import export_tiles
from eosin.data.slide_index import Mask, tissue_mask
from eosin.data.slide_options import Scales
from eosin.slides import TissueConfig, open_slide
from eosin.slides.grid import Grid, coverage

GLASS, TISSUE = 242, (slice(300, 1000), slice(200, 1300))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("EOSIN_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "slides"


def picture(seed: int = 0, hole: tuple[slice, slice] | None = None) -> np.ndarray:
    """Glass with a rectangle of stained texture, 1536×1280 px, in which no place looks like another."""
    pixels = np.full((1280, 1536, 3), GLASS, np.uint8)
    texture = np.random.default_rng(seed).integers(0, 60, (160, 192, 3), dtype=np.uint8)
    texture = np.asarray(Image.fromarray(texture).resize((1536, 1280), Image.Resampling.BICUBIC))
    pixels[TISSUE] = (texture + np.array([150, 60, 130], np.uint8))[TISSUE]
    if hole is not None:
        pixels[hole] = GLASS
    return pixels


def write(path: Path, pixels: np.ndarray, mpp: float | None = 0.5) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scale = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "deflate"} | scale
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, **options)
        half = np.asarray(Image.fromarray(pixels).reduce(2))
        if mpp is not None:
            options["resolution"] = (1e4 / mpp / 2, 1e4 / mpp / 2)
        tiff.write(half, subfiletype=1, **options)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two slides of 0.5 µm/px."""
    write(tmp_path / "slides" / "a.tif", picture(0))
    write(tmp_path / "slides" / "deep" / "b.tif", picture(1))
    return tmp_path / "slides"


def loaded(tiles, workers=0, start=0, steps=4, world=1, rank=0, batch=4):
    loader = TrainingLoader(
        tiles,
        size=48,
        batch_size=batch // world,
        seed=5,
        start_step=start,
        steps=steps,
        workers=workers,
        world=world,
        rank=rank,
        quarantine=Quarantine(None),
    )
    return list(loader)


def pixels_of(batches) -> np.ndarray:
    return np.concatenate([batch.images.numpy() for batch in batches])


def test_its_tiles_are_cells_of_tissue(folder):
    tiles = open_tiles(f"slides:{folder}?mpp=0.5&size=128")
    assert sorted(set(tiles.slide)) == ["a", "deep/b"]
    assert tiles.names[0] == f"a/x{int(tiles.x[0])}_y{int(tiles.y[0])}"
    assert len(set(tiles.names)) == len(tiles)
    np.testing.assert_array_equal(tiles.mpp, 0.5)
    assert (tiles.patient, tiles.label, tiles.split) == (None, None, None)
    # Exactly the cells of the grid of which at least half lies in the rectangle; mask pixels are 16 px wide.
    truth = Mask(np.packbits(picture()[..., 1] < 200, axis=1), (1280, 1536), (1536, 1280))
    shares = {(x, y): truth.share(x, y, 128, 128) for x in range(0, 1409, 128) for y in range(0, 1153, 128)}
    found = {(int(x), int(y)) for x, y, slide in zip(tiles.x, tiles.y, tiles.slide, strict=True) if slide == "a"}
    assert {cell for cell, share in shares.items() if share > 0.65} <= found
    assert found <= {cell for cell, share in shares.items() if share > 0.35}


def test_a_tile_is_read_without_loss(folder):
    tiles = open_tiles(f"slides:{folder / 'a.tif'}?mpp=0.5&size=128")
    x, y = int(tiles.x[3]), int(tiles.y[3])
    expected = picture(0)[y : y + 128, x : x + 128].transpose(2, 0, 1)
    np.testing.assert_array_equal(tiles.image(3), expected)
    assert Image.open(io.BytesIO(tiles.read(3))).format == "PNG"
    np.testing.assert_array_equal(load_square(tiles, 3, 128), expected)


def test_another_size_is_read_at_its_own_resolution_not_resized(folder):
    tiles = open_tiles(f"slides:{folder / 'a.tif'}?mpp=1.0&size=128")
    x, y = int(tiles.x[2]), int(tiles.y[2])
    with open_slide(folder / "a.tif") as slide:
        for size in (64, 96, 128, 200):
            expected = slide.read(x, y, 128 / size, size, size).transpose(2, 0, 1)
            np.testing.assert_array_equal(load_square(tiles, 2, size), expected)
    images, rows = next(iterate_tiles(tiles, size=96, batch_size=5, workers=0, quarantine=Quarantine(None)))
    np.testing.assert_array_equal(images[2].numpy(), load_square(tiles, 2, 96))
    assert list(rows) == [0, 1, 2, 3, 4]


def test_more_pixels_than_the_slide_has_are_interpolated(folder):
    tiles = open_tiles(f"slides:{folder / 'a.tif'}?mpp=0.5&size=64")
    large = load_square(tiles, 0, 256)
    small = tiles.image(0)
    assert large.shape == (3, 256, 256)
    reduced = large.reshape(3, 64, 4, 64, 4).mean((2, 4))
    assert np.abs(reduced - small).mean() < 2


def test_views_in_the_middle_of_the_draws_are_the_cells(folder):
    tiles = open_tiles(f"slides:{folder}?mpp=0.5&size=128")
    pixels, mpp = tiles.source.view(4, 128, np.array([0.5, 0.5, 0.3, 0.9]))
    assert mpp == 0.5
    np.testing.assert_array_equal(pixels, tiles.image(4))


def test_views_lie_on_tissue_anywhere_near_their_cell(folder):
    tiles = open_tiles(f"slides:{folder / 'a.tif'}?mpp=0.5..1.0&size=128")
    source = tiles.source
    truth = Mask(np.packbits(picture()[..., 1] < 200, axis=1), (1280, 1536), (1536, 1280))
    indexed = source.slides[0]
    with open_slide(folder / "a.tif") as slide:
        mask = index_module.tissue_mask(slide, indexed, source.settings.tissue, source.home)
    jitters, resolutions = [], []
    for row, uniforms in enumerate(np.random.default_rng(0).random((400, 4))):
        cell = row % len(tiles)
        x, y, mpp = source._place(cell, indexed, mask, uniforms)
        side = 128 * mpp / 0.5
        assert 0 <= x <= 1536 - side
        assert 0 <= y <= 1280 - side
        assert truth.share(x, y, side, side) > 0.35, "half of it by the mask, of pixels of 8 µm"
        jitters.append((x + side / 2 - tiles.x[cell] - 128, y + side / 2 - tiles.y[cell] - 128))
        resolutions.append(mpp)
    assert np.abs(jitters).max() <= 128
    # As wide as the uniform distribution over a cell, but for those that were drawn back.
    assert (np.std(jitters, axis=0) > 0.75 * 256 / math.sqrt(12)).all()
    assert 0.5 <= min(resolutions) < 0.52
    assert 0.97 < max(resolutions) <= 1.0
    # The logarithm of a log-uniform draw is uniform: its mean is in the middle.
    assert np.mean(np.log2(resolutions)) == pytest.approx(-0.5, abs=0.05)


def test_a_view_shows_the_slide_where_it_says(folder):
    tiles = open_tiles(f"slides:{folder / 'a.tif'}?mpp=0.5..1.0&size=128")
    source, uniforms = tiles.source, np.array([0.2, 0.9, 0.4, 0.0])
    row = int(np.flatnonzero((tiles.x == 512) & (tiles.y == 512))[0])
    pixels, mpp = source.view(row, 96, uniforms)
    at_rest = 0.5 * 2**0.4
    assert mpp == pytest.approx(at_rest * 128 / 96)
    side = 128 * at_rest / 0.5
    corner = [round(512 + 256 * value - side / 2) for value in (0.2, 0.9)]
    with open_slide(folder / "a.tif") as slide:
        expected = slide.read(corner[0], corner[1], mpp, 96, 96)
    np.testing.assert_array_equal(pixels, expected.transpose(2, 0, 1))


@pytest.mark.parametrize(("mpp", "block"), [(0.5, 1), (1.0, 2), (2.0, 4), (0.75, 1)])
def test_views_keep_to_whole_pixels(folder, mpp, block):
    tiles = open_tiles(f"slides:{folder / 'a.tif'}?mpp={mpp}&size=96")
    source, size = tiles.source, round(96 * mpp / 0.5)
    for uniforms in np.random.default_rng(1).random((5, 4)):
        pixels, _ = source.view(1, 96, uniforms)
        x, y, _ = source._place(1, source.slides[0], source._open.get(0, source.slides[0])[1], uniforms)
        assert x % block == y % block == 0
        region = picture(0)[int(y) : int(y) + size, int(x) : int(x) + size]
        if mpp != 0.75:
            blocks = region.reshape(96, block, 96, block, 3).mean((1, 3)).transpose(2, 0, 1)
            # The level is rounded once, the view of its pixels once more.
            assert np.abs(pixels - blocks).max() <= (1 if block == 4 else 0.5)


def test_in_a_hole_a_view_is_the_cell_itself(tmp_path):
    # A ring of tissue: the cell has enough, but nothing near its center at the finer resolution has.
    pixels = np.full((512, 512, 3), GLASS, np.uint8)
    pixels[:] = picture()[400:912, 400:912]
    pixels[88:424, 88:424] = GLASS
    write(tmp_path / "ring.tif", pixels)
    tiles = open_tiles(f"slides:{tmp_path / 'ring.tif'}?mpp=0.5,2.0&size=128")
    assert len(tiles) == 1
    image, mpp = tiles.source.view(0, 128, np.array([0.5, 0.5, 0.0, 0.0]))
    assert mpp == 2.0
    np.testing.assert_array_equal(image, tiles.image(0))


@pytest.mark.parametrize("options", ["mpp=0.5", "mpp=0.5..1.0", "mpp=0.5,1.0"])
def test_batches_depend_on_neither_workers_nor_restarts_nor_processes(folder, options):
    tiles = open_tiles(f"slides:{folder}?{options}&size=96")
    alone = loaded(tiles)
    assert [batch.mpp.shape for batch in alone] == [(4,)] * 4
    for other in (loaded(tiles, workers=2), loaded(pickle.loads(pickle.dumps(tiles)))):
        np.testing.assert_array_equal(pixels_of(other), pixels_of(alone))
        np.testing.assert_array_equal([batch.mpp for batch in other], [batch.mpp for batch in alone])
    np.testing.assert_array_equal(pixels_of(loaded(tiles, start=2)), pixels_of(alone[2:]))
    parts = [loaded(tiles, world=2, rank=rank) for rank in (0, 1)]
    together = [np.concatenate([pixels_of([part[step]]) for part in parts]) for step in range(4)]
    np.testing.assert_array_equal(np.concatenate(together), pixels_of(alone))


def test_each_pass_sees_a_tile_from_elsewhere(folder):
    tiles = open_tiles(f"slides:{folder}?mpp=0.5..1.0&size=256")
    steps = 2 * len(tiles) // 4
    batches = loaded(tiles, steps=steps)
    rows = np.concatenate([batch.indices for batch in batches])
    mpp = np.concatenate([batch.mpp for batch in batches])
    images = pixels_of(batches)
    first, second = np.flatnonzero(rows == rows[0])[:2]
    assert not np.array_equal(images[first], images[second])
    assert mpp[first] != mpp[second]


SEES_MPP = """
import torch

def sees_mpp(images, step, positions, mpp):
    return [torch.from_numpy(mpp.copy())]
"""


def test_workers_that_make_views_are_told_the_drawn_resolution(folder, tmp_path, monkeypatch):
    """By a function in a module that a worker can import, however it was started."""
    (tmp_path / "views_for_tests.py").write_text(SEES_MPP)
    monkeypatch.syspath_prepend(tmp_path)
    make_views = importlib.import_module("views_for_tests").sees_mpp
    tiles = open_tiles(f"slides:{folder}?mpp=0.5..1.0&size=96")
    options = {"size": 48, "batch_size": 4, "seed": 5, "steps": 2, "quarantine": Quarantine(None)}
    for batch in TrainingLoader(tiles, workers=2, make_views=make_views, **options):
        np.testing.assert_array_equal(batch.views[0].numpy(), batch.mpp)


def test_few_slides_stay_open(tmp_path, monkeypatch):
    for number in range(4):
        write(tmp_path / "slides" / f"{number}.tif", picture(number))
    tiles = open_tiles(f"slides:{tmp_path / 'slides'}?size=256")
    monkeypatch.setattr(slides_module, "_OPEN_SLIDES", 2)
    living: set[str] = set()
    most = []

    def watched(path, **options):
        slide = open_slide(path, **options)
        close = slide.close
        living.add(path.name)
        most.append(len(living))
        slide.close = lambda: (living.discard(path.name), close())
        return slide

    monkeypatch.setattr(index_module, "open_slide", watched)
    first = [tiles.image(row) for row in range(0, len(tiles), 3)]
    again = [tiles.image(row) for row in range(0, len(tiles), 3)]
    assert max(most) == 2
    assert len(most) == 8, "each slide once a pass: the last used stay open"
    np.testing.assert_array_equal(first, again)


def test_open_slides_are_neither_pickled_nor_taken_over_from_a_parent(folder):
    tiles = open_tiles(f"slides:{folder}?size=256")
    before = tiles.image(0)
    assert len(pickle.dumps(tiles.source)) < 20_000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(tiles)).image(0), before)
    own = next(iter(tiles.source._open._slides.values()))[0]
    tiles.source._open._process = -1
    tiles.image(0)
    assert next(iter(tiles.source._open._slides.values()))[0] is not own


def test_broken_slides_are_named_and_left_out(folder):
    (folder / "empty.svs").touch()
    (folder / "text.tif").write_text("no slide")
    write(folder / "nompp.tif", picture(2), mpp=None)
    write(folder / "glass.tif", np.full((1280, 1536, 3), GLASS, np.uint8))
    write(folder / "small.tif", picture()[300:400, 300:400])
    write(folder / "coarse.tif", picture(), mpp=4.0)
    whole = (folder / "a.tif").read_bytes()
    (folder / "cut.tif").write_bytes(whole[: len(whole) // 2])
    tiles = open_tiles(f"slides:{folder}?size=128")
    assert sorted(set(tiles.slide)) == ["a", "deep/b"]
    told = "; ".join(tiles.remarks)
    for name in ("empty", "text", "nompp", "glass", "small", "coarse", "cut"):
        assert f"'{name}'" in told
    assert "source_mpp=" in told
    assert "\n" not in tiles.describe()


def test_no_slide_left(tmp_path):
    (tmp_path / "slides").mkdir()
    for number in range(3):
        (tmp_path / "slides" / f"{number}.svs").touch()
    with pytest.raises(EosinError, match="none of 3 slides can be used; first '0'"):
        open_tiles(f"slides:{tmp_path / 'slides'}")


def test_many_broken_slides_do_not_fill_the_screen(folder):
    for number in range(15):
        (folder / f"e{number:02d}.svs").touch()
    tiles = open_tiles(f"slides:{folder}")
    assert len(tiles.remarks) == 11
    assert tiles.remarks[-1].startswith("and 5 more")


def test_the_resolution_may_be_given(tmp_path):
    write(tmp_path / "slides" / "a.tif", picture(), mpp=None)
    write(tmp_path / "slides" / "b.tif", picture(), mpp=None)
    assert len(open_tiles(f"slides:{tmp_path / 'slides'}?source_mpp=0.25&size=128")) < len(
        open_tiles(f"slides:{tmp_path / 'slides'}?source_mpp=0.5&size=128")
    )
    table = tmp_path / "mpp.csv"
    table.write_text("slide,mpp\na.tif,0.5\nb,\nother,1.0\n")
    tiles = open_tiles(f"slides:{tmp_path / 'slides'}?source_mpp={table}")
    assert set(tiles.slide) == {"a"}


def test_a_number_fills_what_files_lack_and_a_table_goes_before_them(folder, tmp_path, monkeypatch):
    write(folder / "nompp.tif", picture(2), mpp=None)
    plain = open_tiles(f"slides:{folder}?size=128")
    looked_at = []
    found = index_module.tissue_mask
    monkeypatch.setattr(index_module, "default_workers", lambda: 0)
    monkeypatch.setattr(
        index_module,
        "tissue_mask",
        lambda slide, indexed, *rest: looked_at.append(indexed.name) or found(slide, indexed, *rest),
    )
    filled = open_tiles(f"slides:{folder}?size=128&source_mpp=0.25")
    assert set(filled.slide) == {"a", "deep/b", "nompp"}
    assert looked_at == ["nompp"], "what is known of the others holds"
    assert sum(filled.slide == "a") == sum(plain.slide == "a")
    other = open_tiles(f"slides:{folder}?size=128&source_mpp=0.5")
    assert looked_at == ["nompp", "nompp"]
    assert sum(other.slide == "nompp") > sum(filled.slide == "nompp")
    (tmp_path / "mpp.csv").write_text("slide,mpp\na,0.25\n")
    told = open_tiles(f"slides:{folder}?size=128&source_mpp={tmp_path / 'mpp.csv'}")
    assert sum(told.slide == "a") < sum(plain.slide == "a")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("slide,mpp\na,fine\n", "mpp of 'a': 'fine' is not a number"),
        ("slide,mpp\na,500\n", "0.05 and 20"),
        ("name,mpp\na,1\n", "no column 'slide'; its columns: 'name', 'mpp'"),
    ],
)
def test_a_bad_table_of_resolutions(folder, tmp_path, content, words):
    (tmp_path / "mpp.csv").write_text(content)
    with pytest.raises(EosinError, match=words):
        open_tiles(f"slides:{folder}?source_mpp={tmp_path / 'mpp.csv'}")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("mpp=fine", "mpp 'fine'"),
        ("mpp=0.5..1.0..2.0", "range"),
        ("mpp=0.0001", "between 0.05"),
        ("mpp=nan", "between 0.05"),
        ("mp=0.5", "did you mean 'mpp'"),
        ("size=2", "size"),
        ("tissue=2", "tissue"),
        ("size", "no option"),
        ("size=64&size=32", "twice"),
        ("source_mpp=much", "source_mpp"),
        ("source_mpp=none.csv", "not a readable CSV"),
    ],
)
def test_wrong_options_are_told_in_one_line(folder, options, words):
    with pytest.raises(EosinError, match=words) as error:
        open_tiles(f"slides:{folder}?{options}")
    assert "\n" not in str(error.value)


def test_a_slide_without_its_scheme(folder):
    (folder / "x.svs").touch()
    with pytest.raises(EosinError, match="write slides:"):
        open_tiles(folder / "x.svs")
    with pytest.raises(EosinError, match="no labels"):
        open_tiles(f"slides:{folder}", label_column="grade")


def test_scales():
    assert Scales.parse("1.0,0.25", "x").values == (0.25, 1.0)
    assert Scales.parse("0.5..0.5", "x") == Scales((0.5,))
    some = Scales.parse("0.25,0.5,1.0", "x")
    assert [some.draw(value, 0.25) for value in (0.0, 0.34, 0.99)] == [0.25, 0.5, 1.0]
    assert [some.draw(value, 0.2525) for value in (0.0, 0.34, 0.99)] == [0.25, 0.5, 1.0]
    assert [some.draw(value, 0.5) for value in (0.0, 0.49, 0.5)] == [0.5, 0.5, 1.0], "nothing finer than the slide"
    assert Scales((0.5,)).draw(0.7, 0.504) == 0.5
    between = Scales.parse("0.25..1.0", "x")
    assert between.draw(0.5, 0.1) == pytest.approx(0.5)
    assert between.draw(0.0, 0.4) == pytest.approx(0.4)
    assert between.draw(0.9, 2.0) == 1.0


def test_the_second_start_opens_no_slide(folder, monkeypatch):
    before = open_tiles(f"slides:{folder}?size=128")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a slide was opened")

    with monkeypatch.context() as patched:
        patched.setattr(index_module, "open_slide", refuse)
        after = open_tiles(f"slides:{folder}?size=128")
    assert list(after.names) == list(before.names)
    assert after.content_hash() == before.content_hash()
    np.testing.assert_array_equal(pixels_of(loaded(after)), pixels_of(loaded(before)))


def test_a_replaced_slide_is_looked_at_again(folder):
    before = open_tiles(f"slides:{folder}?size=128")
    write(folder / "a.tif", picture(7, hole=(slice(300, 700), slice(200, 1300))))
    after = open_tiles(f"slides:{folder}?size=128")
    assert sum(after.slide == "a") < sum(before.slide == "a")
    assert sum(after.slide == "deep/b") == sum(before.slide == "deep/b")
    assert after.content_hash() != before.content_hash()


def test_a_slide_replaced_while_it_is_used(folder):
    tiles = open_tiles(f"slides:{folder / 'a.tif'}?size=128")
    write(folder / "a.tif", picture()[:, :1024])
    with pytest.raises(UnreadableImage, match="replaced"):
        tiles.image(0)


def test_a_repaired_slide_is_taken_up(folder):
    whole = (folder / "a.tif").read_bytes()
    (folder / "a.tif").write_bytes(whole[:1000])
    assert set(open_tiles(f"slides:{folder}").slide) == {"deep/b"}
    (folder / "a.tif").write_bytes(whole)
    assert set(open_tiles(f"slides:{folder}").slide) == {"a", "deep/b"}


@pytest.mark.parametrize("damage", ["remove", "cut", "scribble"])
def test_what_is_kept_may_be_lost_or_damaged(folder, home, damage):
    before = open_tiles(f"slides:{folder}?mpp=0.5..1.0&size=128")
    expected = pixels_of(loaded(before))
    for path in [*home.glob("*.parquet"), *home.glob("tissue/*")]:
        data = path.read_bytes()
        path.unlink()
        if damage != "remove":
            path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"scribble")
    np.testing.assert_array_equal(pixels_of(loaded(pickle.loads(pickle.dumps(before)))), expected)
    after = open_tiles(f"slides:{folder}?mpp=0.5..1.0&size=128")
    assert list(after.names) == list(before.names)
    np.testing.assert_array_equal(pixels_of(loaded(after)), expected)


def test_a_place_for_what_is_found_that_cannot_be_written(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EOSIN_HOME", str(tmp_path / "file"))
    with pytest.raises(EosinError, match="file"):
        open_tiles(f"slides:{folder}")


def test_where_a_slide_is_damaged_other_tiles_take_the_place(folder):
    tiles = open_tiles(f"slides:{folder}?size=128")
    path = folder / "a.tif"
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[6 + 2], page.databytecounts[6 + 2]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = b"\xff" * count
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    reasons = {}
    for row in range(len(tiles)):
        try:
            tiles.image(row)
        except UnreadableImage as error:
            reasons[row] = str(error)
    hit = (tiles.slide == "a") & (tiles.x >= 512) & (tiles.x < 768) & (tiles.y >= 256) & (tiles.y < 512)
    assert list(reasons) == list(np.flatnonzero(hit)), "those over the damaged source tile, and no other"
    assert all(str(path) in reason for reason in reasons.values())
    quarantine = Quarantine(None, limit=0.5)
    loader = TrainingLoader(tiles, size=128, batch_size=4, seed=0, steps=len(tiles) // 4, quarantine=quarantine)
    assert pixels_of(list(loader)).min() > 0
    assert quarantine.count > 0


def test_the_share_of_tissue_is_that_of_coverage():
    rng = np.random.default_rng(0)
    mask = rng.random((37, 51)) < 0.5
    size = (5000, 3600)
    packed = Mask(np.packbits(mask, axis=1), mask.shape, size)
    x, y = rng.integers(-300, 5000, 200), rng.integers(-300, 3600, 200)
    for width, height in ((100.0, 97.5), (1234.5, 800.25), (9.0, 9.0)):
        grid = Grid(x, y, width, height, 0.5, 10)
        found = [packed.share(float(a), float(b), width, height) for a, b in zip(x, y, strict=True)]
        np.testing.assert_allclose(found, coverage(mask, grid, size), atol=1e-8)


def test_tissue_lies_where_it_is_at_the_far_end_of_a_slide(tmp_path):
    """The last pixel of the thumbnail reaches out of the slide: its others must not move for that."""
    edge = 4096
    # 4,529 px of 0.5 µm are 283.06 px of 8 µm.
    pixels = np.full((1024, 4529, 3), GLASS, np.uint8)
    pixels[:, :edge] = (180, 80, 160)
    path = write(tmp_path / "a.tif", pixels)
    source = open_tiles(f"slides:{path}?size=128").source
    with open_slide(path) as slide:
        mask = tissue_mask(slide, source.slides[0], TissueConfig(), source.home)
    assert mask.share(edge - 64, 256, 128, 128) == pytest.approx(0.5, abs=1e-6)


def test_slides_can_be_exported(folder, tmp_path):
    tiles = open_tiles(f"slides:{folder}?size=256")
    summary = export_tiles(tiles, tmp_path / "out", "folder", workers=2)
    back = open_tiles(f"csv:{tmp_path / 'out' / 'index.csv'}")
    assert summary.tiles == len(tiles)
    assert list(back.slide) == list(tiles.slide)
    np.testing.assert_array_equal(back.image(1), tiles.image(1))


def test_real_slides(real_data):
    tiles = open_tiles(f"slides:{real_data / 'slides'}?mpp=0.5..1.0&size=224")
    assert "CMU-1-Small-Region" in set(tiles.slide)
    assert any("tcga" in remark and "source_mpp=" in remark for remark in tiles.remarks)
    batch = loaded(tiles, steps=1, batch=2)[0]
    scale = 224 / 48
    assert (batch.mpp >= 0.499 * scale).all()
    assert (batch.mpp <= 1.0 * scale).all()
    assert batch.images.float().std() > 5


def test_options_without_slides_are_refused() -> None:
    with pytest.raises(EosinError, match=r"no slides named; write slides:DIR\?mpp=0.5"):
        open_tiles("slides:?mpp=0.5")
