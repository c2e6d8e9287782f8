"""Reading pyramids with known patterns: at every level, at any scale, without a shift."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eosin.slides import Slide, UnusableSlide, open_slide, sampling
from eosin.slides import slide as slide_module
from eosin.slides.openslide_backend import OpenSlideSlide
from eosin.slides.tiff_decode import Pixels

WIDTH, HEIGHT, SLOPE = 509, 467, 0.5  # odd, and prime: no level divides them


def ramp() -> np.ndarray:
    """Red rises to the right, green downwards, by half a grey level per px; as floats."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([SLOPE * x, SLOPE * y, np.full_like(x, 100)], axis=2).astype(np.float64)


def reduced(pixels: np.ndarray, factor: int, up: bool) -> np.ndarray:
    """Means of blocks; what is left over at the edges is dropped, or, rounding up, makes smaller blocks."""
    height, width = pixels.shape[:2]
    rows = -(-height // factor) if up else height // factor
    columns = -(-width // factor) if up else width // factor
    out = np.zeros((rows, columns, 3))
    for row in range(rows):
        for column in range(columns):
            block = pixels[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            out[row, column] = block.mean((0, 1))
    return out


def write_levels(
    path: Path, levels: list[np.ndarray], mpp: float | tuple[float, float] | None = 0.25, **options
) -> Path:
    """Write a pyramid of tiles; the resolution tags hold the scale."""
    x, y = mpp if isinstance(mpp, tuple) else (mpp, mpp)
    settings = {"tile": (128, 112), "photometric": "rgb", "metadata": None} | options
    if x and y:
        settings |= {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        for index, pixels in enumerate(levels):
            writer.write(pixels, subfiletype=int(index > 0), **settings)
    return path


def rounded(pixels: np.ndarray) -> np.ndarray:
    return np.floor(pixels + 0.5).astype(np.uint8)


@pytest.fixture(scope="module", params=[False, True], ids=["down", "up"])
def ramp_slide(request, tmp_path_factory):
    """A slide of 0.25 µm/px with levels of 1, 2, 4 and 16, their sizes rounded down or up."""
    levels = [rounded(ramp())] + [rounded(reduced(ramp(), factor, request.param)) for factor in (2, 4, 16)]
    path = write_levels(tmp_path_factory.mktemp("ramp") / "ramp.tif", levels)
    with open_slide(path) as slide:
        yield slide


def assert_ramp(pixels: np.ndarray, slide: Slide, x: float, y: float, mpp: float, tolerance: float) -> None:
    """Each pixel inside the slide has the ramp's value at its center.

    The mean over a level's steps differs from that over the line by up to an eighth of a step, forth and back: on
    average over pixels it does not.
    """
    step = mpp / slide.mpp[0], mpp / slide.mpp[1]
    tolerance += SLOPE * max(step) / 8
    across = x + (np.arange(pixels.shape[1]) + 0.5) * step[0]
    down = y + (np.arange(pixels.shape[0]) + 0.5) * step[1]
    columns = (across - step[0] / 2 >= 0) & (across + step[0] / 2 <= slide.width - 16)
    rows = (down - step[1] / 2 >= 0) & (down + step[1] / 2 <= slide.height - 16)
    if columns.any() and rows.any():
        inside = pixels[np.ix_(rows, columns)].astype(float)
        errors = inside[..., 0] - SLOPE * (across[columns] - 0.5), inside[..., 1] - SLOPE * (down[rows] - 0.5)[:, None]
        assert max(np.abs(error).max() for error in errors) <= tolerance
        if min(inside.shape[:2]) >= 12 and tolerance < 3:
            assert max(abs(error.mean()) for error in errors) < 0.8


def test_levels_of_odd_sizes_have_whole_downsamples(ramp_slide):
    assert [level.downsample for level in ramp_slide.levels] == [(1, 1), (2, 2), (4, 4), (16, 16)]
    assert (ramp_slide.width, ramp_slide.height) == (WIDTH, HEIGHT)
    assert ramp_slide.mpp == (pytest.approx(0.25), pytest.approx(0.25))
    assert ramp_slide.mpp_source == "TIFF resolution"


@given(
    st.floats(0.25, 9.0),
    st.floats(-30, 400),
    st.floats(-30, 400),
    st.integers(1, 70),
    st.integers(1, 70),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_no_shift_at_any_scale_and_place(ramp_slide, mpp, x, y, width, height):
    pixels = ramp_slide.read(x, y, mpp, width, height)
    assert pixels.shape == (height, width, 3)
    # Two roundings to 8 bits; where a level is taken as it is, up to a quarter of its px besides.
    assert_ramp(pixels, ramp_slide, x, y, mpp, 1.02 + 0.25 * SLOPE * mpp / 0.25)


@pytest.mark.parametrize("mpp", [0.25, 0.3, 0.5, 0.7, 1.0, 1.3, 2.0, 4.0, 4.7, 6.0])
def test_no_shift_at_every_level(ramp_slide, mpp):
    """At 16 px of level 0 per px, a shift of an eighth of a pixel would be a whole grey level."""
    pixels = ramp_slide.read(17.0, 31.0, mpp, 24, 20)
    assert_ramp(pixels, ramp_slide, 17.0, 31.0, mpp, 1.02)


def test_the_level_is_the_nearest_finer_one(ramp_slide, monkeypatch):
    used = []
    read = ramp_slide._backend.read
    monkeypatch.setattr(ramp_slide._backend, "read", lambda level, *region: used.append(level) or read(level, *region))
    for mpp in (0.25, 0.49, 0.5, 0.99, 1.0, 3.99, 4.0, 9.0):
        ramp_slide.read(0, 0, mpp, 4, 4)
    assert used == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_level_read_exactly_is_a_copy_of_it(ramp_slide):
    for index, level in enumerate(ramp_slide.levels):
        factor = int(level.downsample[0])
        stored = ramp_slide.read_level(index, 3, 2, 20, 16)
        np.testing.assert_array_equal(ramp_slide.read(3 * factor, 2 * factor, 0.25 * factor, 20, 16), stored)


def test_read_is_the_weighted_mean_of_the_level(ramp_slide):
    whole = ramp_slide.read_level(1, 0, 0, ramp_slide.levels[1].width, ramp_slide.levels[1].height)
    got = ramp_slide.read(10.5, 21.25, 0.25 * 3.2, 40, 30)
    columns = weights(10.5 / 2, 1.6, 40, whole.shape[1])
    rows = weights(21.25 / 2, 1.6, 30, whole.shape[0])
    exact = averaged(whole, rows, columns)
    assert np.abs(got - exact).max() <= 0.501


def averaged(pixels: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.tensordot(columns, np.tensordot(rows, pixels.astype(float), (1, 0)), (1, 1)).transpose(1, 0, 2)


def weights(start: float, step: float, count: int, size: int) -> np.ndarray:
    low = start + step * np.arange(count)[:, None]
    source = np.arange(size)[None]
    return np.clip(np.minimum(low + step, source + 1) - np.maximum(low, source), 0, None) / step


def test_outside_is_white(ramp_slide):
    level = ramp_slide.read_level(0, -5, -3, 20, 10)
    assert np.all(level[:3] == 255)
    assert np.all(level[:, :5] == 255)
    assert np.all(level[3:, 5:, 2] == 100)
    assert np.all(ramp_slide.read_level(1, 5000, 5000, 7, 9) == 255)
    assert np.all(ramp_slide.read_level(1, -50, 10, 50, 9) == 255)
    assert np.all(ramp_slide.read(-500, -500, 0.7, 9, 9) == 255)
    corner = ramp_slide.read(WIDTH - 40, HEIGHT - 40, 1.0, 20, 20)
    assert np.all(corner[11:] == 255)
    assert np.all(corner[:, 11:] == 255)
    # The last column holds a single px of level 0: no white is mixed in, whether the level has a px for it or not.
    assert np.all(corner[:10, :10, 2] == 100)


def test_both_axes_have_their_own_scale(tmp_path):
    levels = [rounded(ramp()), rounded(reduced(ramp(), 4, False))]
    with open_slide(write_levels(tmp_path / "a.tif", levels, mpp=(0.25, 0.2))) as slide:
        assert slide.mpp == (pytest.approx(0.25), pytest.approx(0.2))
        for mpp in (0.25, 0.4, 1.0, 1.7):
            assert_ramp(slide.read(11.0, 7.5, mpp, 30, 30), slide, 11.0, 7.5, mpp, 1.02)
        thumbnail = slide.thumbnail(2.0)
        assert thumbnail.shape[:2] == (int(np.ceil(HEIGHT * 0.1)), int(np.ceil(WIDTH * 0.125)))


def test_levels_whose_ratio_is_not_whole(tmp_path):
    """509 × 467 px to 203 × 187: 2.507 and 2.497 px per px, each along its axis."""
    full = ramp()
    smaller = averaged(full, weights(0, HEIGHT / 187, 187, HEIGHT), weights(0, WIDTH / 203, 203, WIDTH))
    with open_slide(write_levels(tmp_path / "a.tif", [rounded(full), rounded(smaller)])) as slide:
        assert slide.levels[1].downsample == (WIDTH / 203, HEIGHT / 187)
        assert_ramp(slide.read(20.0, 30.0, 0.8, 100, 90), slide, 20.0, 30.0, 0.8, 1.02)


def test_almost_the_scale_of_a_level(tmp_path):
    """Within 0.1 % a level is taken as it is, unless a pixel would move by a quarter."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    with open_slide(write_levels(tmp_path / "a.tif", [noise], mpp=0.4998)) as slide:
        np.testing.assert_array_equal(slide.read(3, 4, 0.5, 500, 500), noise[4:504, 3:503])
        np.testing.assert_array_equal(slide.read(3.02, 4, 0.5, 500, 500), noise[4:504, 3:503])
        assert np.any(slide.read(3.2, 4, 0.5, 500, 500) != noise[4:504, 3:503])
    with open_slide(write_levels(tmp_path / "b.tif", [noise], mpp=0.4996)) as slide:
        assert np.any(slide.read(3, 4, 0.5, 500, 500) != noise[4:504, 3:503])


def test_slightly_finer_is_interpolated_and_more_is_refused(tmp_path):
    with open_slide(write_levels(tmp_path / "a.tif", [rounded(ramp())], mpp=0.2527)) as slide:
        assert_ramp(slide.read(10.0, 20.0, 0.25, 200, 200), slide, 10.0, 20.0, 0.25, 1.02)
        edge = slide.read(WIDTH - 100, HEIGHT - 100, 0.25, 110, 110)
        assert np.all(edge[:100, :100, 2] == 100)
        assert np.all(edge[104:] == 255)
        with pytest.raises(UnusableSlide, match=r"0.2 µm/px is finer than its pixels of 0.2527 µm"):
            slide.read(0, 0, 0.2, 10, 10)


@pytest.mark.parametrize("mpp", [0.245, 0.3, 0.77])
def test_a_region_does_not_depend_on_what_else_is_read(tmp_path, mpp):
    """Its outermost pixels see their neighbors outside the region."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    with open_slide(write_levels(tmp_path / "a.tif", [noise])) as slide:
        step = mpp / 0.25
        large = slide.read(20.3, 17.6, mpp, 60, 60).astype(int)
        small = slide.read(20.3 + 11 * step, 17.6 + 7 * step, mpp, 30, 20)
    assert np.abs(small - large[7:27, 11:41]).max() <= 1
    assert np.mean(small != large[7:27, 11:41]) < 0.01


def test_a_slide_without_scale(tmp_path):
    path = write_levels(tmp_path / "a.tif", [rounded(ramp())], mpp=None)
    with open_slide(path) as slide:
        assert (slide.mpp, slide.mpp_source) == (None, "")
        for use in (slide.require_mpp, lambda: slide.read(0, 0, 0.5, 9, 9), lambda: slide.thumbnail(8)):
            with pytest.raises(UnusableSlide, match="--source-mpp"):
                use()
        assert slide.thumbnail_by(10.0).shape == (47, 51, 3)
    with open_slide(path, source_mpp=0.5) as slide:
        assert (slide.require_mpp(), slide.mpp_source) == ((0.5, 0.5), "given")


@pytest.mark.parametrize("downsample", [1.0, 1.7, 2.0, 5.0, 16.0, 23.4, 400.0])
def test_thumbnails(ramp_slide, downsample):
    thumbnail = ramp_slide.thumbnail_by(downsample)
    assert thumbnail.shape == (int(np.ceil(HEIGHT / downsample)), int(np.ceil(WIDTH / downsample)), 3)
    assert np.all(thumbnail[..., 2] == 100)
    assert_ramp(thumbnail, ramp_slide, 0, 0, 0.25 * downsample, 1.02)
    np.testing.assert_array_equal(ramp_slide.thumbnail(0.25 * downsample), thumbnail)


def test_a_thumbnail_finer_than_the_slide_is_interpolated(ramp_slide):
    thumbnail = ramp_slide.thumbnail_by(0.5)
    assert thumbnail.shape == (2 * HEIGHT, 2 * WIDTH, 3)
    assert_ramp(thumbnail, ramp_slide, 0, 0, 0.125, 1.02)


@pytest.mark.parametrize("downsample", [0.6, 1.0, 3.7, 8.0, 40.0])
def test_pieces_join_without_a_seam(tmp_path, monkeypatch, downsample):
    noise = np.random.default_rng(0).integers(0, 256, (467, 509, 3), dtype=np.uint8)
    path = write_levels(tmp_path / "a.tif", [noise])
    with open_slide(path) as slide:
        whole = slide.thumbnail_by(downsample)
    monkeypatch.setattr(sampling, "_PIECE", 20_000)
    with open_slide(path, cache_bytes=100_000) as slide:
        pieces = slide.thumbnail_by(downsample)
    # The same means summed in other groups: a mean at a half may round either way.
    assert np.abs(pieces.astype(int) - whole).max() <= (0 if downsample in (1.0, 8.0) else 1)
    assert (pieces != whole).mean() < 0.001


def test_memory_stays_bounded(tmp_path, monkeypatch):
    """No region read is larger than a piece, and the cache keeps to its size."""
    monkeypatch.setattr(sampling, "_PIECE", 30_000)
    path = write_levels(tmp_path / "a.tif", [rounded(ramp())])
    with open_slide(path, cache_bytes=200_000) as slide:
        sizes, used = [], []
        read = slide._backend.read

        def watched(level, x, y, width, height):
            pixels = read(level, x, y, width, height)
            sizes.append(width * height)
            used.append(slide._backend._cache.used)
            return pixels

        monkeypatch.setattr(slide._backend, "read", watched)
        slide.thumbnail_by(20.0)
        slide.read(0, 0, 5.0, 20, 20)
    assert len(sizes) > 5
    assert max(sizes) <= 30_000 + 20 * (WIDTH + HEIGHT)
    assert max(used) <= 200_000


def test_what_is_returned_is_the_callers(tmp_path):
    """Writing to it changes nothing that is read later, whether the level is kept in one piece or not."""
    with open_slide(write_levels(tmp_path / "a.tif", [rounded(ramp())])) as slide:
        before = slide.read_level(0, 10, 10, 300, 300)
        for _ in range(2):
            for pixels in (slide.read_level(0, 0, 0, WIDTH, HEIGHT), slide.read(0, 0, 0.25, 400, 400)):
                pixels[:] = 0
            for step in (1, 2, 3, 3.3):
                slide.thumbnail_by(step)[:] = 0
                slide.read(0, 0, 0.25 * step, 100, 100)[:] = 0
        np.testing.assert_array_equal(slide.read_level(0, 10, 10, 300, 300), before)


def test_a_level_kept_in_one_piece_leaves_room_for_tiles(tmp_path):
    levels = [rounded(ramp()), rounded(reduced(ramp(), 2, False))]
    size = 3 * (WIDTH // 2) * (HEIGHT // 2)
    path = write_levels(tmp_path / "a.tif", levels)
    for cache_bytes, kept in ((2 * size + 2, [1]), (2 * size - 2, [])):
        with open_slide(path, cache_bytes=cache_bytes) as slide:
            tiles = slide.read_level(0, 0, 0, WIDTH, HEIGHT)
            slide.thumbnail_by(1.0)
            slide.thumbnail_by(9.0)
            assert list(slide._backend._kept) == kept
            assert slide._backend._cache.used <= cache_bytes - len(kept) * size
            np.testing.assert_array_equal(slide.read_level(0, 0, 0, WIDTH, HEIGHT), tiles)
            np.testing.assert_array_equal(slide.read_level(1, 5, 7, 100, 90), levels[1][7:97, 5:105])


def test_no_tile_is_decoded_twice_while_they_fit_the_cache(tmp_path, monkeypatch):
    decoded = []
    tile = Pixels.tile
    monkeypatch.setattr(Pixels, "tile", lambda self, *place: decoded.append(place) or tile(self, *place))
    with open_slide(write_levels(tmp_path / "a.tif", [rounded(ramp())])) as slide:
        slide.thumbnail(8.0)
        for x in range(0, WIDTH, 100):
            slide.read(x, 50, 0.3, 64, 64)
            slide.read_level(0, x, 50, 64, 64)
    assert len(decoded) == len(set(decoded)) == 4 * 5


def test_jpeg_tiles_of_large_levels_are_reduced_while_they_are_decoded(tmp_path, monkeypatch):
    y, x = np.mgrid[:768, :1000]
    smooth = rounded(
        np.stack([128 + 90 * np.sin(x / 40), 128 + 90 * np.cos(y / 50), 128 + 60 * np.sin((x + y) / 60)], axis=2)
    )
    path = tmp_path / "a.tif"
    for options in ({"photometric": "rgb"}, {"photometric": "ycbcr", "subsampling": (2, 2)}):
        write_levels(path, [smooth], tile=(256, 256), compression="jpeg", compressionargs={"level": 95}, **options)
        with open_slide(path) as slide:
            exact = slide.thumbnail_by(16.0)
            monkeypatch.setattr(slide_module, "_LARGE", 1000)
            monkeypatch.setattr(Pixels, "tile", lambda *_: pytest.fail("decoded in full"))
            fast = slide.thumbnail_by(16.0)
            monkeypatch.undo()
        assert fast.shape == exact.shape == (48, 63, 3)
        difference = np.abs(fast.astype(int) - exact)
        # The last column is half in the slide; of its px in the tile, some are padding.
        assert difference[:, :-1].max() <= 3
        assert difference[:, :-1].mean() < 0.6


def test_openslide_levels_of_uneven_ratio_are_not_shifted(tmp_path):
    """OpenSlide is addressed in px of level 0, by the mean of both ratios: 2.004 for px that are 2."""
    levels = [rounded(ramp()), rounded(reduced(ramp(), 2, False)), rounded(reduced(ramp(), 4, False))]
    path = write_levels(tmp_path / "a.tif", levels, tile=(128, 128))
    with Slide(path, OpenSlideSlide(path, 1 << 24), 0.25) as slide:
        assert slide.format == "openslide:generic-tiff"
        assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2), (4, 4)]
        for mpp in (0.25, 0.5, 0.6, 1.0, 1.1):
            for x, y in ((0.0, 0.0), (101.0, 51.0), (230.5, 203.0)):
                assert_ramp(slide.read(x, y, mpp, 40, 40), slide, x, y, mpp, 1.52)
        assert_ramp(slide.thumbnail(0.7), slide, 0, 0, 0.7, 1.52)


def test_after_a_damaged_place_openslide_reads_others(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (448, 512, 3), np.uint8)
    path = write_levels(tmp_path / "s.tif", [pixels], compression="zlib", tile=(128, 128))
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages.first.dataoffsets[5], tif.pages.first.databytecounts[5]
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * count)
    slide = OpenSlideSlide(path, 1 << 24)
    with pytest.raises(UnusableSlide, match="OpenSlide cannot read it"):
        slide.read(0, 128, 128, 128, 128)
    np.testing.assert_array_equal(slide.read(0, 256, 128, 128, 128), pixels[128:256, 256:384])
    slide.close()


def test_a_slide_is_not_pickled(ramp_slide):
    with pytest.raises(TypeError, match="open it in each process"):
        pickle.dumps(ramp_slide)
