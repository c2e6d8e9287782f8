import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eosin.core.errors import EosinError
from eosin.slides.errors import UnusableSlide
from eosin.slides.regions import Polygon, Regions, read_mask, read_regions, region_mask

SQUARE = [[100, 100], [300, 100], [300, 300], [100, 300], [100, 100]]
HOLE = [[150, 150], [150, 250], [250, 250], [250, 150], [150, 150]]


def feature(geometry, name="Tumor"):
    return {
        "type": "Feature",
        "id": "0b1d",
        "geometry": geometry,
        "properties": {"objectType": "annotation", "classification": {"name": name, "color": [200, 0, 0]}},
    }


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def written(tmp_path, content):
    path = tmp_path / "a.geojson"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def drawn(*rings):
    return Regions("a.geojson", (Polygon(tuple(np.array(ring, float) for ring in rings)),))


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": [feature(polygon(SQUARE, HOLE))]},
        [feature(polygon(SQUARE, HOLE))],
        feature(polygon(SQUARE, HOLE)),
        polygon(SQUARE, HOLE),
        polygon(SQUARE[:-1], [[*point, 0.5] for point in HOLE]),
        {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE]]},
        {"type": "GeometryCollection", "geometries": [polygon(SQUARE, HOLE), {"type": "Point", "coordinates": [1, 2]}]},
    ],
)
def test_every_form_of_geojson_gives_the_same_mask(tmp_path, content):
    regions = read_regions(written(tmp_path, content))
    mask = region_mask(regions, (50, 100), (1000, 500))
    expected = np.zeros((50, 100), bool)
    expected[10:30, 10:30] = True
    expected[15:25, 15:25] = False
    assert (mask == expected).all()


def test_classes_can_be_chosen(tmp_path):
    content = [feature(polygon(SQUARE), "Tumor"), feature(polygon(HOLE), "Stroma"), feature(polygon(HOLE), None)]
    content[2]["properties"] = {"classification": "Necrosis"}
    regions = read_regions(written(tmp_path, content))
    assert [polygon.name for polygon in regions.polygons] == ["Tumor", "Stroma", "Necrosis"]
    assert [polygon.name for polygon in regions.named(["Stroma", "Other"]).polygons] == ["Stroma"]
    with pytest.raises(EosinError, match=r"a\.geojson: no region of class Tumour; did you mean 'Tumor'\?"):
        regions.named(["Tumour"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no GeoJSON"),
        ("", "no GeoJSON"),
        ("[" * 100_000, "no GeoJSON"),
        ("12", "feature 1: no feature"),
        ({"type": "FeatureCollection"}, "field 'features'"),
        ({"type": "FeatureCollection", "features": []}, "holds no polygon"),
        ([feature({"type": "Point", "coordinates": [1, 2]})], "holds no polygon"),
        ([feature(None)], "holds no polygon"),
        ([feature(polygon(SQUARE)), feature(polygon())], "feature 2: a polygon without coordinates"),
        ([feature(polygon(SQUARE[:2]))], "feature 1: a polygon of fewer than three points"),
        ([feature(polygon([[1, 1]] * 5))], "feature 1: a polygon of fewer than three points"),
        ([feature(polygon([[1, "a"], [2, 2], [3, 1]]))], "feature 1: coordinates are lists"),
        ([feature(polygon([[1], [2, 2], [3, 1]]))], "feature 1: coordinates are lists"),
        ([feature(polygon([1, 2, 3]))], "feature 1: coordinates are lists"),
        ([feature(polygon([[float("nan"), 1], [2, 2], [3, 1]]))], "feature 1: a coordinate is no finite number"),
        ([feature(polygon([[float("inf"), 1], [2, 2], [3, 1]]))], "feature 1: a coordinate is no finite number"),
        ([feature({"type": "Circle", "coordinates": []})], "feature 1: unknown geometry 'Circle'"),
        ({"key": 1}, "feature 1: unknown geometry None"),
    ],
)
def test_damaged_files_are_told_in_one_line(tmp_path, content, message):
    path = written(tmp_path, content)
    with pytest.raises(EosinError) as caught:
        read_regions(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_told(tmp_path):
    with pytest.raises(EosinError, match="cannot be read"):
        read_regions(tmp_path / "none.geojson")
    (tmp_path / "b.geojson").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(EosinError, match="no GeoJSON"):
        read_regions(tmp_path / "b.geojson")


def plain_coverage(rings, shape, lines=64):
    """Share of each pixel inside, by testing points one by one with the crossing rule."""
    inside = np.zeros((shape[0] * lines, shape[1] * lines), bool)
    y, x = ((np.arange(side * lines) + 0.5) / lines for side in shape)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
            if y0 == y1:
                continue
            crosses = (y0 <= y) != (y1 <= y)
            at = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
            inside ^= crosses[:, None] & (at[:, None] > x[None, :])
    return inside.reshape(shape[0], lines, shape[1], lines).mean(axis=(1, 3))


# On a raster of 1/16 px, so that slopes stay finite.
POINTS = st.lists(
    st.tuples(*(st.integers(-64, most).map(lambda at: at / 16) for most in (256, 192))), min_size=3, max_size=7
)


@given(st.lists(POINTS, min_size=1, max_size=2))
def test_a_pixel_belongs_to_it_when_half_covered(rings):
    expected = plain_coverage(rings, (8, 12))
    if not (expected > 0.7).any():
        return
    mask = region_mask(drawn(*rings), (8, 12), (12, 8))
    # Four lines a row and sixty-four see the same but for slivers.
    assert mask[expected > 0.7].all()
    assert not mask[expected < 0.3].any()


def test_edges_are_right_to_less_than_half_a_pixel():
    # A circle of 300 px on a mask of 8 px a pixel.
    turn = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    ring = np.stack([500 + 300 * np.cos(turn), 400 + 300 * np.sin(turn)], axis=1)
    mask = region_mask(drawn(ring), (100, 125), (1000, 800))
    assert mask.sum() * 64 == pytest.approx(np.pi * 300**2, rel=0.01)
    far = np.hypot(*np.meshgrid((np.arange(125) + 0.5) * 8 - 500, (np.arange(100) + 0.5) * 8 - 400))
    assert mask[far < 300 - 4].all()
    assert not mask[far > 300 + 4].any()


def test_neighbors_leave_no_gap_and_overlaps_count_once():
    left, right = (
        np.array([[0, 0], [33, 0], [33, 80], [0, 80]], float),
        np.array([[33, 0], [80, 0], [80, 80], [33, 80]], float),
    )
    regions = Regions("a.geojson", (Polygon((left,)), Polygon((right,)), Polygon((left,))))
    assert region_mask(regions, (10, 10), (80, 80)).all()


def test_what_is_partly_outside_is_cut_and_what_is_wholly_outside_is_refused():
    mask = region_mask(drawn([[-500, -500], [40, -500], [40, 5000], [-500, 5000]]), (10, 10), (80, 80))
    assert mask[:, :5].all()
    assert not mask[:, 5:].any()
    with pytest.raises(UnusableSlide) as caught:
        region_mask(drawn([[100, 0], [200, 0], [200, 70]]), (10, 10), (80, 80))
    assert str(caught.value).startswith(
        "no region of a.geojson lies inside the slide of 80 × 80 px (x 100 to 200, y 0 to 70)"
    )


def test_what_is_smaller_than_a_pixel_is_kept():
    mask = region_mask(drawn([[41, 41], [43, 41], [43, 43], [41, 43]]), (10, 10), (80, 80))
    assert mask.sum() == 1
    assert mask[5, 5]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_any_kind(tmp_path, mode):
    where = np.zeros((40, 60), bool)
    where[10:20, 6:36] = True
    if mode == "P":
        image = Image.fromarray(where.astype(np.uint8), "L").convert("P")
        image.putdata(where.astype(np.uint8).ravel().tolist())
        image.putpalette([255, 255, 255, 0, 0, 0])
    elif mode == "I;16":
        image = Image.fromarray(where.astype(np.uint16))
    elif mode in ("RGBA", "LA"):
        image = Image.fromarray(np.full((40, 60), 255, np.uint8)).convert(mode)
        image.putalpha(Image.fromarray(where.astype(np.uint8) * 255))
    else:
        image = Image.fromarray(where.astype(np.uint8) * (1 if mode == "L" else 255)).convert(mode)
    path = tmp_path / "mask.png"
    image.save(path)
    assert (read_mask(path, (40, 60)) == where).all()
    assert (read_mask(path, (20, 30)) == where[::2, ::2]).all()
    assert (read_mask(path, (80, 120)) == where.repeat(2, axis=0).repeat(2, axis=1)).all()


def test_masks_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "mask.png"
    Image.new("L", (400, 400), 255).save(path)
    with pytest.raises(
        UnusableSlide,
        match=r"has 400 × 400 px, another shape than the slide \(width / height is 1.00, of the slide 1.50\)",
    ):
        read_mask(path, (200, 300))
    assert read_mask(path, (200, 203)).all()
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UnusableSlide, match="cannot be read"):
        read_mask(path, (200, 200))
    for content in (b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(UnusableSlide, match="cannot be read"):
            read_mask(path, (200, 200))
    with pytest.raises(UnusableSlide, match="No such file"):
        read_mask(tmp_path / "none.png", (200, 200))
