from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from eosin.core.errors import EosinError
from eosin.describe import describe, page
from eosin.describe.plots import Ellipse, histogram, scatter


@pytest.fixture
def written(write, tissue, tmp_path):
    """A page of tiles with copies, on three slides."""
    index = write(
        [*tissue, tissue[0], np.full((96, 96, 3), 255, dtype=np.uint8)],
        label=["<script>alert(1)</script>", "b"] * 7,
        slide=[f"s{number // 5}" for number in range(14)],
    )
    out = tmp_path / "out" / "tiles.html"
    description = describe(str(index), out=out, workers=0)
    return description, out.read_text(encoding="utf-8")


def test_the_page_is_complete_and_needs_nothing(written):
    _, text = written
    outside = re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*|@import|url\((?!data:)""", text)
    assert outside == []
    assert "<script" not in text
    assert text.rstrip().endswith("</html>")


def test_names_are_never_markup(written):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in written[1]


def test_the_pictures_are_the_tiles(written, tissue):
    _, text = written
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)" alt="tile (\d+)\.png"', text)
    assert len(pictures) > 14
    for encoded, name in pictures:
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
            shown = np.asarray(image.convert("RGB").resize((96, 96)), dtype=float)
        expected = tissue[int(name) % 12] if int(name) < 13 else np.full((96, 96, 3), 255)
        assert np.abs(shown - expected).mean() < 12


def test_copies_are_shown_with_what_they_are_called(written):
    _, text = written
    part = text[text.index("There twice") : text.index("Blankest")]
    assert re.findall(r'alt="tile (\d+)\.png"', part) == ["000", "012"]


def test_the_same_source_gives_the_same_page(write, tissue, tmp_path):
    index = write(tissue)
    for name in ("a.html", "b.html"):
        describe(str(index), out=tmp_path / name, workers=0)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_no_half_page_is_left(write, tissue, tmp_path, monkeypatch):
    index = write(tissue)
    out = tmp_path / "page" / "tiles.html"
    describe(str(index), out=out, workers=0)
    before = out.read_bytes()
    monkeypatch.setattr(page, "galleries", lambda *_: (_ for _ in ()).throw(EosinError("stopped")))
    with pytest.raises(EosinError, match="stopped"):
        describe(str(index), out=out, workers=0)
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["tiles.html"]


def heights(drawing):
    return [float(value) for value in re.findall(r'<rect class="\w+" [^>]*height="([\d.]+)"', drawing)]


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_bar_is_as_high_as_its_count_and_colored_by_its_side_of_the_threshold(logarithmic):
    values = np.array([0.15] * 10 + [0.3] * 20 + [0.8] * 40)
    drawing = histogram(values, 0.1, 1.0, mark=0.2, title="x", form=str, logarithmic=logarithmic)
    found = heights(drawing)
    assert found[1] == pytest.approx(2 * found[0], rel=0.01)
    assert found[2] == pytest.approx(4 * found[0], rel=0.01)
    assert re.findall(r'<rect class="(\w+)"', drawing) == ["bad", "good", "good"]
    assert ": 40</title>" in drawing


def test_what_lies_outside_counts_at_the_ends():
    drawing = histogram(np.array([0.0, 5.0]), 0.1, 1.0, mark=0.2, title="x", form=str, logarithmic=True)
    assert re.findall(r'<rect class="(\w+)"', drawing) == ["bad", "good"]


def test_points_and_ellipses_lie_inside_and_one_point_is_enough():
    ellipse = Ellipse(150.0, 115.0, 10.0, 5.0, 2)
    drawing = scatter(np.array([150.0]), np.array([115.0]), ["#aabbcc"], [ellipse], "a <b>", "c")
    (x, y, rx, ry) = map(
        float,
        re.search(r'<ellipse class="c2" cx="([\d.]+)" cy="([\d.]+)" rx="([\d.]+)" ry="([\d.]+)"', drawing).groups(),
    )
    assert f'<circle cx="{x}" cy="{y}"' in drawing
    assert 0 < x - rx < x + rx < 360
    assert 0 < y - ry < y + ry < 250
    assert "a &lt;b&gt;" in drawing
    alone = scatter(np.array([1.0]), np.array([1.0]), ["#000000"], [], "a", "b")
    assert "nan" not in alone
