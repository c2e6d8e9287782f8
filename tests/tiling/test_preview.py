import io

import numpy as np
import pytest
from PIL import Image

from eosin.slides import Grid, Tissue, lay_grid
from eosin.tiling.preview import contact_sheet, preview

GLASS, PINK = (243, 241, 242), (205, 140, 185)
TISSUE_LINE, PEN, BLUE, ORANGE = (0, 110, 60), (0, 190, 230), (25, 70, 210), (225, 95, 0)


def slide(height=300, width=400):
    """A thumbnail with a piece of tissue at its left and a pen at its right, and both as found."""
    rng = np.random.default_rng(0)
    thumbnail = np.empty((height, width, 3), np.uint8)
    thumbnail[:] = GLASS
    mask, pen = np.zeros((height, width), bool), np.zeros((height, width), bool)
    mask[height // 4 : 3 * height // 4, width // 8 : width // 2] = True
    pen[height // 4 : 3 * height // 4, 3 * width // 4 :] = True
    thumbnail[mask] = np.clip(rng.normal(PINK, 12, (int(mask.sum()), 3)), 0, 255)
    return thumbnail, Tissue(mask, pen, 0.07, ())


def tiles(slide_size, mpp, size=512, slide_mpp=0.5):
    grid = lay_grid(slide_size, (slide_mpp, slide_mpp), mpp=mpp, size=size, stride=size)
    kept = (grid.x >= slide_size[0] / 8) & (grid.x + grid.level0_width <= slide_size[0] / 2)
    return grid, kept & (grid.y >= slide_size[1] / 4) & (grid.y + grid.level0_height <= 3 * slide_size[1] / 4)


def count(picture, color, box=None):
    pixels = np.asarray(picture.convert("RGB").crop(box) if box else picture.convert("RGB"))
    return int((pixels == color).all(axis=2).sum())


def panels(picture, width=590, gap=12):
    """The two pictures of a slide: as it is, and marked."""
    bottom = picture.height - 28
    return (10, 46, 10 + width, bottom), (10 + width + gap, 46, 10 + 2 * width + gap, bottom)


def test_a_preview_shows_tissue_pen_and_tiles():
    thumbnail, tissue = slide()
    size = (6400, 4800)
    picture = preview(thumbnail, tissue, [tiles(size, 0.5), tiles(size, 1.0)], size, title="a.svs")
    plain, marked = panels(picture)
    assert picture.width == 2 * 590 + 12 + 2 * 10
    assert count(picture, BLUE, marked) > 500
    assert count(picture, ORANGE, marked) > 200
    assert count(picture, TISSUE_LINE, marked) > 1000
    for color in (BLUE, ORANGE, TISSUE_LINE, PEN):
        assert count(picture, color, plain) == 0
        # A square of each in the legend.
        assert count(picture, color, (0, picture.height - 28, picture.width, picture.height)) >= 100
    half = Image.fromarray(np.array(picture.convert("RGB").crop(marked)))
    assert np.abs(np.asarray(half)[221, 550].astype(int) - (0.3 * 243, 190, 230)).max() < 60


def test_tiles_are_drawn_where_they_lie():
    thumbnail, tissue = slide(480, 590)
    empty = Tissue(np.zeros_like(tissue.mask), tissue.pen & False, 0.07, ())
    # On a panel as large as the thumbnail a level-0 px is a tenth of a pixel.
    grid = Grid(np.array([1000, 3000]), np.array([500, 2000]), 500.0, 1000.0, 0.5, 1000)
    picture = preview(thumbnail, empty, [(grid, np.array([False, True]))], (5900, 4800), title="a")
    _, marked = panels(picture)
    pixels = np.asarray(picture.convert("RGB").crop(marked))
    rows, columns = np.nonzero((pixels == BLUE).all(axis=2))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (200, 299, 300, 349)
    assert len(rows) == 2 * 100 + 2 * 50 - 4


def test_tiles_too_small_to_outline_are_tinted():
    thumbnail, tissue = slide()
    size = (160_000, 120_000)
    grid, kept = tiles(size, 0.5)
    before = preview(thumbnail, tissue, [(grid, kept & False)], size, title="a")
    after = preview(thumbnail, tissue, [(grid, kept)], size, title="a")
    _, marked = panels(after)
    change = np.asarray(after.convert("RGB").crop(marked)).astype(int) - np.asarray(before.convert("RGB").crop(marked))
    inside = change[120:320, 90:280]
    assert inside[:, :, 0].mean() < -30
    assert np.abs(change[:, 320:]).mean() < 3


@pytest.mark.parametrize(
    ("slide_mpp", "size", "pixels", "text"), [(0.5, (6400, 4800), 92, "500 µm"), (0.5, (64_000, 48_000), 92, "5 mm")]
)
def test_the_scale_bar_has_the_length_it_says(slide_mpp, size, pixels, text):
    thumbnail, tissue = slide()
    picture = preview(thumbnail, tissue, [tiles(size, 0.5)], size, title="a")
    foot = np.asarray(picture.convert("L"))[picture.height - 28 :, :300]
    bar = (foot < 20).sum(axis=1).max()
    # 590 px of the panel show the slide's width; the bar lies in rows that hold no text.
    rows = np.flatnonzero((foot[:, 10:80] < 20).all(axis=1))
    length = int((foot[rows[0], 10:] < 20).argmin())
    assert length == pytest.approx(pixels, abs=1)
    number, unit = text.split()
    assert length * slide_mpp * size[0] / 590 == pytest.approx(float(number) * (1000 if unit == "mm" else 1), rel=0.01)
    assert bar >= length


@pytest.mark.parametrize("shape", [(1, 1), (2, 3000), (3000, 2), (35, 35), (1500, 2000)])
def test_slides_of_any_shape_fit(shape):
    thumbnail = np.full((*shape, 3), 240, np.uint8)
    tissue = Tissue(np.zeros(shape, bool), np.zeros(shape, bool), 0.07, ("no tissue",))
    size = (shape[1] * 16, shape[0] * 16)
    picture = preview(thumbnail, tissue, [tiles(size, 0.5)], size, title="a name " * 60)
    assert 380 <= picture.width <= 1600
    assert picture.height <= 800
    assert preview(thumbnail, tissue, [], size, title="").width > 0


def test_files_are_small():
    rng = np.random.default_rng(0)
    thumbnail, tissue = slide(1500, 2000)
    thumbnail[tissue.mask] = np.clip(rng.normal(PINK, 40, (int(tissue.mask.sum()), 3)), 0, 255)
    size = (32_000, 24_000)
    file = io.BytesIO()
    preview(thumbnail, tissue, [tiles(size, 0.5)], size, title="a").save(file, "PNG")
    assert file.tell() < 300_000


def test_a_sheet_has_a_labeled_cell_a_slide():
    thumbnail, tissue = slide()
    size = (6400, 4800)
    one = preview(thumbnail, tissue, [tiles(size, 0.5)], size, title="a")
    tall = preview(
        thumbnail[:, :100], Tissue(tissue.mask[:, :100], tissue.pen[:, :100], 0.07, ()), [], (1600, 4800), title="b"
    )
    sheet = contact_sheet(
        [("a", one), ("b", tall), *[(f"slide {number}", one) for number in range(5)]], title="7 slides"
    )
    assert sheet.width == 5 * 310 + 10
    flat = np.asarray(sheet.convert("RGB")).astype(int)
    for row, column in ((0, 0), (0, 4), (1, 0), (1, 1)):
        top = 30 + row * (300 + 20 + 12) + 20
        cell = flat[top : top + 60, 10 + 310 * column : 310 + 310 * column]
        assert (cell.max(axis=2) - cell.min(axis=2)).max() > 40, (row, column)
        label = flat[top - 20 : top, 10 + 310 * column : 310 + 310 * column]
        assert label.min() < 100
    assert (flat[30 + 332 :, 10 + 310 * 2 :] > 240).all()
    assert contact_sheet([("only", one)]).width == 320


def test_long_labels_are_cut_in_the_middle():
    thumbnail, tissue = slide(30, 40)
    picture = preview(thumbnail, tissue, [], (640, 480), title="x" * 500)
    other = preview(thumbnail, tissue, [], (640, 480), title="x" * 499 + "y")
    assert picture.size == other.size
    assert (np.asarray(picture.convert("L"))[:46] != np.asarray(other.convert("L"))[:46]).any()
